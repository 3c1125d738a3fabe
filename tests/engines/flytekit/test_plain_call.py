"""A task that is called by its values does what flytekit's own way does: result, error, context and what it leaves."""

import asyncio
import collections
import dataclasses
import inspect
import math
import os
import typing
from pathlib import Path
from typing import Annotated, Any, Optional

import flytekit as fl
import numpy as np
import pytest
from flytekit import Secret
from flytekit.core.context_manager import FlyteContextManager, flyte_context_Var
from flytekit.core.hash import HashMethod
from flytekit.core.python_function_task import PythonFunctionTask
from flytekit.exceptions.user import FlyteRecoverableException
from hypothesis import given
from hypothesis import strategies as st

from optuna_flyte_dsl import Category, Constraint, Float, Integer, Maximize, Minimize, Optimizer, When
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.engines._flytekit import local_controller
from optuna_flyte_dsl.engines._flytekit.event_loops import close_loops, use_own_loop
from optuna_flyte_dsl.engines._flytekit.local_controller import LocalController
from optuna_flyte_dsl.engines._flytekit.plain_call import plain_call
from optuna_flyte_dsl.engines._flytekit.sandbox import sandboxes_of_attempt

VALUES = {
    float: st.floats(),
    int: st.integers(),
    str: st.text(max_size=4),
    bool: st.booleans(),
    Float(0, 1): st.floats(0, 1) | st.integers(0, 1),
    Integer(1, 3): st.integers(1, 3),
    Category(["a", "b"]): st.sampled_from("ab"),
    Category([True, False]): st.booleans(),
}
SECRET = fl.current_context().secrets.get_secrets_env_var("group", "key")
WRONG = st.sampled_from([None, 1, 1.5, True, "a", (1.0,), [1.0], np.float64(0.5), np.int64(2), math.nan])
OUTPUTS = {
    float: VALUES[float],
    int: VALUES[int],
    str: VALUES[str],
    bool: VALUES[bool],
    Minimize: VALUES[float],
    Constraint: VALUES[float],
}
ERRORS = [
    ValueError("wrong"),
    KeyError("k"),
    RuntimeError(),
    FlyteRecoverableException("again"),
    ZeroDivisionError("a", 2),
    StopIteration(3),
    KeyboardInterrupt(),
]


@dataclasses.dataclass
class Seen:
    """What a task sees of the world around it."""

    mode: Any
    level: int
    queue: Any
    parameters: Any
    secret: str
    directory: str
    before: dict[str, bytes]
    files: dict[str, bytes]
    folder: str
    execution: Any
    inputs: dict[str, Any]


def files_in(directory):
    files = {str(each.relative_to(directory)): each for each in directory.rglob("*")}
    return {name: file.read_bytes() if file.is_file() else b"" for name, file in sorted(files.items())}


def look(inputs):
    context = FlyteContextManager.current_context()
    state = context.execution_state
    parameters = fl.current_context()
    assert parameters is context.user_space_params
    directory = Path(parameters.working_directory)
    before = files_in(directory)
    (directory / "left").write_text("x")
    parameters.checkpoint.write(b"state")
    return Seen(
        state.mode,
        context.level,
        context.worker_queue,
        (parameters.execution_id, parameters.task_id, parameters.execution_date, parameters.enable_deck),
        parameters.secrets.get("group", "key"),
        str(directory)[: -len(directory.name) + len("user_space")],
        before,
        files_in(directory),
        os.getcwd(),
        (state.working_dir, state.branch_eval_mode, state.engine_dir, context.file_access.raw_output_prefix),
        inputs,
    )


def make_task(inputs, output, outcome, log, *, is_async):
    def body(given):
        log.append(look(given))
        if isinstance(outcome, BaseException):
            raise copied(outcome)
        return outcome

    if is_async:

        async def function(**given):
            await asyncio.sleep(0)
            return body(given)

    else:

        def function(**given):
            return body(given)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
        for name, annotation in inputs.items()
    ]
    function.__signature__ = inspect.Signature(parameters, return_annotation=output)
    function.__annotations__ = {**inputs, "return": output}
    function.__qualname__ = "function"
    return fl.task(function)


def copied(error):
    return type(error)(*error.args)


class Watched(Threads):
    """Threads that note how many contexts a call leaves behind."""

    def __init__(self):
        super().__init__(at_start=use_own_loop, at_exit=close_loops)
        self.left = []

    def run(self, function, *args):
        def watched():
            try:
                return function(*args)
            finally:
                self.left.append(len(flyte_context_Var.get()))

        return super().run(watched)


async def called(task, arguments):
    """Return the result or the error of a call in a search, and how deep the stack of contexts is afterwards."""
    threads = Watched()
    controller = LocalController(threads, FlyteContextManager.current_context())
    left = threads.left
    try:
        with sandboxes_of_attempt():
            returned = await controller.add(task, dict(arguments))
        return ("returned", type(returned).__name__, repr(returned), getattr(returned, "_fields", None)), left
    except BaseException as error:
        return (type(error), str(error), repr(error.args), type(error.__cause__)), left
    finally:
        await threads.close()


def both_ways(task, arguments, log):
    """Call a task by its values, and as flytekit does. Return what happened in each."""
    happened = []
    for finder in (plain_call, lambda _: None):
        log.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local_controller, "plain_call", finder)
            patch.setenv(SECRET, "secret")
            happened.append((*asyncio.run(called(task, arguments)), list(map(repr, log))))
    return happened


@st.composite
def calls(draw):
    names = draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=4))
    inputs = {name: draw(st.sampled_from(list(VALUES))) for name in names}
    arguments = {name: draw(VALUES[kind]) for name, kind in inputs.items()}
    for name in draw(st.lists(st.sampled_from(names), max_size=1)) if names else ():
        arguments[name] = draw(WRONG)
    for name in draw(st.lists(st.sampled_from(names), max_size=1)) if draw(st.integers(0, 5)) == 0 and names else ():
        del arguments[name]
    kinds = draw(st.lists(st.sampled_from(list(OUTPUTS)), min_size=1, max_size=3))
    output = kinds[0] if len(kinds) == 1 else tuple[tuple(kinds)]
    values = [draw(st.one_of(OUTPUTS[kind], OUTPUTS[kind], WRONG)) for kind in kinds]
    right = values[0] if len(kinds) == 1 else draw(st.sampled_from([tuple, list]))(values)
    outcome = draw(st.one_of(st.just(right), st.just(right), WRONG, st.sampled_from(ERRORS)))
    return inputs, arguments, output, outcome, draw(st.booleans())


@given(calls())
def test_a_call_by_values_is_as_flytekits_call(call):
    inputs, arguments, output, outcome, is_async = call
    log = []
    task = make_task(inputs, output, outcome, log, is_async=is_async)
    assert plain_call(task) is not None
    by_values, by_flytekit = both_ways(task, arguments, log)
    assert by_values == by_flytekit


Pair = typing.NamedTuple("Pair", loss=float, size=int)  # noqa: UP014 - flytekit reads it


@fl.task
def named(x: float) -> Pair:
    return Pair(x, 1)


def test_a_named_tuple_is_returned_as_flytekit_returns_it():
    by_values, by_flytekit = both_ways(named, {"x": 0.5}, [])
    assert plain_call(named) is not None
    assert by_values == by_flytekit
    assert by_values[0] == ("returned", "Pair", "Pair(loss=0.5, size=1)", ("loss", "size"))


One = typing.NamedTuple("One", loss=float)  # noqa: UP014


@fl.task
def optional(x: Optional[float]) -> float:
    return 0.0


@fl.task
def listed(x: list[float]) -> float:
    return 0.0


@fl.task
def named_choices(x: Category({"a": 1, "b": 2})) -> float:
    return 0.0


@fl.task
def one_field(x: float) -> One:
    return One(x)


@fl.task
def without_output(x: float):
    pass


@fl.task
def hashed(x: Annotated[float, HashMethod(str)]) -> float:
    return x


@fl.task(cache=True, cache_version="1")
def cached(x: float) -> float:
    return x


@fl.dynamic
def dynamic(x: float) -> float:
    return x


@fl.eager
async def eager(x: float) -> float:
    return x


class OwnTask(PythonFunctionTask):
    """A task of a plugin."""


NEEDS_FLYTEKIT = [optional, listed, named_choices, one_field, without_output, hashed, cached, dynamic, eager]


@pytest.mark.parametrize("task", NEEDS_FLYTEKIT, ids=lambda task: task.name.rpartition(".")[2])
def test_flytekit_calls_what_it_does_something_for(task):
    assert plain_call(task) is None


def test_flytekit_calls_the_task_of_a_plugin():
    assert plain_call(OwnTask(None, lambda: 0.0)) is None


@fl.task
def conditional(
    kernel: Category(["rbf", "linear"]), gamma: Annotated[float, Float(0, 1), When("kernel", "rbf")] = 0.5
) -> tuple[Minimize, Maximize]:
    return gamma, gamma


def test_markers_with_conditions_are_plain():
    assert plain_call(conditional) is not None


ran = collections.Counter()


@fl.task(retries=2)
def recovers(x: float) -> float:
    ran["recovers"] += 1
    if ran["recovers"] < 3:
        raise FlyteRecoverableException("not yet")
    return x


@fl.task(enable_deck=True)
def with_deck(x: float) -> float:
    assert not fl.current_context().enable_deck
    ran["deck"] += 1
    return x


@fl.task(secret_requests=[Secret(group="group", key="key")])
def with_secret(x: float) -> float:
    ran[fl.current_context().secrets.get("group", "key")] += 1
    return x


def test_limits_secrets_and_decks_are_as_always(monkeypatch):
    monkeypatch.setenv(SECRET, "secret")
    ran.clear()
    for task in (recovers, with_deck, with_secret):
        assert plain_call(task) is not None
        study = Optimizer(task, concurrency=1, n_trials=1).run_sync(x=Float(0, 1))
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"]
    assert ran == {"recovers": 3, "deck": 1, "secret": 1}


@fl.task
def makes_a_deck(x: float) -> float:
    fl.Deck("page", "<p>")
    return float(len(fl.current_context().decks))


def test_each_call_has_decks_of_its_own():
    study = Optimizer(makes_a_deck, concurrency=2, n_trials=4).run_sync(x=Float(0, 1))
    assert {trial.value for trial in study.trials} == {1.0}
