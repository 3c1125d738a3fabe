"""Chooses a task's engine by the task's class, without importing an SDK."""

import importlib
import types
from typing import Any, cast

import wrapt

from optuna_flyte_dsl.engines.engine import Engine, EngineTypes
from optuna_flyte_dsl.space.objective import Objective
from optuna_flyte_dsl.space.search_space import SearchSpace

_PACKAGES = {"flytekit": "optuna_flyte_dsl.engines._flytekit"}
"""SDK -> package of its engine.

The package has a module `types`, which is an `EngineTypes`, and a module `<sdk>_engine`, which is an `Engine`.
"""


def register_types() -> None:
    """Make markers and trials native types of each SDK: now if the SDK is loaded, else as soon as it is imported."""
    for sdk in _PACKAGES:
        wrapt.register_post_import_hook(_on_import, sdk)


_imported: list[str] = []  # the SDKs whose import is complete; `sys.modules` lists a module when its import begins


def _on_import(sdk: types.ModuleType) -> None:
    module = cast("EngineTypes", importlib.import_module(f"{_PACKAGES[sdk.__name__]}.types"))
    module.register()
    _imported.append(sdk.__name__)


def loaded_engines() -> list[Engine]:
    """Return the engines whose SDKs are loaded."""
    return [cast("Engine", importlib.import_module(f"{_PACKAGES[sdk]}.{sdk}_engine")) for sdk in _imported]


def engine_of(target: Any) -> Engine | None:
    """Return the engine of a task; `None` for anything else, such as a function."""
    return next((engine for engine in loaded_engines() if engine.is_task(target)), None)


def host_engine(target: Any) -> Engine | None:
    """Return the engine that runs an objective.

    A task has the engine of the SDK that it was written with. A plain function may call tasks, so it has the engine of
    an SDK that is imported. Where no SDK is imported, the objective cannot call a task: the result is `None`.
    """
    return engine_of(target) or next(iter(loaded_engines()), None)


def load_search() -> None:
    """Load the modules that only a search needs: now, because a child that is forked during an import would hang."""
    importlib.import_module("optuna_flyte_dsl.search_assembly")
    for engine in loaded_engines():
        engine.load_search()


def in_pod() -> bool:
    """Return whether this process runs in a pod that an SDK has started."""
    return any(engine.in_pod() for engine in loaded_engines())


def read_objective(target: Any) -> Objective:
    """Read an objective of any kind."""
    engine = engine_of(target)
    return Objective.of(target, engine.describe(target) if engine is not None else None)


def space_of(thing: Any) -> SearchSpace:
    """Return the search space of an objective, of a decorated objective, or the given space itself."""
    space = thing if isinstance(thing, SearchSpace) else getattr(thing, "space", None)
    return space if isinstance(space, SearchSpace) else read_objective(thing).space
