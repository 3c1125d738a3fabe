"""Every error that this library raises, under one root class.

Each class stands for one misuse or one kind of failure. An error class is also a `ValueError` or a `TypeError` where a
caller would expect that. A message names the parameter, the rule, the value that was given, and what to write instead.
"""

import builtins
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import optuna

_MESSAGE_LIMIT = 2_000


class OptunaFlyteError(Exception):
    """Root of all errors of this library."""


class InvalidMarkerError(OptunaFlyteError, ValueError):
    """Raised when a marker's arguments break a rule, such as `low < high`."""


class InvalidMarkerTypeError(OptunaFlyteError, TypeError):
    """Raised when a marker's argument has the wrong type."""


class InvalidAnnotationError(OptunaFlyteError, TypeError):
    """Raised when an annotation uses a marker in a way that has no meaning."""


class UnresolvedAnnotationError(OptunaFlyteError, NameError):
    """Raised when a string annotation contains a name that cannot be found."""


class InvalidObjectiveError(OptunaFlyteError, ValueError, TypeError):
    """Raised when something cannot be an objective because of its kind, its signature or its return type."""


class InvalidOptionError(OptunaFlyteError, ValueError, TypeError):
    """Raised when an option of `optimize` or `Optimizer` breaks a rule, or contradicts another option."""


class DirectionError(OptunaFlyteError, ValueError):
    """Raised when the objectives and the study's directions do not fit together."""


class ArgumentError(OptunaFlyteError, TypeError):
    """Raised when the call of a search has an argument that the objective does not take, or lacks a needed argument."""


class FixedArgumentError(ArgumentError):
    """Raised at the first trial when an argument of the call cannot be sent to a task or a worker process."""


class NotAwaitedError(OptunaFlyteError, AttributeError):
    """Raised when the call of a search is used as its study before it was awaited."""


class OutOfRangeError(OptunaFlyteError, ValueError):
    """Raised when a fixed value or an initial point lies outside its parameter's marker."""


class EmptySpaceError(OptunaFlyteError, ValueError):
    """Raised when the arguments of a call fix every parameter, so that nothing is left to search."""


class InvalidSpaceError(OptunaFlyteError, ValueError):
    """Raised when a file or a dict does not describe a search space, or not one of the objective."""


class InvalidStudyFileError(OptunaFlyteError, ValueError):
    """Raised when a file does not hold the one study that it is to hold, or no file can hold a study."""


class RefusedPointError(OptunaFlyteError, ValueError):
    """Stored with a trial that failed because a class of the signature, or a constraint, does not allow its point."""


class NoBestTrialError(OptunaFlyteError, ValueError):
    """Raised when a study has no best trial: none is complete, or none is within the given bounds."""


class ObjectiveValueError(OptunaFlyteError, ValueError, TypeError):
    """Raised when the objective returns the wrong number of values, or a value that is not a number."""


class SearchRunningError(OptunaFlyteError, RuntimeError):
    """Raised when an option is assigned while a search runs, or when a search forbids another search of its study."""


class CompilationError(OptunaFlyteError, RuntimeError):
    """Raised when a search is called while Flyte compiles a workflow: compilation cannot wait for a search."""


class ClusterError(OptunaFlyteError, RuntimeError):
    """Root of the errors of a Flyte cluster that end a search.

    Before such an error is raised, the study is told the finished trials, and the running executions are terminated.
    """


class RefusedError(ClusterError):
    """Raised when Flyte refuses a request of a search, such as a launch without permission."""


class ClusterUnavailableError(ClusterError):
    """Raised when flyteadmin has not answered for longer than `Cluster(patience=...)`."""


class UnloadableError(ClusterError, InvalidObjectiveError):
    """Raised when a trial's pod, or its worker process, cannot load the task that it has to run."""


class TooManyFailuresError(OptunaFlyteError, RuntimeError):
    """Raised when `max_consecutive_failures` trials have failed in a row. The error's cause is the last trial's error.

    Attributes:
        study: The study, with all finished trials.
    """

    def __init__(self, message: str, study: optuna.Study) -> None:
        super().__init__(message)
        self.study = study


class StorageUnavailableError(OptunaFlyteError, RuntimeError):
    """Raised when a search ends because its storage does not answer. `untold` lists the finished trials not told.

    Attributes:
        untold: One dict for each finished trial that the storage did not take: the study's name, the trial's number,
            state, values and parameters.
        path: The file with the dicts of `untold`, one JSON object a line. `None` if no file was written.
    """

    def __init__(self, message: str, untold: tuple[dict[str, Any], ...], path: pathlib.Path | None) -> None:
        super().__init__(message)
        self.untold = untold
        self.path = path


class TrialTimeoutError(OptunaFlyteError, TimeoutError):
    """The error of a trial that took longer than `trial_timeout`, or than its task's own `timeout`."""


class PythonExitError(OptunaFlyteError, RuntimeError):
    """The error of a trial that was running when Python began to exit.

    While Python exits, it starts no thread and no process, and worker processes can no longer be reached.
    """


class WorkerDiedError(OptunaFlyteError, RuntimeError):
    """The error of a trial whose worker process died, for example of a segmentation fault or of lack of memory."""


class ExecutionFailedError(OptunaFlyteError):
    """Raised in a trial when an execution that it awaits has failed, was aborted, or timed out.

    An instance that is raised in an eager workflow is flytekit's `EagerException` too.

    Attributes:
        name: The execution's name.
        url: The execution's page in Flyte's console.
        phase: The execution's last phase: "FAILED", "ABORTED" or "TIMED_OUT".
        code: Flyte's error code.
        kind: Flyte's kind of the error: "USER", "SYSTEM" or "UNKNOWN".
        message: Flyte's whole message.
    """

    def __init__(self, entity: str, *, name: str, url: str, phase: str, code: str, kind: str, message: str) -> None:
        # Flyte's message is a traceback, followed by the exception's own text.
        last = message.rpartition("Message:\n")[2].strip() or message
        said = f"[{code}] {last}" if code else last
        super().__init__(f"The execution {name} of `{entity}` is {phase}: {said} (see {url})")
        self.name = name
        self.url = url
        self.phase = phase
        self.code = code
        self.kind = kind
        self.message = message

    @property
    def reason_of_trial(self) -> str:
        """The text that the failed trial stores."""
        return f"{ExecutionFailedError.__name__}: {self}"

    def stands_for(self, kinds: Sequence[type[BaseException]]) -> bool:
        """Return whether the pod raised an exception of one of the given classes.

        Flyte's message holds only the name of the exception's class. For a class that is not built into Python, a name
        without its module is compared with the names of the given classes and of their subclasses.

        The option `catch` uses this method for trials whose error happened in a pod.
        """
        names = re.findall(r"^\s*(?:[\w]+\.)*([A-Za-z_]\w*)(?::|$)", self.message, flags=re.MULTILINE)
        raised = names[-1] if names else ""
        known = getattr(builtins, raised, None)
        if isinstance(known, type) and issubclass(known, BaseException):
            return issubclass(known, tuple(kinds))
        return any(raised in _class_names(kind) for kind in kinds)

    def summary(self) -> dict[str, str]:
        """Return the fields that are stored in the trial's user attribute `optuna_flyte_dsl:execution_error`."""
        names = ("name", "url", "phase", "code", "kind", "message")
        return {name: getattr(self, name)[-_MESSAGE_LIMIT:] for name in names}


def _class_names(kind: type[BaseException]) -> set[str]:
    return {kind.__name__, *(name for each in kind.__subclasses__() for name in _class_names(each))}
