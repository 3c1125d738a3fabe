"""`TrialExecution`: one execution of a trial. Its methods prepare, launch or adopt, and read the execution."""

import functools
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from flyteidl.admin.execution_pb2 import (
    Execution,
    ExecutionCreateRequest,
    WorkflowExecutionGetDataRequest,
    WorkflowExecutionGetRequest,
)
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flytekit.core.python_function_task import AsyncPythonFunctionTask, EagerAsyncPythonFunctionTask
from flytekit.core.workflow import WorkflowBase
from optuna.trial import Trial

from optuna_flyte_dsl._foreign_errors import is_blob_store_outage, says_launch_plan_is_full
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import backoff, retry
from optuna_flyte_dsl.engines._flytekit.cluster.admin import AdminError, GivenUpError
from optuna_flyte_dsl.engines._flytekit.cluster.deck import text_for_deck
from optuna_flyte_dsl.engines._flytekit.cluster.execution_failures import (
    EagerExecutionFailedError,
    failure_of,
    has_not_begun,
    read_closure,
    vanished,
)
from optuna_flyte_dsl.engines._flytekit.cluster.executions import ATTEMPT, INPUTS_DIGEST, SEARCH
from optuna_flyte_dsl.engines._flytekit.cluster.launcher import CAUSE, Launcher
from optuna_flyte_dsl.engines._flytekit.cluster.registry import Launchable
from optuna_flyte_dsl.errors import RefusedError


class FullLaunchPlanError(Exception):
    """Raised when a launch plan has as many executions as it allows at once. The launch may be tried again later."""


@dataclass(eq=False)
class TrialExecution:
    """One execution of a trial, from the call of an entity to the end of the execution. All methods block."""

    launcher: Launcher
    trial: Trial
    entity: Any  # the task, workflow or launch plan that is called
    arguments: Mapping[str, Any]
    call: str = ""  # the key of the call among the trial's calls; see `TrialCalls`
    collisions: int = 0  # how many names of this call cannot be used: other executions have them
    name: str = ""
    is_earlier: bool = False  # whether a process that is dead has stored this name for the trial
    may_be_taken: bool = False  # whether an earlier process may have launched an execution of this name
    target: Launchable | None = None
    request: ExecutionCreateRequest | None = None
    stable_digest: str = ""  # a digest of the inputs without the trial, whose address changes with each process
    shown_inputs: str = ""  # the inputs in the Deck
    submitted: bool = False  # whether Flyte may have the execution
    over: bool = False  # whether the execution has ended, or was refused
    is_ending: bool = False  # whether its own call, which was cancelled, ends it
    given_up: threading.Event = field(default_factory=threading.Event)
    idle: threading.Event = field(default_factory=threading.Event)  # set while no thread runs a method

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def url(self) -> str:
        """The address of the execution's page in the console."""
        return self.launcher.names.url(self.name)

    @property
    def identifier(self) -> WorkflowExecutionIdentifier:
        """The execution's project, domain and name."""
        return self.launcher.names.identifier(self.name)

    def prepare(self) -> None:
        """Find or register the entity, and convert the arguments. An outage of the blob store is waited out."""
        self.target = self.launcher.registry.find(self.entity, self.given_up)
        convert = functools.partial(self.launcher.converter.inputs, self.entity.name, self.target, self.arguments)
        inputs, digest, self.stable_digest = self._wait_out_blob_store(convert)
        self.request = self.launcher.request(self.trial, self.target, inputs, digest, self.given_up)
        self.shown_inputs = self._text_for_deck(self.arguments)

    def create(self) -> bool:
        """Launch or adopt the execution; return False if another execution has the name.

        Raises:
            FullLaunchPlanError: If the launch plan allows no more executions at once for now.
        """
        launcher, request = self.launcher, self.request
        assert request is not None
        request.name = self.name
        # Look the name up first if it may be taken, because even a refused CreateExecution overwrites stored inputs.
        self.submitted = self.may_be_taken

        def create() -> bool:
            there = self._find() if self.submitted else None
            if there is not None:
                launcher.unsure.discard(self.name)
                is_ours = self._take(there)
                (launcher.running.add if is_ours else launcher.running.discard)(self.name)
                return is_ours
            launcher.traffic.wait_to_launch(launcher.options, self.given_up)
            # The name is added in this thread, because the event loop may be blocked when the pod ends.
            launcher.running.add(self.name)
            if launcher.is_ending:  # checked after the name is added, because the pod's end terminates these names
                raise GivenUpError("Given up: a launch.")
            was_unsure = self.name in launcher.unsure
            self.submitted = True  # from now on, a lost response may hide that the name is taken
            launcher.unsure.add(self.name)
            try:
                launcher.admin.send("CreateExecution", request, seconds=pauses.launch_rpc)
            except Exception as error:
                if not says_launch_plan_is_full(str(error)):
                    raise
                if not was_unsure:  # Flyte surely has no such execution
                    self.submitted = False
                    launcher.running.discard(self.name)
                    launcher.unsure.discard(self.name)
                raise FullLaunchPlanError(str(error)) from None  # with its cause, it would count as an AdminError
            launcher.unsure.discard(self.name)
            return True

        def may_pass(error: Exception) -> bool:
            # For the first execution of a task, flyteadmin makes a workflow around the task. If several requests
            # need that workflow at once, flyteadmin refuses all requests but one.
            return isinstance(error, AdminError) and error.code is grpc.StatusCode.ALREADY_EXISTS

        waits = backoff(pauses.admin_first, pauses.admin_longest, lambda: launcher.options.patience)
        try:
            outage_proof = functools.partial(
                launcher.admin.retry, create, "call CreateExecution", given_up=self.given_up
            )
            return retry(outage_proof, waits, may_pass=may_pass, wait=self._wait)
        except AdminError as error:
            self.over, self.submitted = True, False
            launcher.running.discard(self.name)
            raise error.refusal(f"launch an execution of `{self.entity.name}`") from error

    def outputs(self) -> tuple[Any, str]:
        """Return the outputs of an execution that has succeeded, and their text for the Deck.

        An outage of the blob store is waited out.
        """
        assert self.target is not None

        def uri() -> str:
            there = self._find(None)
            if there is None or not there.closure.outputs.uri:
                raise RefusedError(
                    f"Flyte's answer lacks the outputs of the execution {self.name} of `{self.entity.name}`, and "
                    "their address. Outputs that are larger than flyteadmin's `maxDownloadMBs` are left out: return "
                    "what is large as a file (`FlyteFile`), or let the operator raise that limit."
                )
            return str(there.closure.outputs.uri)

        convert = functools.partial(self.launcher.converter.outputs, self.target, self._data(), uri)
        value = self._wait_out_blob_store(convert)
        return value, self._text_for_deck(value)

    def whole(self, seen: Execution) -> Execution:
        """Return an execution that has not succeeded, read anew because `ListExecutions` cuts messages short.

        Args:
            seen: The execution as `ListExecutions` has returned it.
        """
        read = Execution(id=self.identifier)
        read.closure.CopyFrom(read_closure(self.launcher.admin, self.identifier, seen.closure, self.given_up))
        return read

    def failure(self, end: Execution) -> EagerExecutionFailedError:
        """Return the error of an execution that has not succeeded."""
        return failure_of(self.entity.name, self.name, self.url, end.closure)

    @property
    def kind(self) -> str:
        """The kind of the entity, in the words of flytekit's Deck."""
        if isinstance(self.entity, EagerAsyncPythonFunctionTask):
            return "Eager Workflow"
        if isinstance(self.entity, AsyncPythonFunctionTask):
            return "Async Task"
        return "Workflow" if isinstance(self.entity, WorkflowBase) else "Task"

    def _text_for_deck(self, value: Any) -> str:
        return text_for_deck(value) if self.launcher.connection.deck is not None else ""

    def _wait(self, seconds: float) -> None:
        if self.given_up.wait(seconds):
            raise GivenUpError("Given up: a launch.")

    def _wait_out_blob_store(self, convert: Any) -> Any:
        patience = self.launcher.options.patience
        warning_at: float | None = None  # `inf` once the outage is logged

        def may_pass(error: Exception) -> bool:
            nonlocal warning_at
            if not is_blob_store_outage(error):
                return False
            warning_at = warning_at or time.monotonic() + pauses.admin_warning
            if time.monotonic() > warning_at:
                warning_at = math.inf
                logger.warning("The blob store fails (%r): waiting for up to %.0f seconds.", error, patience)
            return True

        waits = backoff(pauses.admin_first, pauses.admin_longest, lambda: patience)
        return retry(convert, waits, may_pass=may_pass, wait=self._wait)

    def _find(self, patience: float | None = 0.0) -> Execution | None:
        """Return the execution that has this execution's name; `None` if no execution has the name.

        Args:
            patience: The seconds for which an outage is waited out; `None` for the search's patience.
        """
        request = WorkflowExecutionGetRequest(id=self.identifier)
        try:
            found: Execution = self.launcher.admin.call(
                "GetExecution", request, given_up=self.given_up, patience=patience
            )
        except AdminError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return found

    def _take(self, there: Execution) -> bool:
        """Adopt an execution with this name if it has the same inputs too; return whether it was adopted.

        Either the response to this launch was lost, or an earlier attempt has launched the execution.
        """
        assert self.request is not None
        ours, theirs = self.request.spec, there.spec
        attempt = int(theirs.annotations.values.get(ATTEMPT, "0"))
        is_same_search = theirs.labels.values.get(SEARCH) == ours.labels.values[SEARCH]
        if is_same_search and attempt > self.launcher.connection.attempt:
            logger.warning("A later attempt of this pod runs the search: this attempt leaves all executions to it.")
            self.launcher.on_successor()
            raise GivenUpError("Given up: a launch.")
        same = theirs.annotations.values.get(INPUTS_DIGEST) == ours.annotations.values[INPUTS_DIGEST]
        # An execution with this cause was terminated by the process that had launched it.
        is_aborted = there.closure.abort_metadata.cause.startswith(CAUSE)
        is_void = is_aborted or has_not_begun(there)
        self.submitted = same and theirs.launch_plan == ours.launch_plan and not is_void
        # Only what is known to be a dead process's is terminated: another search may have the same names, for example
        # after a study was copied.
        is_leftover = self.is_earlier or (is_same_search and attempt < self.launcher.connection.attempt)
        if is_leftover and not self.submitted and not is_void:
            deadline = self.launcher.end_of_grace()
            self.launcher.terminate(self.name, f"trial {self.trial.number} asks for something else now", deadline)
        return self.submitted

    def _data(self) -> Any:
        request = WorkflowExecutionGetDataRequest(id=self.identifier)
        try:
            return self.launcher.admin.call("GetExecutionData", request, given_up=self.given_up)
        except AdminError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            raise self.failure(vanished(self.identifier)) from error
