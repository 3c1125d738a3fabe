"""`PendingSearch`: a search that was called and waits to be awaited."""

import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import optuna

from optuna_flyte_dsl.errors import NotAwaitedError


class PendingSearch(Coroutine[Any, Any, optuna.Study]):
    """A coroutine that raises `NotAwaitedError` if it is used as the study before it is awaited.

    Args:
        begin: Makes the coroutine of the search. It is made when the search is awaited: Python would warn of one that
            was never awaited, and would name no cure.
        name: The name of the objective.
    """

    __slots__ = ("_begin", "_made", "_name")

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, optuna.Study]], name: str) -> None:
        self._begin = begin
        self._made: Coroutine[Any, Any, optuna.Study] | None = None
        self._name = name

    @property
    def _coroutine(self) -> Coroutine[Any, Any, optuna.Study]:
        if self._made is None:
            self._made = self._begin()
        return self._made

    def send(self, value: Any) -> Any:
        """Go on until the next pause; see `collections.abc.Coroutine`."""
        return self._coroutine.send(value)

    def throw(self, *args: Any) -> Any:
        """Raise an error where the search pauses; see `collections.abc.Coroutine`."""
        return self._coroutine.throw(*args)

    def close(self) -> None:
        """End the search where it pauses; see `collections.abc.Coroutine`."""
        self._coroutine.close()

    def __await__(self) -> Any:
        if self._made is not None:
            raise RuntimeError(
                f"This call of `{self._name}(...)` was awaited already: a call is one search. Keep the study that it "
                f"has returned, or call `{self._name}(...)` again."
            )
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("cr_", "__")):  # attributes that asyncio and debuggers read from a coroutine
            return getattr(self._begin if self._made is None else self._made, name)
        raise NotAwaitedError(
            f"`{self._name}(...)` is a search that has not run yet, so it has no `{name}`. Write "
            f"`study = await {self._name}(...)`; or, where nothing can be awaited, "
            f"`study = {self._name}.run_sync(...)`."
        )

    def __del__(self) -> None:
        if self._made is None:
            warnings.warn(
                f"`{self._name}(...)` was never awaited, so no search has run. Write `await {self._name}(...)`; or, "
                f"where nothing can be awaited, `{self._name}.run_sync(...)`.",
                RuntimeWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return f"<search of {self._name}, not awaited yet>"
