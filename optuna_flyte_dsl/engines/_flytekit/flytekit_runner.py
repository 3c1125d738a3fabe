"""Runs the trials of an objective in a Flyte context: by the local controller, or by a given worker queue."""

import contextlib
import functools
from collections.abc import Coroutine, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from flytekit.core.base_task import PythonTask
from flytekit.core.context_manager import ExecutionState, FlyteContextManager, flyte_context_Var
from flytekit.core.promise import async_flyte_entity_call_handler
from optuna import TrialPruned

from optuna_flyte_dsl.engines._flytekit.event_loops import threads_with_own_loops
from optuna_flyte_dsl.engines._flytekit.input_check import refused_argument
from optuna_flyte_dsl.engines._flytekit.local_controller import LocalController
from optuna_flyte_dsl.engines._flytekit.output_check import observing_outputs
from optuna_flyte_dsl.engines._flytekit.sandbox import sandboxes_of_attempt
from optuna_flyte_dsl.engines._flytekit.task_limits import EntityCall
from optuna_flyte_dsl.engines.functions import FunctionRunner
from optuna_flyte_dsl.errors import FixedArgumentError, OptunaFlyteError
from optuna_flyte_dsl.search.error_origin import place_of
from optuna_flyte_dsl.search.runner import TrialRun, run_series
from optuna_flyte_dsl.space.objective import TRIAL, Kind, Objective


class FlytekitRunner:
    """Runs the trials of one search; see `Runner`.

    Args:
        is_on_cluster: Whether a subclass puts a worker queue of a cluster into each trial's context.
    """

    def __init__(self, objective: Objective, *, is_on_cluster: bool = False) -> None:
        self._objective = objective
        target = objective.target
        self._observed = observing_outputs(target, _note_returned) if isinstance(target, PythonTask) else None
        self._checked_arguments = False
        self._threads = threads_with_own_loops()
        self._functions = FunctionRunner(objective, self._threads, self._in_thread)
        FlyteContextManager.current_context()  # makes the context stack of a new thread
        self._stack = list(flyte_context_Var.get())
        if not is_on_cluster:
            context = FlyteContextManager.current_context()
            state = context.execution_state
            is_eager = state is not None and state.mode is ExecutionState.Mode.EAGER_EXECUTION
            if is_eager and context.worker_queue is not None:
                self._stack.append(context)  # the context has a worker queue already
            else:
                self._stack.append(LocalController(self._threads, context).context())

    async def run(self, run: TrialRun) -> Any:
        self._enter_flyte()
        with sandboxes_of_attempt():
            return await self._call(run)

    def _enter_flyte(self) -> None:
        # The list is copied, because copies of a context share one context stack.
        flyte_context_Var.set(list(self._stack))

    @contextlib.contextmanager
    def _in_thread(self, run: TrialRun) -> Iterator[None]:
        if run.context is not None:  # the run is not the first one of its series
            self._enter_flyte()
        with sandboxes_of_attempt():
            yield

    def _call(self, run: TrialRun) -> Coroutine[Any, Any, Any]:
        return self._call_task(run) if self._objective.kind is Kind.TASK else self._functions.run(run)

    async def _call_task(self, run: TrialRun) -> Any:
        run.begin()
        arguments = self._objective.call_arguments(run.arguments, run.trial)
        try:
            queue = FlyteContextManager.current_context().worker_queue
            if isinstance(queue, LocalController) and self._observed is not None:
                return await queue.run_in_thread(self._observed, functools.partial(self._run_series, queue, run))
            value = await async_flyte_entity_call_handler(self._objective.target, **arguments)
            self._checked_arguments = True
            return value
        except (TrialPruned, OptunaFlyteError):
            raise
        except Exception as error:
            wrong = await self._refused_argument(run, arguments, error) if not place_of(error) else None
            if wrong is None:
                raise
            raise wrong from None

    async def _refused_argument(
        self, run: TrialRun, arguments: Mapping[str, Any], error: Exception
    ) -> FixedArgumentError | None:
        """Return the error of a fixed argument that no trial of the search can get; `None` if there is none."""
        if self._checked_arguments:
            return None
        self._checked_arguments = True  # the fixed arguments of all trials are the same
        searched = {*self._objective.space, *(run.trial.params if run.trial is not None else ())}
        names = {name.split(".", 1)[0] for name in searched} | {TRIAL}
        objective = self._objective
        refused: FixedArgumentError | None = await self._threads.run(
            refused_argument, objective.target, objective.name, arguments, names, error
        )
        return refused

    def _run_series(self, controller: LocalController, run: TrialRun, call: EntityCall) -> Any:
        return run_series(run, lambda each: self._call_observed(controller, each, call))

    def _call_observed(self, controller: LocalController, run: TrialRun, call: EntityCall) -> Any:
        """Call the task in this thread, and note what it returns before flytekit converts it."""
        returned: list[Any] = []
        _returned.set(returned)
        try:
            with self._in_thread(run):
                value = controller.run(self._observed, self._objective.call_arguments(run.arguments, run.trial), call)
        except Exception:
            wrong = self._objective.refusal(returned[-1], refused_by_sdk=True) if returned else None
            if wrong is None:
                raise
            raise wrong from None  # flytekit's error does not name the cure, and its traceback is long
        self._checked_arguments = True
        return value

    @property
    def busy(self) -> bool:
        return self._threads.busy

    async def close(self) -> None:
        await self._threads.close()


_returned: ContextVar[list[Any]] = ContextVar("what the task of a trial has returned")


def _note_returned(value: Any) -> None:
    _returned.get().append(value)
