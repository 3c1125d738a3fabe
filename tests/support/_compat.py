"""Private names of other packages that only tests touch. `optuna_flyte_dsl._compat` has those of the library."""

import contextlib
import pathlib
import sys
from pathlib import Path

import optuna
from flytekit.core import local_cache
from flytekit.core.type_engine import TypeEngine
from flytekit.utils.asyn import loop_manager
from optuna.storages._grpc.auto_generated import api_pb2, api_pb2_grpc
from optuna.storages.journal._file import get_lock_file

__all__ = [
    "api_pb2",
    "api_pb2_grpc",
    "cached_trials",
    "code_that_runs",
    "count_of_event_loops",
    "get_lock_file",
    "own_local_cache",
    "set_python_outputs",
]


@contextlib.contextmanager
def own_local_cache(folder: Path, monkeypatch):
    """Let flytekit keep its local cache of task outputs in a folder of the test, not in the home directory."""
    monkeypatch.setattr(local_cache, "CACHE_LOCATION", str(folder))
    monkeypatch.setattr(local_cache.LocalTaskCache, "_initialized", False)
    yield
    if local_cache.LocalTaskCache._initialized:
        local_cache.LocalTaskCache._cache.close()


def forget_uploads() -> None:
    """Let flytekit upload a value again that it has uploaded, as another process would."""
    getattr(TypeEngine, "_LITERAL_CACHE", {}).clear()


def count_of_event_loops() -> int:
    """Return how many threads have an event loop of flytekit's, to see that none is left behind."""
    return len(loop_manager._runner_map)


def set_python_outputs(entity, outputs: dict[str, type]) -> None:
    """Declare other outputs for a task or workflow of flytekit: one that cannot be written as a function."""
    entity.python_interface._outputs = outputs


def cached_trials(study: optuna.Study, *states: optuna.trial.TrialState) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that a sampler of Optuna's sees, which may be older than the storage's."""
    return study._get_trials(deepcopy=False, states=states, use_cache=True)


def journal_path(backend):
    """Return the path of a journal's file."""
    return pathlib.Path(backend._file_path)


def journal_lock(backend):
    """Return the lock that is held while lines are appended to a journal's file."""
    return backend._lock


def enable_deck(params):
    """Let a workflow's parameters say that its Deck is wanted."""
    params._enable_deck = True


def code_that_runs(thread):
    """Return the code object that a thread runs now."""
    return sys._current_frames()[thread].f_code
