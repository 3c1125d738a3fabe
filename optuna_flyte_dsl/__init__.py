"""Hyperparameter search on Flyte with Optuna: the search space in the signature, the search in the call."""

import importlib as _importlib
import typing as _typing

from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.decorator import Optimized, optimize
from optuna_flyte_dsl.engines.engine_choice import register_types as _register_types
from optuna_flyte_dsl.errors import (
    ArgumentError,
    ClusterError,
    ClusterUnavailableError,
    CompilationError,
    DirectionError,
    EmptySpaceError,
    ExecutionFailedError,
    FixedArgumentError,
    InvalidAnnotationError,
    InvalidMarkerError,
    InvalidMarkerTypeError,
    InvalidObjectiveError,
    InvalidOptionError,
    InvalidSpaceError,
    InvalidStudyFileError,
    NoBestTrialError,
    NotAwaitedError,
    ObjectiveValueError,
    OptunaFlyteError,
    OutOfRangeError,
    PythonExitError,
    RefusedError,
    RefusedPointError,
    SearchRunningError,
    StorageUnavailableError,
    TooManyFailuresError,
    TrialTimeoutError,
    UnloadableError,
    UnresolvedAnnotationError,
    WorkerDiedError,
)
from optuna_flyte_dsl.space.conditions import Condition, When
from optuna_flyte_dsl.space.function_condition import WhenTrue
from optuna_flyte_dsl.space.markers import (
    Category,
    Constraint,
    Fixed,
    Float,
    Integer,
    Maximize,
    Minimize,
    Number,
    Ordinal,
    Repeated,
    Suggestion,
    suggest,
)
from optuna_flyte_dsl.space.priors import Beta, Normal
from optuna_flyte_dsl.space.search_space import SearchSpace

if _typing.TYPE_CHECKING:
    from optuna_flyte_dsl.optimizer import Optimizer
    from optuna_flyte_dsl.sampling.auto_sampler import AutoSampler

_register_types()

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AutoSampler",
    "Beta",
    "Category",
    "Cluster",
    "ClusterError",
    "ClusterUnavailableError",
    "CompilationError",
    "Condition",
    "Constraint",
    "DirectionError",
    "EmptySpaceError",
    "ExecutionFailedError",
    "Fixed",
    "FixedArgumentError",
    "Float",
    "Integer",
    "InvalidAnnotationError",
    "InvalidMarkerError",
    "InvalidMarkerTypeError",
    "InvalidObjectiveError",
    "InvalidOptionError",
    "InvalidSpaceError",
    "InvalidStudyFileError",
    "Maximize",
    "Minimize",
    "NoBestTrialError",
    "Normal",
    "NotAwaitedError",
    "Number",
    "ObjectiveValueError",
    "Optimized",
    "Optimizer",
    "OptunaFlyteError",
    "Ordinal",
    "OutOfRangeError",
    "PythonExitError",
    "RefusedError",
    "RefusedPointError",
    "Repeated",
    "SearchRunningError",
    "SearchSpace",
    "StorageUnavailableError",
    "Suggestion",
    "TooManyFailuresError",
    "TrialTimeoutError",
    "UnloadableError",
    "UnresolvedAnnotationError",
    "When",
    "WhenTrue",
    "WorkerDiedError",
    "optimize",
    "suggest",
]

# Loaded at their first use, because most programs do not name them: the module of each name.
_LATE = {"AutoSampler": "optuna_flyte_dsl.sampling.auto_sampler", "Optimizer": "optuna_flyte_dsl.optimizer"}


if not _typing.TYPE_CHECKING:  # otherwise the type checkers would know each name, however it is spelt

    def __getattr__(name: str) -> object:
        """Return a public name that is loaded late."""
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(_importlib.import_module(_LATE[name]), name)
        return value


def __dir__() -> list[str]:
    """Return the names of the module, with those that are loaded late."""
    return sorted({*globals(), *_LATE})
