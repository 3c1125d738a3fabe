"""Lets many threads use flytekit's one cache of literals."""

import threading
from collections.abc import MutableMapping
from typing import Any

from optuna_flyte_dsl._compat.flytekit import wrap_literal_cache

_lock = threading.Lock()


def lock_literal_cache() -> None:
    """Put a lock around flytekit's cache of literals, once. Each runner of trials calls this."""
    with _lock:
        wrap_literal_cache(LockedLiteralCache, LockedLiteralCache)


class LockedLiteralCache:
    """A wrapper of flytekit's cache of literals that many threads may use.

    Flytekit tests whether a key is in the cache, and then reads the key's entry. Between that test and that read,
    another thread may evict the entry. So `in` keeps the entry that it has found for the thread, and the read returns
    the kept entry.
    """

    def __init__(self, cache: MutableMapping[Any, Any]) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._found = threading.local()

    def __contains__(self, key: object) -> bool:
        with self._lock:
            if key not in self._cache:
                return False
            self._found.entry = (key, self._cache[key])
            return True

    def __getitem__(self, key: Any) -> Any:
        found, value = getattr(self._found, "entry", (None, None))
        if found != key:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        with self._lock:
            self._cache[key] = value

    def clear(self) -> None:
        """Forget all literals."""
        with self._lock:
            self._cache.clear()
