"""`SmallSearches`: makes each search of a test small, seeded and in memory, wherever it is called."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Self

from optuna_flyte_dsl._text import did_you_mean, shown
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.session import Session
from optuna_flyte_dsl.session_override import override
from optuna_flyte_dsl.testing.in_memory import in_memory

_ENGINES = ("thread", "process", "cluster")


@dataclasses.dataclass
class SmallSearches:
    """A context in which each search is small, seeded and in memory: those of workflows under test too.

    The study is a new one for each call, there is no progress bar, no `delay` and no warm start, and the trials run on
    this machine. All other options stay as they are.

    Args:
        n_trials: The largest number of trials. A search that has fewer keeps its number.
        concurrency: The largest number of trials at once. With 1, a search repeats exactly.
        seed: The seed of samplers, unless an option gives another one or a sampler that is made already.
    """

    n_trials: int = 5
    concurrency: int = 1
    seed: int = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in (*self.__dataclass_fields__, "_stack"):
            known = tuple(self.__dataclass_fields__)
            raise InvalidOptionError(
                f"`small_searches` has no `{name}`; it has {', '.join(f'`{each}`' for each in known)}."
                f"{did_you_mean(name, known)}"
            )
        if name != "_stack" and (isinstance(value, bool) or not isinstance(value, int) or value < (name != "seed")):
            raise InvalidOptionError(f"`small_searches.{name}` must be an int of 1 or more, but got {shown(value)}.")
        super().__setattr__(name, value)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(override(self._smaller))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _smaller(self, session: Session) -> Session:
        n_trials = min(session.options.n_trials, self.n_trials)
        small = in_memory(
            session,
            self.seed,
            time_share=0.0,
            n_trials=n_trials,
            concurrency=min(session.options.concurrency, self.concurrency),
            delay=0,
            warm_start=None,
            initial_points=(session.options.initial_points or ())[:n_trials] or None,
        )
        return Session(small.objective, small.options, session.deployment)


@contextlib.contextmanager
def on_engine(name: str, remote: Any = None) -> Iterator[None]:
    """Run each search on an engine, for as long as the context lasts.

    Args:
        name: "thread", "process" or "cluster".
        remote: A `flytekit.remote.FlyteRemote`, for "cluster".

    Raises:
        InvalidOptionError: If there is no such engine.
    """
    if name not in _ENGINES:
        raise InvalidOptionError(
            f"The engine of a search must be one of {', '.join(_ENGINES)}, but got {shown(name)}."
            f"{did_you_mean(name, _ENGINES)}"
        )

    def moved(session: Session) -> Session:
        if name == "cluster":
            return session.on(remote, {})
        executor: Any = name
        return Session(session.objective, dataclasses.replace(session.options, executor=executor, gpus=None))

    with override(moved):
        yield
