"""Hyperparameter search on Flyte with Optuna: the search space in the signature, the search in the call."""

from optuna_flyte_dsl.cluster import Cluster
from optuna_flyte_dsl.decorator import Optimized, optimize
from optuna_flyte_dsl.errors import (
    ArgumentError,
    ClusterError,
    ClusterUnavailableError,
    CompilationError,
    DirectionError,
    EmptySpaceError,
    InvalidAnnotationError,
    InvalidMarkerError,
    InvalidMarkerTypeError,
    InvalidObjectiveError,
    InvalidOptionError,
    ObjectiveValueError,
    OptunaFlyteError,
    OutOfRangeError,
    PythonExitError,
    RefusedError,
    SearchRunningError,
    StorageUnavailableError,
    TooManyFailuresError,
    TrialTimeoutError,
    UnloadableError,
    UnresolvedAnnotationError,
    WorkerDiedError,
)
from optuna_flyte_dsl.flyte.handles import register as _register_trials
from optuna_flyte_dsl.flyte.trial import ExecutionFailedError
from optuna_flyte_dsl.flyte.types import register as _register
from optuna_flyte_dsl.markers import (
    Category,
    Fixed,
    Float,
    Integer,
    Maximize,
    Minimize,
    Number,
    Suggestion,
    suggest,
)
from optuna_flyte_dsl.optimizer import Optimizer
from optuna_flyte_dsl.space import SearchSpace

_register()
_register_trials()

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Category",
    "Cluster",
    "ClusterError",
    "ClusterUnavailableError",
    "CompilationError",
    "DirectionError",
    "EmptySpaceError",
    "ExecutionFailedError",
    "Fixed",
    "Float",
    "Integer",
    "InvalidAnnotationError",
    "InvalidMarkerError",
    "InvalidMarkerTypeError",
    "InvalidObjectiveError",
    "InvalidOptionError",
    "Maximize",
    "Minimize",
    "Number",
    "ObjectiveValueError",
    "Optimized",
    "Optimizer",
    "OptunaFlyteError",
    "OutOfRangeError",
    "PythonExitError",
    "RefusedError",
    "SearchRunningError",
    "SearchSpace",
    "StorageUnavailableError",
    "Suggestion",
    "TooManyFailuresError",
    "TrialTimeoutError",
    "UnloadableError",
    "UnresolvedAnnotationError",
    "WorkerDiedError",
    "optimize",
    "suggest",
]
