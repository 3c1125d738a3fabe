"""Opens storages, and stands before one: it waits out an outage, and says of each trial who runs it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import pathlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import grpc
import optuna
import wrapt
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.journal import lock_for
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.owners import Life, Owner, owners_of
from optuna_flyte_dsl.threads import is_own_thread
from optuna_flyte_dsl.waiting import in_thread

T = TypeVar("T")
StorageOption: TypeAlias = str | os.PathLike[str] | BaseStorage | Callable[[], BaseStorage] | None

PATIENCE = 600.0
"""Seconds that an outage of a storage is waited out."""

CLOSING_PATIENCE = 2.5
"""Seconds that it is waited out when the search ends: somebody waits for it."""

_OPENING_TRIES = 5
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 5.0

_OUTAGES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
)
_DATABASES = (".db", ".sqlite", ".sqlite3")
_BEHIND = ("OperationalError", "InterfaceError", "An exception is raised during the commit")


def check_storage(storage: Any) -> None:
    """Check what was given as a storage, as far as that is possible without opening it.

    Raises:
        InvalidOptionError: If it is nothing that can be one. The message holds no URL: there may be a password in it.
    """
    if storage is not None and not isinstance(storage, str | os.PathLike | BaseStorage) and not callable(storage):
        raise InvalidOptionError(
            "`storage` must be a URL such as 'sqlite:///study.db', the path of a journal file, a storage of Optuna's, "
            f"or a function that makes one, but got a {type(storage).__name__}."
        )
    if isinstance(storage, str) and not storage.strip():
        raise InvalidOptionError("`storage` must be a URL or the path of a journal file, but got an empty string.")
    if isinstance(storage, str) and "://" not in storage and re.match(r"[\w+]+:/|[^/]*@", storage):
        # It is not shown: there may be a password in it.
        raise InvalidOptionError(
            "`storage` looks like a URL, but has no '://'. Write it as in 'postgresql+psycopg://user:password@host/name'."
        )
    if isinstance(storage, str) and storage.startswith("postgres:"):
        raise InvalidOptionError("`storage`: SQLAlchemy calls it 'postgresql'. Write 'postgresql+psycopg://...'.")
    if isinstance(storage, str | os.PathLike) and "://" not in str(storage):
        path = pathlib.Path(storage)
        if path.suffix in _DATABASES and not path.exists():
            raise InvalidOptionError(
                f"`storage`: {str(path)!r} is the path of a journal file, but has the name of a database. For SQLite, "
                f"write {f'sqlite:///{path}'!r}; for a journal, another name, as in 'search.journal'."
            )
    if isinstance(storage, type):
        raise InvalidOptionError(f"`storage` must be a storage of Optuna's, but got the class {storage.__name__}.")
    if isinstance(storage, str) and "://" in storage and "FLYTE_INTERNAL_EXECUTION_ID" not in os.environ:
        _load_ahead(storage.partition("://")[0])


@functools.cache
def _load_ahead(scheme: str) -> None:
    """Load what a kind of database needs, before an event loop runs that would stand still for it.

    What takes long is not the imports, but the full garbage collection that they bring about, of all that flytekit has
    imported too. In a process that another one has started, it would be in vain.

    Args:
        scheme: What the database's URL starts with.
    """
    if multiprocessing.parent_process() is not None:
        return
    with contextlib.suppress(Exception):  # the search itself says what is missing
        import sqlalchemy

        optuna.storages.RDBStorage("sqlite:///:memory:").engine.dispose()
        sqlalchemy.make_url(f"{scheme}://").get_dialect().import_dbapi()
    gc.collect()


def open_storage(storage: StorageOption) -> BaseStorage:
    """Open a storage. It may block.

    Raises:
        InvalidOptionError: If a function made something else, or a journal file has no folder.
    """
    if isinstance(storage, os.PathLike) or (isinstance(storage, str) and "://" not in storage):
        path = pathlib.Path(storage)
        if path.is_dir():
            raise InvalidOptionError(
                f"`storage` must be the path of a journal file, but {str(path)!r} is a folder. Name a file in it, as "
                f"in {str(path / 'search.journal')!r}."
            )
        if not path.absolute().parent.is_dir():
            raise InvalidOptionError(
                f"`storage` must be the path of a journal file in a folder that exists, but got {str(path)!r}. "
                "Make the folder first. A URL has '://' in it, as in 'sqlite:///study.db'."
            )
        _check_journal(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock_for(path)))
    if isinstance(storage, str):
        _check_folder(storage)
        return _open_database(storage)
    made = storage if isinstance(storage, BaseStorage) else storage() if storage is not None else None
    if isinstance(made, str | os.PathLike):
        return open_storage(made)
    if not isinstance(made, BaseStorage):
        raise InvalidOptionError(f"`storage` must make a storage of Optuna's, but it made a {type(made).__name__}.")
    return optuna.storages.get_storage(made)


def _check_journal(path: pathlib.Path) -> None:
    """Refuse a file that is something else: it would be mended, and written to.

    Raises:
        InvalidOptionError: If it is no journal of Optuna's.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        first = file.readline()
    if first and not first.startswith(b'{"op_code":'):
        raise InvalidOptionError(
            f"`storage`: the file {str(path)!r} is there, and is no journal of Optuna's. Give the path of a new file; "
            "or, for a SQLite database, its URL, as in 'sqlite:///study.db'."
        )


def _check_folder(url: str) -> None:
    """Refuse a SQLite file in no folder.

    Raises:
        InvalidOptionError: If there is no such folder.
    """
    path = url.partition(":///")[2].partition("?")[0] if url.startswith("sqlite") else ""
    if path and not path.startswith((":", "file:")) and not pathlib.Path(path).absolute().parent.is_dir():
        raise InvalidOptionError(
            f"`storage` must be a SQLite file in a folder that exists, but got {path!r}. Make the folder first."
        )


def _open_database(url: str) -> BaseStorage:
    """Open a database; another process may make its tables at the same time."""
    for attempt in itertools.count():
        try:
            return optuna.storages.get_storage(url)
        except Exception as error:
            known = {type(each).__name__ for each in (error, error.__cause__)}
            racing = known & {"IntegrityError", "ProgrammingError"} or "already exists" in str(error)
            if not racing or attempt >= _OPENING_TRIES:
                raise
            time.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - no secret
    raise AssertionError  # not reached


def is_outage(error: BaseException) -> bool:
    """Tell whether an error of a storage may pass by itself: a lock, a full disk, a server that does not answer."""
    if isinstance(error, grpc.RpcError):
        code: Any = getattr(error, "code", None)
        status = code() if callable(code) else None
        # Of what has failed behind a proxy, it passes on the words only.
        behind = status is grpc.StatusCode.UNKNOWN and any(words in str(error) for words in _BEHIND)
        return status in _OUTAGES or behind
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return is_outage(error.__cause__)
    if isinstance(error, StorageInternalError | OSError):
        return not isinstance(error, FileNotFoundError)
    from sqlalchemy.exc import DBAPIError  # not loaded where no database is used
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    passing = ("OperationalError", "InterfaceError", "InternalError")
    return isinstance(error, PoolTimeout) or (isinstance(error, DBAPIError) and type(error).__name__ in passing)


class KeptStorage(wrapt.BaseObjectProxy):  # type: ignore[type-arg, misc, unused-ignore]
    """Stands before a storage that outlives the process.

    Args:
        storage: The storage.
        owner: Who runs the trials that are asked for.
        what: What messages call the search.
    """

    def __init__(self, storage: BaseStorage, owner: Owner, what: str) -> None:
        super().__init__(storage)
        self._self_owner = owner
        self._self_what = what
        self._self_mine: set[int] = set()
        self._self_closing = threading.Event()
        self._self_warned = False
        self._self_inside: dict[object, float] = {}  # calls under way, and since when

    @property
    def owner(self) -> Owner:
        """Who runs the trials that are asked for."""
        return self._self_owner

    @property
    def silence(self) -> float:
        """Seconds for which a call has had neither an answer nor a refusal."""
        return max((time.monotonic() - since for since in list(self._self_inside.values())), default=0.0)

    def hurry(self) -> None:
        """Wait for no outage any more but for a moment."""
        self._self_closing.set()

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Keep out the other searches on a study, where there is a way to do it; see `Owner.exclusive`."""
        with contextlib.ExitStack() as stack:
            self._self_patiently(lambda: stack.enter_context(self._self_owner.exclusive(name)))
            yield

    def life(self, trial: FrozenTrial) -> Life:
        """Tell whether the process that runs a trial lives."""
        return self._self_patiently(lambda: self._self_owner.life(trial))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Store a trial; one that runs says from its first moment on whose it is."""
        if template_trial is not None:
            return int(self._self_patiently(lambda: self.__wrapped__.create_new_trial(study_id, template_trial)))
        owner = self._self_owner
        template = create_trial(state=TrialState.RUNNING, system_attrs={owner.key: owner.record})

        def create(again: bool) -> int:
            found = self._self_orphan(study_id) if again else None
            return found if found is not None else int(self.__wrapped__.create_new_trial(study_id, template))

        trial_id: int = self._self_patiently(create, tells_again=True)
        self._self_mine.add(trial_id)
        return trial_id

    def _self_orphan(self, study_id: int) -> int | None:
        """Return a trial that was stored though the answer was lost."""
        for trial in self.__wrapped__.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
            if self._self_owner.owns(trial) and trial._trial_id not in self._self_mine:
                return int(trial._trial_id)
        return None

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """Set a trial's state; one that runs from now on says before whose it may be."""
        storage, owner = self.__wrapped__, self._self_owner
        if state is TrialState.RUNNING:
            self._self_patiently(lambda: storage.set_trial_system_attr(trial_id, owner.key, owner.record))

        def set_state(again: bool) -> bool:
            try:
                done = bool(storage.set_trial_state_values(trial_id, state, values))
            except UpdateFinishedTrialError:
                if again and _is_told(storage.get_trial(trial_id), state, values):
                    return True
                raise
            if not done and again and state is TrialState.RUNNING:
                return _is_only(owner, storage.get_trial(trial_id))
            return done

        done: bool = self._self_patiently(set_state, tells_again=True)
        if state is TrialState.RUNNING and done:
            self._self_mine.add(trial_id)
        elif state is TrialState.RUNNING:
            with contextlib.suppress(UpdateFinishedTrialError):
                self._self_patiently(lambda: storage.set_trial_system_attr(trial_id, owner.key, None))
        return done

    @contextlib.contextmanager
    def _self_heard(self) -> Iterator[None]:
        """Let `silence` know of a call."""
        mark = object()
        self._self_inside[mark] = time.monotonic()
        try:
            yield
        finally:
            del self._self_inside[mark]

    def _self_patiently(self, call: Callable[..., T], *, tells_again: bool = False) -> T:
        """Call a method of the storage, again and again while it fails for a reason that may pass."""
        return in_thread(lambda: self._self_insist(call, tells_again=tells_again))

    def _self_insist(self, call: Callable[..., T], *, tells_again: bool) -> T:
        started, pause = time.monotonic(), _FIRST_PAUSE
        for attempt in itertools.count():
            try:
                with self._self_heard():
                    result = call(attempt > 0) if tells_again else call()
            except Exception as error:
                patience = CLOSING_PATIENCE if self._self_closing.is_set() else PATIENCE
                if not is_outage(error) or time.monotonic() - started > patience or _holds_up_a_search():
                    raise
                if not self._self_warned and time.monotonic() - started > 1.0:
                    self._self_warned = True
                    logger.warning(
                        "The storage of `%s` does not answer (%s), and is waited for, at most %g s. What is finished "
                        "is kept, and told when it does.",
                        self._self_what,
                        type(error).__name__,
                        PATIENCE,
                    )
                self._self_closing.wait(pause) if not self._self_closing.is_set() else time.sleep(min(pause, 0.2))
                pause = min(2 * pause, _LAST_PAUSE)
            else:
                if attempt and self._self_warned:
                    self._self_warned = False
                    logger.warning("The storage of `%s` answers again.", self._self_what)
                return result
        raise AssertionError  # not reached


def _is_told(trial: FrozenTrial, state: TrialState, values: Any) -> bool:
    return trial.state is state and (values is None or trial.values == list(values))


def _is_only(owner: Owner, trial: FrozenTrial) -> bool:
    return trial.state is TrialState.RUNNING and owners_of(trial) == (owner.key,)


def _holds_up_a_search() -> bool:
    """Tell whether this runs in an event loop that others need: one in a thread of ours is a single task's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return not is_own_thread()


def _patient(name: str) -> Callable[..., Any]:
    def method(self: KeptStorage, *args: Any, **kwargs: Any) -> Any:
        return self._self_patiently(functools.partial(getattr(self.__wrapped__, name), *args, **kwargs))

    return method


for _name in dir(BaseStorage):
    if not _name.startswith("_") and _name not in vars(KeptStorage) and callable(getattr(BaseStorage, _name)):
        setattr(KeptStorage, _name, _patient(_name))


def is_kept(storage: BaseStorage) -> bool:
    """Tell whether a storage may outlive this process, or be another's too."""
    return not isinstance(storage, optuna.storages.InMemoryStorage)
