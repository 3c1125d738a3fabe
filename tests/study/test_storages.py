"""A search that is kept: exactly as many trials as asked for, over all calls, processes and outages."""

import asyncio
import collections
import contextlib
import itertools
import json
import logging
import os
import pathlib
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from types import SimpleNamespace

import grpc
import optuna
import psutil
import pytest
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from optuna_flyte_dsl import (
    Float,
    InvalidOptionError,
    Minimize,
    Optimizer,
    OptunaFlyteError,
    SearchRunningError,
    StorageUnavailableError,
    optimize,
)
from optuna_flyte_dsl._compat.optuna import engine_of, set_storage, storage_of, trial_id
from optuna_flyte_dsl._foreign_errors import is_storage_outage
from optuna_flyte_dsl.study import liveness, resuming, session_file
from optuna_flyte_dsl.study.attributes import ERROR, LOST, OWNER, RETRY_OF
from optuna_flyte_dsl.study.database_lock import AdvisoryLock
from optuna_flyte_dsl.study.durable import DurableStorage
from optuna_flyte_dsl.study.liveness import Life, Owner
from optuna_flyte_dsl.study.locks import FileLock, file_of
from optuna_flyte_dsl.study.quota import ASK_LATER, Quota
from optuna_flyte_dsl.study.session_file import SessionFiles
from optuna_flyte_dsl.study.storages import open_storage
from tests.soak import Proxy, campaign
from tests.support import in_movable_time, own_threads, wait_until
from tests.support.postgres import Postgres
from tests.support.sessions import LIVING, dead_record, living_process

RELATIONAL = ["sqlite", "postgresql"]
SHARED = ["journal", "postgresql", "grpc"]
ALL = ["journal", "sqlite", "postgresql", "grpc"]


@pytest.fixture(scope="module")
def server():
    with contextlib.closing(Postgres()) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server):
    with contextlib.closing(Proxy(server.url)) as proxy:
        yield proxy


@pytest.fixture
def storage(request, tmp_path):
    """Return what is given as `storage`."""
    kind = request.param
    if kind == "journal":
        return str(tmp_path / "study.journal")
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    if kind == "postgresql":
        return request.getfixturevalue("server").url
    port = request.getfixturevalue("proxy").port
    return lambda: optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port)


def on(*kinds):
    return pytest.mark.parametrize("storage", kinds, indirect=True)


@pytest.fixture
def name(request):
    """Return a name that no other test has for a study."""
    return request.node.name


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    wait_until(lambda: not own_threads())


def objective(**options):
    @optimize(**{"concurrency": 2, "n_trials": 6, "progress": False, **options})
    def objective(x: Float(0, 1), base: float = 0.0) -> Minimize:
        return x + base

    return objective


def states(study):
    return dict(collections.Counter(trial.state.name for trial in study.trials))


def left_running(storage, name, record=None, **params):
    """Leave a trial RUNNING, as a process that was killed has done."""
    there = open_storage(storage)
    study = optuna.create_study(storage=there, study_name=name, load_if_exists=True)
    system_attrs = {f"{OWNER}other": record} if record is not None else {}
    distributions = {key: optuna.distributions.FloatDistribution(0, 1) for key in params}
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, system_attrs=system_attrs
        )
    )
    return study


# Each row of the table in docs/reference/storage.md: what is given, and what the first and the second call leave.


def rows():
    journal, given = {"storage": "JOURNAL"}, {"study": "STUDY"}
    named, resumed = {"study_name": "named"}, {"resume": True}
    return [
        ({}, ("decorated", "new", 6), ("decorated", "new", 6)),
        ({}, ("optimizer", "new", 6), ("optimizer", "same", 12)),
        (named, ("decorated", "new", 6), ("decorated", "new", 6)),
        (journal, ("decorated", "new", 6), ("decorated", "new", 6)),
        (journal, ("optimizer", "new", 6), ("optimizer", "same", 12)),
        ({**journal, **named}, ("decorated", "new", 6), ("decorated", "same", 12)),
        ({**journal, **named}, ("optimizer", "new", 6), ("optimizer", "same", 12)),
        ({**journal, **resumed}, ("decorated", "new", 6), ("decorated", "same", 6)),
        ({**journal, **resumed}, ("optimizer", "new", 6), ("optimizer", "same", 6)),
        ({**journal, **named, **resumed}, ("decorated", "new", 6), ("decorated", "same", 6)),
        (given, ("decorated", "given", 6), ("decorated", "given", 12)),
        (given, ("optimizer", "given", 6), ("optimizer", "given", 12)),
        ({**given, **resumed}, ("decorated", "given", 6), ("decorated", "given", 6)),
        ({**given, **resumed}, ("optimizer", "given", 6), ("optimizer", "given", 6)),
    ]


@pytest.mark.parametrize(("given", "first", "second"), rows())
def test_what_each_combination_means_at_the_first_and_the_second_call(given, first, second, tmp_path):
    options = dict(given)
    if "storage" in options:
        options["storage"] = tmp_path / "study.journal"
    if "study" in options:
        options["study"] = optuna.create_study()
    plain = objective().task
    if first[0] == "optimizer":
        search = Optimizer(plain, concurrency=2, n_trials=6, progress=False, **options)
    else:
        search = objective(**options)
    one = search.run_sync()
    before = one.study_name
    assert len(one.trials) == first[2]
    two = search.run_sync()
    assert len(two.trials) == second[2]
    same = two is one if options.get("storage") is None else two.study_name == before
    assert same == (second[1] != "new")
    if "study" in options:
        assert two is options["study"]
    if "study_name" in options:
        assert two.study_name == "named"
    if options.get("resume") and "study" not in options and "study_name" not in options:
        assert two.study_name == "objective"


@on(*ALL)
def test_calls_total_what_was_asked_for(storage, name):
    search = objective(storage=storage, study_name=name, resume=True)
    assert states(search.run_sync()) == {"COMPLETE": 6}
    search.n_trials = 9
    study = search.run_sync()
    assert states(study) == {"COMPLETE": 9}
    study.enqueue_trial({"x": 0.125})
    search.n_trials = 10
    assert search.run_sync().trials[9].params == {"x": 0.125}, "an enqueued trial is honoured, and counts"


@on(*ALL)
def test_two_searches_at_the_same_time_split_the_total(storage, name):
    begun, both_run = set(), threading.Event()

    def search(number):
        @optimize(storage=storage, study_name=name, resume=True, n_trials=15, concurrency=3, progress=False)
        def objective(x: Float(0, 1)) -> Minimize:
            begun.add(number)
            if len(begun) == 2:
                both_run.set()
            assert both_run.wait(60), "one search has begun no trial"
            return x

        return objective

    searches = [search(number) for number in range(2)]

    async def both():
        return await asyncio.gather(*(search() for search in searches))

    studies = asyncio.run(both())
    for study in studies:
        assert sum(trial.state is TrialState.COMPLETE for trial in study.trials) == 15
        assert callable(storage) or len(study.trials) == 15, "only Optuna's proxy has no lock"
    trials = optuna.load_study(study_name=name, storage=open_storage(storage)).trials
    assert all(trial.state.is_finished() for trial in trials)
    assert sum(LOST not in trial.user_attrs for trial in trials) == 15
    owners = {next(key for key in t.system_attrs if key.startswith(OWNER)) for t in study.trials}
    assert len(owners) == 2, "one has done all of it"


@on(*ALL)
def test_what_a_dead_process_has_left_running_is_closed_and_tried_again_first(storage, name):
    left_running(storage, name, dead_record(), x=0.375)
    study = objective(storage=storage, study_name=name, resume=True, concurrency=1).run_sync()
    lost, retry = study.trials[:2]
    assert (lost.state, lost.user_attrs[LOST]) == (TrialState.FAIL, True)
    assert lost.user_attrs[ERROR] == "The process that ran this trial has died."
    assert (retry.params, retry.user_attrs[RETRY_OF]) == ({"x": 0.375}, 0)
    assert states(study) == {"FAIL": 1, "COMPLETE": 6}, "the lost one does not count"


@on(*ALL)
def test_of_what_nothing_is_known_the_user_says_that_it_is_dead(storage, name, warned):
    record = {**dead_record(), "host": "elsewhere", "folder": "/nowhere"}
    left_running(storage, name, record, x=0.375)
    search = objective(storage=storage, study_name=name, resume=True)
    study = search.run_sync()
    assert states(study) == {"RUNNING": 1, "COMPLETE": 5}, "it counts as running"
    assert any("process" in line and "on elsewhere" in line and "takeover=True" in line for line in warned())
    study = objective(storage=storage, study_name=name, resume=True, takeover=True).run_sync()
    assert states(study) == {"FAIL": 1, "COMPLETE": 6}
    assert study.trials[-1].params == {"x": 0.375}


def test_a_process_that_lives_keeps_its_trials_and_is_waited_for(tmp_path):
    storage = str(tmp_path / "study.journal")
    with living_process() as (other, record):
        left_running(storage, "s", record, x=0.375)

        def die(study, trial):
            if len(study.trials) == 6:
                threading.Timer(0.3, other.kill).start()

        search = objective(storage=storage, study_name="s", resume=True, takeover=True, callbacks=[die])
        study = search.run_sync()
    assert states(study) == {"FAIL": 1, "COMPLETE": 6}
    assert study.trials[-1].params == {"x": 0.375}, "what it had left is done when it has died"


def life_of(record, storage=None):
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs={f"{OWNER}other": record})
    return Owner(storage or optuna.storages.InMemoryStorage()).life(trial)


def test_a_process_that_holds_its_files_is_alive_whatever_its_host_and_pid_look_like():
    with living_process() as (process, record):
        assert life_of({**record, "host": "elsewhere", "pid": 2**22 + 1}) is Life.ALIVE
        process.send_signal(signal.SIGSTOP)
        assert life_of(record) is Life.ALIVE
        process.kill()
        process.wait()
        assert life_of(record) is Life.DEAD
        assert life_of({**record, "folder": "/nowhere"}) is Life.UNKNOWN
        assert life_of({"session": "other"}) is Life.UNKNOWN


def test_another_container_is_seen_by_the_file_beside_its_storage(tmp_path):
    """A look-alike container has a host name, a boot and perhaps pids in common; another `/var/tmp`."""
    for storage in (
        open_storage(tmp_path / "study.journal"),
        optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db"),
    ):
        other = SessionFiles("other", session_file.folder_beside(file_of(storage)))
        other.open()
        record = {"session": "other", "process": "another", **other.evidence, "folder": "/nowhere"}
        assert life_of(record, storage) is Life.ALIVE
        other.close(is_clean=False)
        assert life_of(record, storage) is Life.DEAD


@pytest.mark.parametrize("kind", ["nfs4", "9p", "fuse.sshfs", "vboxsf", "wekafs", "a new one"])
def test_a_lock_that_is_free_proves_nothing_on_a_file_system_of_several_machines(monkeypatch, kind):
    record = dead_record()

    def mounted(*kinds):
        points = ("/", record["folder"])
        mounts = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in zip(points, kinds, strict=False)]
        monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)  # noqa: A006 - psutil's name

    mounted("ext4", kind)
    assert life_of(record) is Life.UNKNOWN
    mounted(kind, "ext4")
    assert life_of(record) is Life.DEAD
    mounted()
    assert life_of(record) is Life.UNKNOWN


@on("postgresql")
def test_a_lock_in_the_database_wins_over_a_copy_of_the_file(storage, name):
    lock = AdvisoryLock.of(open_storage(storage), name)
    record = {**dead_record(), "lock": lock.key, "server": lock.server}  # its file is one that nobody holds
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs={f"{OWNER}other": record})
    owner = Owner(open_storage(storage)).open()
    try:
        assert owner.life(trial) is Life.ALIVE
        lock.close()
        wait_until(lambda: owner.life(trial) is Life.DEAD)  # when the server sees the end
    finally:
        owner.close()


def test_a_forked_child_does_not_keep_its_parent_alive():
    fork = "import os, time\nchild = os.fork()\nif not child:\n    time.sleep(60)\nprint(child, flush=True)\n"
    with living_process(LIVING.replace("input()", f"{fork}input()")) as (process, record):
        child = int(process.stdout.readline())
        try:
            assert life_of(record) is Life.ALIVE
            process.kill()
            process.wait()
            wait_until(lambda: life_of(record) is Life.DEAD)
        finally:
            os.kill(child, signal.SIGKILL)


@on("journal", "sqlite")
def test_searches_that_reach_a_file_by_a_symbolic_link_exclude_each_other(storage, name, tmp_path):
    objective(storage=storage, study_name=name, n_trials=1).run_sync()
    (tmp_path / "elsewhere").mkdir()
    (target,) = {path for path in tmp_path.glob("study.*") if path.suffix in (".journal", ".db")}
    link = tmp_path / "elsewhere" / target.name
    link.symlink_to(target)
    owners = [Owner(open_storage(each)).open() for each in (storage, storage.replace(str(target), str(link)))]
    with owners[0].exclusive(name):
        other = threading.Thread(target=lambda: owners[1].exclusive(name).__enter__(), daemon=True)
        other.start()
        other.join(0.2)
        assert other.is_alive()
    other.join(30)
    assert not other.is_alive()
    for owner in owners:
        owner.close()
    assert not list((tmp_path / "elsewhere").glob("*.claims"))


@on("journal", "sqlite")
def test_a_child_that_is_forked_while_a_lock_is_held_does_not_keep_it(storage, name):
    objective(storage=storage, study_name=name, n_trials=1).run_sync()
    owner = Owner(open_storage(storage)).open()
    try:
        with owner.exclusive(name):
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(0)
        taken = threading.Thread(target=lambda: owner.exclusive(name).__enter__(), daemon=True)
        taken.start()
        taken.join(30)
        assert not taken.is_alive()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        owner.close()


def test_a_users_storage_with_a_relative_path_is_found_after_a_change_of_folder(tmp_path, name, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    storage = optuna.storages.RDBStorage("sqlite:///s.db")
    monkeypatch.chdir(tmp_path / "other")
    assert states(objective(storage=storage, study_name=name, resume=True).run_sync()) == {"COMPLETE": 6}
    assert not list((tmp_path / "other").iterdir())


def test_a_deterministic_search_goes_on_beside_a_trial_of_which_nothing_is_known(tmp_path, name):
    path = tmp_path / "s.journal"
    left_running(path, name, {"host": "elsewhere", "pid": 1, "process": "p", "session": "unknown"}, x=0.5)
    search = objective(storage=path, study_name=name, resume=True, n_trials=4, deterministic=True, seed=1)
    assert states(search.run_sync())["COMPLETE"] == 3, "the trial that runs elsewhere counts"


def test_a_search_leaves_no_session_file(tmp_path, name):
    seen = []
    search = objective(
        storage=tmp_path / "study.journal",
        study_name=name,
        resume=True,
        callbacks=[lambda study, trial: seen.append(sorted(tmp_path.glob("*.sessions/*.alive")))],
    )
    search.run_sync()
    assert len(seen[0]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.journal", "study.journal.claims"]


def test_a_search_needs_no_folder_for_its_session(tmp_path, name, monkeypatch):
    """As in a container whose file systems cannot be written."""

    def no_folder():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(session_file.tempfile, "gettempdir", no_folder)
    monkeypatch.setattr(session_file.os, "access", lambda *_: False)
    storage = optuna.storages.InMemoryStorage()
    owner = Owner(storage).open()
    assert "file" not in owner.evidence
    owner.close()
    assert states(objective(storage=tmp_path / "s.journal", study_name=name, resume=True).run_sync()) == {"COMPLETE": 6}


@on("journal", "sqlite")
@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_trial_may_change_the_working_directory(storage, name, tmp_path, monkeypatch, executor):
    monkeypatch.chdir(tmp_path)

    @optimize(
        concurrency=2,
        n_trials=6,
        storage=storage.replace(f"{tmp_path}/", ""),
        study_name=name,
        resume=True,
        progress=False,
        executor=executor,
    )
    def train(x: Float(0, 1)):
        os.chdir(tempfile.gettempdir())
        return x

    assert states(train.run_sync()) == {"COMPLETE": 6}
    assert len(optuna.load_study(study_name=name, storage=open_storage(storage)).trials) == 6


def test_what_was_taken_for_dead_and_lives_keeps_its_value(tmp_path):
    """The retry is taken where nobody has begun it; else the value stands beside it."""
    path = tmp_path / "study.journal"

    @optimize(concurrency=2, n_trials=4, storage=path, study_name="s", resume=True, progress=False)
    def search(trial, x: Float(0, 1)) -> float:
        if trial.number < 2:
            there = optuna.load_study(study_name="s", storage=open_storage(path))
            resuming.close_lost(there, there.trials[trial.number])
            if trial.number == 0:
                resuming.retry_lost(there)
        return x

    study = search.run_sync()
    assert sum(resuming.counts(trial) for trial in study.trials) == 4
    values = [trial.value for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert {study.trials[number].params["x"] for number in (0, 1)} <= set(values)


def test_a_trial_that_somebody_else_has_told_ends_nothing(tmp_path):
    @optimize(concurrency=1, n_trials=3, storage=tmp_path / "s.journal", study_name="s", progress=False)
    def search(trial, x: Float(0, 1)) -> float:
        if trial.number == 0:
            there = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "s.journal"))
            there.tell(0, 7.0)
            raise ValueError("it has failed here")
        return x

    study = search.run_sync()
    assert (study.trials[0].value, states(study)) == (7.0, {"COMPLETE": 3})


def test_a_lock_in_the_database_tells_whether_another_host_lives(server, pauses):
    pauses.lock_patience = 0.05
    storage = optuna.storages.get_storage(server.url)
    mine, other = Owner(storage).open(), Owner(storage).open()
    liveness._living_sessions.discard(other.session)
    record = {**other.evidence, "process": "another", "folder": "/nowhere"}
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs={other.key: record})
    try:
        assert mine.life(trial) is Life.ALIVE
        other.close()
        with engine_of(storage).connect() as connection:
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            wait_until(lambda: connection.exec_driver_sql(held).scalar() == 1)
        assert mine.life(trial) is Life.ALIVE, "it may be cut off for a moment"
        wait_until(lambda: mine.life(trial) is Life.DEAD)  # the server may see later that it is gone
        record["server"] = "one that was stopped since"
        trial.system_attrs = {other.key: record}
        assert mine.life(trial) is Life.UNKNOWN, "no lock has outlived it"
    finally:
        mine.close()


def test_a_lock_comes_back_with_its_connection(server, pauses):
    pauses.lock_check = 0.02
    storage = optuna.storages.get_storage(server.url)
    owner = Owner(storage).open()
    try:
        with engine_of(storage).connect() as connection:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            connection.exec_driver_sql(cut)
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            wait_until(lambda: connection.exec_driver_sql(held).scalar() == 1)
    finally:
        owner.close()
        engine_of(storage).dispose()


def test_a_trial_has_an_owner_from_its_first_moment_on(tmp_path):
    inner = open_storage(tmp_path / "study.journal")
    owner = Owner(inner).open()
    storage = DurableStorage(inner, owner, "it")
    study = optuna.create_study(storage=inner)
    seen = []
    create = inner.create_new_trial
    inner.create_new_trial = lambda study_id, template_trial=None: (
        seen.append(template_trial) or create(study_id, template_trial)
    )
    number = storage.create_new_trial(inner.get_study_id_from_name(study.study_name))
    assert seen[0].system_attrs[owner.key]["pid"] == os.getpid()
    assert owner.owns(inner.get_trial(number))
    study.enqueue_trial({"x": 1.0})
    waiting = trial_id(study.trials[-1])
    assert storage.set_trial_state_values(waiting, TrialState.RUNNING)
    assert owner.owns(inner.get_trial(waiting))
    rival = Owner(inner).open()
    assert not DurableStorage(inner, rival, "it").set_trial_state_values(waiting, TrialState.RUNNING)
    assert not rival.owns(inner.get_trial(waiting)), "who comes second leaves no trace"
    owner.close()
    rival.close()


def test_where_nothing_keeps_others_out_nobody_asks_for_too_many():
    """Two searches ask at the same time, each before it can see the other's trial."""
    inner = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=inner)
    owners = [Owner(inner).open(), Owner(inner).open()]
    shares = []
    for owner in owners:
        storage = DurableStorage(inner, owner, "it")
        view = optuna.load_study(study_name=study.study_name, storage=inner)
        set_storage(view, storage)
        shares.append((Quota(view, storage, 1), view))
    (first, first_view), (second, second_view) = shares

    def ask():
        trial = first_view.ask()
        assert second._ask(second_view.ask, []) is ASK_LATER  # the other one is in between
        return trial

    assert first._ask(ask, []) is not ASK_LATER
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.WAITING]
    study.enqueue_trial({"x": 0.5})
    study.tell(0, 1.0)
    assert first.ask(ask) is None
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    assert (study.trials[1].user_attrs[LOST], study.trials[1].user_attrs[ERROR]) == (
        True,
        "Other searches have run enough trials.",
    )
    for owner in owners:
        owner.close()


# Outages.


def caused(cause):
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = cause
    return error


def refused(code, details=""):
    error = grpc.RpcError(details)
    error.code = lambda: code
    return error


@pytest.fixture
def _hurried(pauses):
    pauses.storage_longest = 0.1
    pauses.storage_patience_at_end = 0.3


def test_an_owner_that_is_closed_while_it_opens_leaves_no_session_file(tmp_path, monkeypatch):
    owner = Owner(open_storage(tmp_path / "s.journal"))
    has_one, closes, create, folders = threading.Event(), threading.Event(), session_file._create_locked, []

    def slow_create(folder, name):
        folders.append(folder)
        if len(folders) == 2:
            has_one.set()
            assert closes.wait(60)
        return create(folder, name)

    def slow_close(file):
        close_file(file)
        closes.set()  # the owner opens its second file while it closes the first
        if threading.current_thread() is not opening:
            opening.join()

    close_file = os.close
    monkeypatch.setattr(session_file, "_create_locked", slow_create)
    opening = threading.Thread(target=owner.open)
    opening.start()
    assert has_one.wait(60)
    monkeypatch.setattr(session_file.os, "close", slow_close)
    owner.close()
    monkeypatch.undo()
    opening.join()
    assert len(folders) == 2
    assert not any((folder / f"{owner.session}.alive").exists() for folder in folders)


@pytest.mark.usefixtures("_hurried")
def test_a_database_that_is_restarted_loses_no_value(name):
    with contextlib.closing(Postgres()) as server:
        returned, outages = {}, []

        @optimize(concurrency=3, n_trials=12, storage=server.url, study_name=name, resume=True, progress=False)
        def search(trial, x: Float(0, 1)) -> float:
            if trial.number in (3, 7):
                server.stop()
                threading.Timer(0.5, server.start).start()
                outages.append(trial.number)
            returned[trial.number] = x
            return x

        study = search.run_sync()
        assert states(study) == {"COMPLETE": 12}
        assert {trial.number: trial.value for trial in study.trials} == returned
        assert outages == [3, 7]
        engine_of(storage_of(study)).dispose()


@pytest.mark.usefixtures("_hurried")
def test_a_database_file_that_is_locked_for_a_while_loses_no_value(tmp_path, name):
    path = tmp_path / "study.db"
    url = f"sqlite:///{path}?timeout=0.01"

    @optimize(concurrency=1, n_trials=4, storage=url, study_name=name, resume=True, progress=False)
    def search(x: Float(0, 1)) -> float:
        lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        lock.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.2, lock.close).start()
        return x

    study = search.run_sync()
    assert states(study) == {"COMPLETE": 4}
    assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]


@pytest.mark.usefixtures("_hurried")
def test_a_proxy_that_is_restarted_loses_no_value(server, name):
    with contextlib.closing(Proxy(server.url)) as proxy:
        storage = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=proxy.port)
        restarting = []

        @optimize(concurrency=2, n_trials=6, storage=storage, study_name=name, resume=True, progress=False)
        def search(trial, x: Float(0, 1)) -> float:
            if trial.number == 2:
                proxy.close()
                restarting.append(threading.Thread(target=proxy.start))
                restarting[0].start()
            return x

        study = search.run_sync()
        restarting[0].join()
        assert states(study) == {"COMPLETE": 6}
        assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]
        storage.close()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(28, "No space left on device"), True),
        (TimeoutError(), True),
        (ValueError("a category of another kind"), False),
        (KeyError("no such study"), False),
        (sqlalchemy.exc.OperationalError("SELECT", {}, Exception("locked")), True),
        (sqlalchemy.exc.DataError("INSERT", {}, Exception("too long")), False),
        (sqlalchemy.exc.TimeoutError("the pool is empty"), True),
        (StorageInternalError("of no known cause"), True),
        (caused(sqlalchemy.exc.OperationalError("INSERT", {}, Exception("gone"))), True),
        (caused(sqlalchemy.exc.DataError("INSERT", {}, Exception("too long"))), False),
        (refused(grpc.StatusCode.UNAVAILABLE), True),
        (refused(grpc.StatusCode.UNAUTHENTICATED), False),
        (refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "Sent message larger than max (9 vs. 4)"), False),
        (refused(grpc.StatusCode.UNKNOWN, "Exception calling application: (psycopg.OperationalError) gone"), True),
        (refused(grpc.StatusCode.UNKNOWN, "Exception calling application: 'x'"), False),
    ],
)
def test_what_may_pass_by_itself(error, passes):
    assert is_storage_outage(error) is passes


class Full(JournalFileBackend):
    """A disk that is full at times: half a line is written, and an error is raised."""

    left = 0

    def __init__(self, path, **given):
        super().__init__(path, **given)
        self.path = path

    def append_logs(self, logs):
        if Full.left > 0:
            Full.left -= 1
            with open(self.path, "ab") as file:
                file.write(json.dumps(logs[0]).encode()[:10])
            raise OSError(28, "No space left on device")
        super().append_logs(logs)


@pytest.mark.usefixtures("_hurried")
def test_a_disk_that_is_full_for_a_while_loses_no_value_and_leaves_the_file_whole(tmp_path, name):
    path = tmp_path / "study.journal"
    storage = optuna.storages.JournalStorage(Full(str(path), lock_obj=FileLock(path)))

    @optimize(concurrency=2, n_trials=6, storage=storage, study_name=name, resume=True, progress=False)
    def search(x: Float(0, 1)) -> float:
        Full.left = 3
        return x

    study = search.run_sync()
    assert states(study) == {"COMPLETE": 6}
    assert all(json.loads(line) for line in path.read_text().splitlines())
    again = optuna.load_study(study_name=name, storage=open_storage(path))
    assert [trial.value for trial in again.trials] == [trial.params["x"] for trial in study.trials]


def test_a_database_that_falls_silent_holds_up_nothing_for_ever(name, monkeypatch, tmp_path, pauses):
    """It neither answers nor refuses: only the search itself can end the wait."""
    pauses.storage_silence = 0.3
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(Postgres()) as server:

        async def main(loop):
            @optimize(concurrency=1, n_trials=9, storage=server.url, study_name=name, timeout=3600, progress=False)
            def search(x: Float(0, 1)) -> float:
                server.freeze()
                loop.skip(3601)
                return x

            await search()

        with pytest.raises(StorageUnavailableError, match="trials 0, which have finished") as raised:
            in_movable_time(main)
        assert len(raised.value.untold) == 1
        server.freeze(on=False)


def test_an_answer_that_was_lost_makes_no_second_trial(tmp_path, name, monkeypatch):
    inner = open_storage(tmp_path / "study.journal")
    lost = {"create_new_trial": 2, "set_trial_state_values": 2}

    def losing(method):
        call = getattr(inner, method)

        def wrapped(*args, **kwargs):
            result = call(*args, **kwargs)
            if lost[method]:
                lost[method] -= 1
                raise ConnectionResetError("the answer is lost")
            return result

        return wrapped

    for method in lost:
        monkeypatch.setattr(inner, method, losing(method))
    study = objective(storage=inner, study_name=name, resume=True).run_sync()
    assert states(study) == {"COMPLETE": 6}
    assert all(trial.value == trial.params["x"] for trial in study.trials)


@pytest.mark.usefixtures("_hurried")
def test_a_storage_that_does_not_come_back_ends_the_search_and_what_is_untold_is_saved(
    tmp_path, name, monkeypatch, pauses
):
    pauses.storage_patience = 0.3
    monkeypatch.chdir(tmp_path)
    server = Postgres()
    try:

        @optimize(concurrency=1, n_trials=4, storage=server.url, study_name=name, resume=True, progress=False)
        def search(trial, x: Float(0, 1)) -> float:
            if trial.number == 2:
                server.stop()
            return x

        with pytest.raises(StorageUnavailableError, match="trials 2, which have finished") as raised:
            search.run_sync()
        (saved,) = [json.loads(line) for line in raised.value.path.read_text().splitlines()]
        assert (saved["trial"], saved["study"], saved["state"]) == (2, name, "COMPLETE")
        assert saved["values"] == [saved["params"]["x"]]
        assert server.password not in str(raised.value)
        server.start()
        search.study.tell(saved["trial"], saved["values"])  # as the message says
        assert states(search.run_sync()) == {"COMPLETE": 4}
    finally:
        server.close()


def test_ctrl_c_while_the_storage_is_gone_does_not_take_long(name, tmp_path, pauses):
    pauses.storage_patience_at_end = 0.1
    path = tmp_path / "study.journal"
    storage = optuna.storages.JournalStorage(Full(str(path), lock_obj=FileLock(path)))

    async def main():
        running = asyncio.Event()
        gone = threading.Event()

        @optimize(concurrency=1, n_trials=4, storage=storage, study_name=name, progress=False)
        async def search(x: Float(0, 1)) -> float:
            Full.left = 10**6
            running.set()
            await asyncio.sleep(60)
            return x

        task = asyncio.ensure_future(search())
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not gone.is_set()

    try:
        asyncio.run(main())
    finally:
        Full.left = 0


def test_ctrl_c_while_a_trial_is_asked_for_in_vain_does_not_take_long(name, tmp_path, monkeypatch, pauses):
    pauses.storage_patience_at_end = 0.1
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.journal"
    storage = optuna.storages.JournalStorage(Full(str(path), lock_obj=FileLock(path)))

    async def main():
        ended = asyncio.Event()

        @optimize(concurrency=1, n_trials=4, storage=storage, study_name=name, progress=False)
        async def search(x: Float(0, 1)) -> float:
            Full.left = 10**6
            ended.set()
            return x

        task = asyncio.ensure_future(search())
        await ended.wait()
        await asyncio.sleep(0.2)  # it is told in vain now
        task.cancel()
        await asyncio.wait([task])
        return task

    try:
        task = asyncio.run(main())
    finally:
        Full.left = 0
    assert isinstance(task.exception(), StorageUnavailableError)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("postgres://user:secret@host/name", r"calls it 'postgresql'. Write 'postgresql\+psycopg://"),
        ("search.db", r"For SQLite, write 'sqlite:///search.db'; for a journal, another name"),
        (pathlib.Path("a/search.sqlite3"), r"For SQLite, write 'sqlite:///a/search.sqlite3'"),
    ],
)
def test_a_storage_that_is_meant_to_be_a_database_is_refused_at_decoration(storage, message):
    with pytest.raises(InvalidOptionError, match=message) as error:
        objective(storage=storage)
    assert "secret" not in str(error.value)


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(InvalidOptionError, match=r"is a folder. Name a file in it, as in '.*/search.journal'"):
        objective(storage=tmp_path).run_sync()


def test_a_device_or_a_pipe_is_no_journal(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(InvalidOptionError, match=r"is a device or a pipe. Give the path of a new file"):
            objective(storage=path).run_sync()


def test_a_search_that_has_failed_already_says_why_it_runs_nothing(tmp_path, name, warned):
    def breaks(x: Float(0, 1)) -> float:
        raise ValueError("a bug")

    options = {"n_trials": 4, "storage": tmp_path / "s.journal", "study_name": name, "resume": True, "progress": False}
    optimize(breaks, **options).run_sync()
    assert warned()[-1] == "All 4 trials of `breaks` failed; the last: ValueError: a bug"
    study = optimize(breaks, **options).run_sync()
    assert len(study.trials) == 4
    assert warned()[-2].startswith(f"The study '{name}' has its 4 trials already, and all have failed: nothing is run")
    assert warned()[-1] == "All 4 trials of `breaks` failed; the last: ValueError: a bug"


# The event loop.


@pytest.mark.parametrize(
    ("scheme", "in_pod"), [("postgresql+psycopg", False), ("unknown+driver", False), ("postgresql+psycopg", True)]
)
def test_what_a_database_needs_is_loaded_before_the_loop_runs(scheme, in_pod):
    """Loading it in the loop would make it stand still: Python then collects the garbage of all that is imported."""
    code = f"""
import sys
from optuna_flyte_dsl import Float, optimize

@optimize(storage="{scheme}://user:password@127.0.0.1:1/name")
def search(x: Float(0, 1)) -> float:
    return x

print([name in sys.modules for name in ("sqlalchemy.orm", "alembic.command", "psycopg")])
"""
    environment = {**os.environ, "FLYTE_INTERNAL_EXECUTION_ID": "x"} if in_pod else dict(os.environ)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = [not in_pod, not in_pod, not in_pod and scheme.startswith("postgresql")]
    assert done.stdout.strip() == str(loaded)


# Kills.


@pytest.mark.newest
@pytest.mark.parametrize(("kind", "executor"), [("journal", "thread"), ("postgresql", "process")])
def test_killed_again_and_again_it_ends_with_just_its_trials(kind, executor):
    result = campaign(kind, kills=2, rng=random.Random(kind), executor=executor, n_trials=40)
    assert result["kills"] <= 2


LEAVING = """
import sys, threading, time
from optuna_flyte_dsl import Float, optimize

kept = dict(study_name="s", resume=True, progress=False)
@optimize(concurrency=2, n_trials=9, executor="process", storage=sys.argv[1], **kept)
def search(x: Float(0, 1)) -> float:
    time.sleep(60)
    return x

threading.Thread(target=search.run_sync, daemon=True).start()
while sum(trial.state.name == "RUNNING" and bool(trial.params) for trial in search.study.trials) < 2:
    time.sleep(0.01)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.newest
@pytest.mark.parametrize("later", [0.0, 0.5, 3.0])  # seconds: the workers start, or run the trials
def test_python_may_exit_while_processes_work(tmp_path, later):
    """As a program does that was interrupted and whose search runs in a daemon thread: that of `pyflyte run`."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "leaving.py"), str(tmp_path / "s.journal"), str(later)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "s.journal"))
    assert {(trial.state.name, trial.user_attrs.get(LOST)) for trial in study.trials} == {("FAIL", True)}
    assert len(study.trials) == 2


# What is said.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": 3}, "`storage` must be a URL such as .* but got a int"),
        ({"storage": ""}, "`storage` must be a URL or the path of a journal file, but got an empty string"),
        ({"storage": optuna.storages.InMemoryStorage}, "but got the class InMemoryStorage"),
        ({"storage": "x.journal", "study": optuna.create_study()}, "`storage` and `study` were both given"),
        ({"study_name": "x", "study": optuna.create_study()}, "`study_name` and `study` were both given"),
        ({"study_name": 3}, "`study_name` must be a string, but got 3"),
        ({"study_name": ""}, "`study_name` must have 1 to 512 characters"),
        ({"study_name": "n" * 513}, "`study_name` must have 1 to 512 characters"),
        ({"study_name": "a\0b"}, "`study_name` must have .* none of them NUL"),
        ({"study_name": "\ud800"}, "`study_name` must have .* or a lone surrogate"),
        ({"resume": 1}, "`resume` must be True or False, but got 1"),
        ({"resume": True}, r"`resume=True` needs `storage`, or `study`.*storage='search.journal'"),
        ({"storage": "x.journal", "takeover": True}, "`takeover=True` needs `resume=True`"),
    ],
)
def test_wrong_options_are_named_at_decoration(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        objective(**options)


def test_a_journal_in_no_folder_is_named_at_the_call(tmp_path):
    for url in (
        "postgresql+psycopg://joe:s3cr3t@more@host/db",
        "sqlite:///postgresql+psycopg://joe:s3cr3t@host/db",
        "host=db user=joe password=s3cr3t",
        "password = s3cr3t",
        "PASSWORD=s3cr3t HOST=db",
        "//user:s3cr3t@host/db",
        pathlib.Path("postgresql://user:s3cr3t@host/db"),
    ):
        for storage in (url, lambda url=url: url):
            with pytest.raises(InvalidOptionError, match="`storage`") as error:
                objective(storage=storage).run_sync()
            assert "s3cr3t" not in str(error.value)
    with pytest.raises(InvalidOptionError, match=r"a folder that exists.*nowhere"):
        objective(storage=tmp_path / "nowhere" / "study.journal").run_sync()
    with pytest.raises(InvalidOptionError, match="it made a int"):
        objective(storage=lambda: 3).run_sync()


@pytest.mark.parametrize(
    "content", [b'{"a": 1}', b"my only notes, no newline", b"a,b\n1,2\n", b"\x00SQLite format 3\x00"]
)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(InvalidOptionError, match="is no journal of Optuna's"):
        objective(storage=path).run_sync()
    assert path.read_bytes() == content


def test_a_url_that_is_misspelt_is_not_shown():
    for url in ("postgresql+psycopg:/joe:s3cr3t@host/db", "joe:s3cr3t@host/db"):
        with pytest.raises(InvalidOptionError, match="looks like a URL") as error:
            objective(storage=url)
        assert "s3cr3t" not in str(error.value)
    with pytest.raises(InvalidOptionError, match=r"a folder that exists.*nowhere"):
        objective(storage="sqlite:////nowhere/study.db").run_sync()


@pytest.mark.newest
def test_two_processes_make_the_tables_of_a_database_at_the_same_time():
    with contextlib.closing(Postgres()) as server:
        program = "import sys; from optuna_flyte_dsl.study.storages import open_storage; open_storage(sys.argv[1])"
        command = [sys.executable, "-W", "ignore", "-c", program, server.url]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        for process in processes:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said


def test_a_space_that_has_changed_is_named_before_the_first_trial(tmp_path):
    path = tmp_path / "study.journal"
    objective(storage=path, resume=True, n_trials=2).run_sync()

    @optimize(n_trials=4, storage=path, study_name="objective", resume=True, progress=False)
    def changed(x: Float(0.1, 1, log=True)) -> Minimize:
        return x

    with pytest.raises(InvalidOptionError, match=r"`x` is FloatDistribution.*'objective' have.*another `study_name`"):
        changed.run_sync()
    assert len(changed.study.trials) == 2


def test_enqueued_parameters_that_do_not_fit_are_a_failed_trial(tmp_path):
    search = objective(storage=tmp_path / "study.journal", resume=True, n_trials=3, concurrency=1)
    search.study.enqueue_trial({"x": "high"})
    study = search.run_sync()
    assert states(study) == {"FAIL": 1, "COMPLETE": 2}
    assert "were enqueued, and do not fit the search space: {'x': 'high'}" in study.trials[0].user_attrs[ERROR]


@on("journal", "sqlite")
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_search_that_another_one_disturbs_is_not_deterministic_and_ends(storage, name, deterministic):
    """The second search is deterministic; the first one may be, and may not."""
    begun, second_ended = threading.Event(), threading.Event()

    def search(is_deterministic):
        @optimize(
            concurrency=2,
            n_trials=8,
            storage=storage,
            study_name=name,
            resume=True,
            deterministic=is_deterministic,
            seed=1,
            progress=False,
        )
        def objective(x: Float(0, 1)):
            begun.set()
            second_ended.wait(60)
            return x

        return objective

    async def both():
        first = asyncio.create_task(search(deterministic)())
        await asyncio.to_thread(begun.wait)
        with pytest.raises(SearchRunningError, match=r"another search works on the study of `objective`.*Wait for"):
            await search(True)()
        second_ended.set()
        return await first

    study = asyncio.run(both())
    assert states(study) == {"COMPLETE": 8}, "the refused search has asked for nothing"


@on("journal")
def test_a_deterministic_search_ends_when_another_one_begins_beside_it(storage, name):
    def join(study, trial):
        if trial.number == 2:
            objective(storage=storage, study_name=name, n_trials=1).run_sync()

    with pytest.raises(SearchRunningError, match="another search works on the study"):
        objective(
            storage=storage, study_name=name, n_trials=8, deterministic=True, seed=1, resume=True, callbacks=[join]
        ).run_sync()
    study = optuna.load_study(study_name=name, storage=open_storage(storage))
    assert "RUNNING" not in states(study)
    assert len(study.trials) < 8


def test_a_resumed_study_with_other_arguments_is_warned_of(tmp_path, warned):
    search = objective(storage=tmp_path / "study.journal", resume=True)
    search.run_sync(base=1.0)
    search.n_trials = 7
    search.run_sync(base=2.0)
    assert any("base=2.0, but its trials so far had 1.0" in line for line in warned())


def test_no_password_is_shown_anywhere(server, caplog, name, pauses):
    pauses.storage_opening = 0.2
    caplog.set_level(logging.DEBUG)
    search = objective(storage=server.url, study_name=name, resume=True)
    study = search.run_sync()
    shown = [repr(search), repr(search._session.options), str(study.user_attrs)]
    shown += [str(trial) for trial in study.trials] + [record.getMessage() for record in caplog.records]
    assert server.password not in "".join(shown)
    wrong = server.url.replace(server.password, "another-secret").replace(str(server.port), "1")
    with pytest.raises(StorageUnavailableError, match=r"not answer: OperationalError: .*No trial was run") as error:
        objective(storage=wrong).run_sync()
    assert "another-secret" not in str(error.value)


def test_an_outage_while_the_storage_is_opened_is_waited_out(tmp_path, pauses):
    pauses.storage_first = 0.01
    calls = []

    def storage():
        calls.append(1)
        if len(calls) < 4:
            raise sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("the server is starting"))
        return str(tmp_path / "study.journal")

    assert states(objective(storage=storage, resume=True, n_trials=2).run_sync()) == {"COMPLETE": 2}
    assert len(calls) == 4


def test_a_path_without_permission_is_an_error_at_once(tmp_path):
    def storage():
        raise PermissionError("not yours")

    with pytest.raises(PermissionError):
        objective(storage=storage).run_sync()


def test_a_half_written_line_is_cut_off(tmp_path):
    path = tmp_path / "study.journal"
    search = objective(storage=path, resume=True, n_trials=2)
    search.run_sync()
    with path.open("ab") as file:
        file.write(b'{"op_code": 5, "half')
    search.n_trials = 4
    assert states(search.run_sync()) == {"COMPLETE": 4}
    for content in (b"half", b"", b"x" * 10_000, b"a\nhalf"):
        path.write_bytes(content)
        lock = FileLock(path)
        lock.acquire()
        lock.release()
        assert path.read_bytes() == (b"a\n" if content == b"a\nhalf" else b"")


# A response that is lost after the storage has done what it was asked for.


def forgetful(storage, *, repeats=(), raises=()):
    """Let a storage lose responses: it makes a trial and calls again by itself, or raises after it has made one."""
    create, count = storage.create_new_trial, itertools.count()

    def create_new_trial(study_id, template_trial=None):
        number = next(count)
        made = create(study_id, template_trial)
        if number in raises:
            raise OSError("the response is lost")
        return create(study_id, template_trial) if number in repeats else made

    storage.create_new_trial = create_new_trial
    return storage


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("lost", ["repeats", "raises"])
@pytest.mark.parametrize("at", [{0}, {4}, {3, 4, 5}, {9}])
def test_a_lost_response_leaves_neither_a_trial_too_few_nor_one_that_runs(tmp_path, pauses, lost, at, resumed):
    pauses.storage_first = 0.001
    storage = forgetful(open_storage(tmp_path / "study.journal"), **{lost: at})
    seen = []
    study = objective(
        storage=storage, study_name="s", n_trials=10, resume=resumed, callbacks=[lambda s, t: seen.append(t.number)]
    ).run_sync()
    found = states(study)
    assert found.pop("COMPLETE") == 10
    # One that was made twice at the very end cannot be taken any more: it is closed, and does not count.
    assert found in ({}, {"FAIL": 1})
    assert all(trial.user_attrs.get(LOST) for trial in study.trials if trial.state is TrialState.FAIL)
    if at != {9}:
        assert found == {}
    assert len(seen) == len(set(seen)) == 10


@pytest.mark.parametrize("lost", ["repeats", "raises"])
def test_an_initial_point_is_run_once_though_the_response_to_its_request_is_lost(tmp_path, pauses, lost):
    pauses.storage_first = 0.001
    storage = forgetful(open_storage(tmp_path / "study.journal"), **{lost: {0}})
    study = objective(storage=storage, study_name="s", n_trials=6, initial_points=[{"x": 0.125}]).run_sync()
    assert states(study)["COMPLETE"] == 6
    points = [trial.params["x"] for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert points.count(0.125) == 1


def test_searches_that_share_a_small_pool_do_not_wait_for_each_other(server, name):
    storage = optuna.storages.RDBStorage(server.url, engine_kwargs={"pool_size": 2, "max_overflow": 0})
    searches = [objective(storage=storage, study_name=f"{name}{n}", resume=True, n_trials=3) for n in range(6)]

    async def together():
        return await asyncio.wait_for(asyncio.gather(*(search() for search in searches)), 120)

    assert [states(study) for study in asyncio.run(together())] == [{"COMPLETE": 3}] * 6
    storage.engine.dispose()


# What a search says about a storage that it cannot use.


@pytest.mark.parametrize("resume", [False, True])
def test_the_timeout_of_a_search_holds_while_its_storage_is_opened(resume):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:  # it accepts, and never answers
        url = f"postgresql+psycopg://joe:s3cr3t@127.0.0.1:{silent.getsockname()[1]}/db"
        search = objective(storage=url, study_name="s", resume=resume, timeout=0.3)
        with pytest.raises(StorageUnavailableError, match=r"has not answered for 0\.3 s.*no trial was run") as error:
            search.run_sync()
    assert "s3cr3t" not in str(error.value)


def test_a_journal_that_is_damaged_in_the_middle_is_named(tmp_path):
    path = tmp_path / "study.journal"
    objective(storage=path, study_name="s", n_trials=2).run_sync()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b'{"op_code": 4, "worker\n', *lines[4:]]))
    with pytest.raises(OptunaFlyteError, match=r"study\.journal' is damaged in line 4"):
        objective(storage=path, study_name="s").run_sync()


def test_an_adopted_trial_is_no_trial_whose_response_was_lost(tmp_path):
    inner = open_storage(tmp_path / "study.journal")
    study = optuna.create_study(storage=inner)
    left = trial_id(study.ask())
    inner.set_trial_system_attr(left, f"{OWNER}before", {"session": "before"})
    with contextlib.closing(Owner(inner).open()) as owner:
        storage = DurableStorage(inner, owner, "it")
        storage.adopt(inner.get_trial(left))
        assert liveness.owner_keys(inner.get_trial(left)) == (owner.key,)
        assert storage.create_new_trial(inner.get_study_id_from_name(study.study_name)) != left
        assert storage.spares == []


@pytest.mark.newest
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:/x.db", "three slashes"),
        ("sqlite://x.db", "three slashes"),
        ("mysql://user:secret@localhost/db", "Install the database's driver"),
        ("redis://localhost", "RedisStorage is removed"),
        ("postgresql+nodriver://user:secret@host/db", "Install the database's driver"),
    ],
)
def test_a_url_without_a_driver_is_named_with_the_cure(url, message):
    def objective(x: Float(0, 1)) -> float:
        return x

    with pytest.raises(
        InvalidOptionError, match=rf"`storage` must .*{message}|`storage` must .*: {message}"
    ) as refused:
        optimize(objective, storage=url, study_name="s", n_trials=1, progress=False).run_sync()
    assert "secret" not in str(refused.value)
