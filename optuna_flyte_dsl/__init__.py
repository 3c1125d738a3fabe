"""Hyperparameter search on Flyte with Optuna: the search space in the signature, the search in the call."""

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
    NotAwaitedError,
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
from optuna_flyte_dsl.optimizer import Optimizer
from optuna_flyte_dsl.space.markers import (
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
from optuna_flyte_dsl.space.search_space import SearchSpace

_register_types()

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
    "FixedArgumentError",
    "Float",
    "Integer",
    "InvalidAnnotationError",
    "InvalidMarkerError",
    "InvalidMarkerTypeError",
    "InvalidObjectiveError",
    "InvalidOptionError",
    "Maximize",
    "Minimize",
    "NotAwaitedError",
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
