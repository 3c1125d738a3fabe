"""Every error that this library raises, under one root.

Each class stands for one misuse. Where a caller would expect a `ValueError` or a `TypeError`, the class is one too.
A message names the parameter, the rule, what was got, and the cure.
"""

from __future__ import annotations

import pathlib
from typing import Any

import optuna


class OptunaFlyteError(Exception):
    """Root of all errors that this library raises by itself."""


class InvalidMarkerError(OptunaFlyteError, ValueError):
    """Raised when a marker's arguments break a rule, such as `low < high`."""


class InvalidMarkerTypeError(OptunaFlyteError, TypeError):
    """Raised when a marker's argument has the wrong type."""


class InvalidAnnotationError(OptunaFlyteError, TypeError):
    """Raised when an annotation uses a marker in a way that has no meaning."""


class UnresolvedAnnotationError(OptunaFlyteError, NameError):
    """Raised when a string annotation names something that cannot be found."""


class InvalidObjectiveError(OptunaFlyteError, ValueError, TypeError):
    """Raised when something cannot be an objective: its kind, its signature or its return type."""


class InvalidOptionError(OptunaFlyteError, ValueError, TypeError):
    """Raised when an option of `optimize` or `Optimizer` breaks a rule, or contradicts another one."""


class DirectionError(OptunaFlyteError, ValueError):
    """Raised when the objectives and the study's directions do not fit together."""


class ArgumentError(OptunaFlyteError, TypeError):
    """Raised when a search is called with arguments that its objective does not take, or without one it needs."""


class OutOfRangeError(OptunaFlyteError, ValueError):
    """Raised when a fixed value or an initial point lies outside its parameter's marker."""


class EmptySpaceError(OptunaFlyteError, ValueError):
    """Raised when a call leaves nothing to search."""


class ObjectiveValueError(OptunaFlyteError, ValueError, TypeError):
    """Raised when the objective returns what no study can take: a wrong number of values, or no number."""


class SearchRunningError(OptunaFlyteError, RuntimeError):
    """Raised when an option is assigned while a search that has read it is running."""


class CompilationError(OptunaFlyteError, RuntimeError):
    """Raised when a search is called where Flyte compiles a workflow, which cannot wait for one."""


class ClusterError(OptunaFlyteError, RuntimeError):
    """Root of the errors of a Flyte cluster that end a search; trials that ran are told, and executions terminated."""


class RefusedError(ClusterError):
    """Raised when Flyte refuses what a search asks of it: a launch without permission, an entity that is not there."""


class ClusterUnavailableError(ClusterError):
    """Raised when flyteadmin has not answered for longer than a search is to wait."""


class UnloadableError(ClusterError, InvalidObjectiveError):
    """Raised when a trial's pod could not load the task that it has to run."""


class TooManyFailuresError(OptunaFlyteError, RuntimeError):
    """Raised when so many trials have failed in a row that nothing seems to work. Its cause is the last one's error.

    Attributes:
        study: The study, with all that has finished.
    """

    def __init__(self, message: str, study: optuna.Study) -> None:
        super().__init__(message)
        self.study = study


class StorageUnavailableError(OptunaFlyteError, RuntimeError):
    """Raised when a search ends while its storage does not answer, and trials that have finished could not be told.

    Attributes:
        untold: For each of them: the study's name, the trial's number, state, values and parameters.
        path: The file in which they are saved, one in a line, as JSON; `None` if that failed too.
    """

    def __init__(self, message: str, untold: tuple[dict[str, Any], ...], path: pathlib.Path | None) -> None:
        super().__init__(message)
        self.untold = untold
        self.path = path


class TrialTimeoutError(OptunaFlyteError, TimeoutError):
    """What a trial has failed with that took longer than `trial_timeout`, or than its task's own `timeout`."""


class PythonExitError(OptunaFlyteError, RuntimeError):
    """What a trial has failed with that ran when Python began to exit: nothing can be sent to its process any more."""


class WorkerDiedError(OptunaFlyteError, RuntimeError):
    """What a trial has failed with whose worker process died: of a segfault, for example, or for want of memory."""
