"""Lets tests change the options of every search, wherever it is called."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, MutableMapping

from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.session import Session
from optuna_flyte_dsl.study.opening import StudySource

_Change = Callable[[Session], Session]
_Known = MutableMapping[Session, tuple[Options, Session]]  # by session: its options, and what takes its place
_changes: list[tuple[_Change, _Known]] = []


@contextlib.contextmanager
def override(change: _Change) -> Iterator[None]:
    """Change the session of every search of this process for as long as the context lasts.

    Args:
        change: Returns the session that takes the place of another one. It is called once for each session, and again
            if the options of that session change.
    """
    known: _Known = weakref.WeakKeyDictionary()
    entry = (change, known)
    _changes.append(entry)
    try:
        yield
    finally:
        _changes[:] = [each for each in _changes if each is not entry]


def overridden(session: Session) -> Session:
    """Return the session that takes the place of another one; the session itself, if nothing changes it."""
    for change, known in _changes:
        options, other = known.get(session, (None, session))
        if options is not session.options:
            other = change(session)
            known[session] = session.options, other
        session = other
    return session


_sources: MutableMapping[Session, StudySource] = weakref.WeakKeyDictionary()


def source_of(session: Session) -> StudySource:
    """Return the `StudySource` of an `Optimizer` whose session takes the place of its own."""
    if session not in _sources:
        _sources[session] = StudySource(session.options, session.objective)
    return _sources[session]
