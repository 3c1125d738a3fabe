"""Refuses a second search of a study in memory if an option of one of the two searches forbids it.

For a study in another storage, the owners of trials show other searches; see `liveness`.
"""

import collections
import contextlib
import threading
import weakref
from collections.abc import Iterator

import optuna
from optuna.storages import BaseStorage

from optuna_flyte_dsl._compat.optuna import storage_of
from optuna_flyte_dsl.errors import SearchRunningError
from optuna_flyte_dsl.options import Options

_lock = threading.Lock()
_running: weakref.WeakKeyDictionary[BaseStorage, collections.Counter[tuple[str, bool]]] = weakref.WeakKeyDictionary()
"""storage -> (study name, whether the search forbids another search) -> number of running searches"""


@contextlib.contextmanager
def refuse_neighbours(study: optuna.Study, options: Options, name: str) -> Iterator[None]:
    """Count a search of a study in memory while it runs.

    Args:
        name: The name of the objective.

    Raises:
        SearchRunningError: If another search of the study runs, and one of the two is deterministic or has a total.
    """
    mine = (study.study_name, options.deterministic or options.resume)
    with _lock:
        counts = _running.setdefault(storage_of(study), collections.Counter())
        others = counts[study.study_name, True] + (counts[study.study_name, False] if mine[1] else 0)
        if others:
            raise SearchRunningError(
                f"Another search runs on the study of `{name}`, which is in memory, and one of the two has "
                "`deterministic=True` or `resume=True`. Await one after the other, or give `storage`."
            )
        counts[mine] += 1
    try:
        yield
    finally:
        with _lock:
            counts[mine] -= 1
