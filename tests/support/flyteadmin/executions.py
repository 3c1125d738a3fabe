"""An execution's state, and how it comes about: at once, by a given function, or by real processes."""

import dataclasses
import threading
import time
from collections.abc import Callable

from flyteidl.core import execution_pb2, literals_pb2

from tests.support.flyteadmin.nodes import NodeRecord

PHASES = execution_pb2.WorkflowExecution
TERMINAL = (PHASES.SUCCEEDED, PHASES.FAILED, PHASES.ABORTED, PHASES.TIMED_OUT)


@dataclasses.dataclass(frozen=True)
class Succeeded:
    """The end of an execution that has outputs, `seconds` after its start; its pod waits in a queue so long."""

    outputs: literals_pb2.LiteralMap
    seconds: float = 0.0
    queued: float = 0.0


@dataclasses.dataclass(frozen=True)
class Failed:
    """The end of an execution that has none."""

    code: str = "USER:RuntimeError"
    message: str = "it failed"
    kind: int = execution_pb2.ExecutionError.USER
    phase: int = PHASES.FAILED
    seconds: float = 0.0
    queued: float = 0.0


Outcome = Succeeded | Failed


@dataclasses.dataclass
class Execution:
    """One execution, as flyteadmin keeps it."""

    project: str
    domain: str
    name: str
    spec: object
    inputs: literals_pb2.LiteralMap
    created: float
    phase: int = PHASES.QUEUED
    outcome: Outcome | None = None
    abort_cause: str = ""
    outputs_uri: str = ""
    is_second_attempt: bool = False  # whether its task has failed once, and runs again
    nodes: dict[str, NodeRecord] = dataclasses.field(default_factory=dict)
    is_failing: bool = False  # whether one of its nodes has failed: the others are aborted
    ended: float | None = None
    ends: float | None = None  # when the outcome comes about by itself
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)
    abort: Callable[[], None] | None = None
    done: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def key(self):
        return self.project, self.domain, self.name

    def refresh(self):
        """Let a due outcome come about."""
        with self.lock:
            if self.ends is not None and self.phase not in (*TERMINAL, PHASES.ABORTING):
                if time.monotonic() >= self.ends:
                    self.finish(self.outcome)
                else:
                    self.phase = PHASES.RUNNING

    def finish(self, outcome):
        with self.lock:
            if self.phase in TERMINAL:
                return
            self.outcome = outcome
            self.phase = PHASES.SUCCEEDED if isinstance(outcome, Succeeded) else outcome.phase
            self.ended = time.time()
        self.done.set()

    def terminate(self, cause, seconds=0.0):
        """Abort it, `seconds` after this call. Return whether it was running still."""
        self.refresh()
        with self.lock:
            if self.phase in TERMINAL:
                return False
            is_first = self.phase != PHASES.ABORTING
            self.phase = PHASES.ABORTING
            self.abort_cause = cause
        if seconds == 0:
            self._abort()
        elif is_first:
            timer = threading.Timer(seconds, self._abort)
            timer.daemon = True
            timer.start()
        return True

    def _abort(self):
        if self.abort is not None:
            self.abort()
        self.finish(Failed(code="", message=self.abort_cause, phase=PHASES.ABORTED))

    @property
    def in_queue(self):
        """Whether its pod waits still: Flyte says RUNNING of the execution meanwhile."""
        queued = self.outcome.queued if self.outcome is not None else 0.0
        return self.phase in (PHASES.UNDEFINED, PHASES.QUEUED) or time.time() < self.created + queued

    @property
    def running(self):
        """Whether it has not ended: one that is ABORTING has been told to end, and its pods run still."""
        self.refresh()
        return self.phase not in TERMINAL
