"""Lets tests change the options of every search, wherever it is called."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, MutableMapping

from optuna_flyte_dsl.session import Session
from optuna_flyte_dsl.study.opening import StudySource

_Change = Callable[[Session], Session]
_changes: list[tuple[_Change, MutableMapping[Session, Session]]] = []


@contextlib.contextmanager
def override(change: _Change) -> Iterator[None]:
    """Change the session of every search of this process for as long as the context lasts.

    Args:
        change: Returns the session that takes the place of another one. It is called once for each session.
    """
    entry = (change, weakref.WeakKeyDictionary[Session, Session]())
    _changes.append(entry)
    try:
        yield
    finally:
        _changes.remove(entry)


def overridden(session: Session) -> Session:
    """Return the session that takes the place of another one; the session itself, if nothing changes it."""
    for change, known in _changes:
        if session not in known:
            known[session] = change(session)
        session = known[session]
    return session


_sources: MutableMapping[Session, StudySource] = weakref.WeakKeyDictionary()


def source_of(session: Session) -> StudySource:
    """Return the study of all calls of a session that takes the place of another one."""
    if session not in _sources:
        _sources[session] = StudySource(session.options, session.objective)
    return _sources[session]
