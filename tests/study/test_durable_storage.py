"""Outages of a storage."""

import asyncio
import contextlib
import itertools
import json
import sqlite3
import threading

import grpc
import optuna
import pytest
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from optuna_flyte_dsl import Float, StorageUnavailableError, optimize
from optuna_flyte_dsl._compat.optuna import engine_of, storage_of
from optuna_flyte_dsl._foreign_errors import is_storage_outage
from optuna_flyte_dsl.study.attributes import LOST
from optuna_flyte_dsl.study.file_locks import FileLock
from optuna_flyte_dsl.study.storages import open_storage
from tests.soak import Proxy
from tests.support import in_movable_time
from tests.support.postgres import Postgres
from tests.support.studies import objective, refused, states


def caused(cause):
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = cause
    return error


@pytest.mark.newest
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


@pytest.mark.newest
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


@pytest.mark.newest
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


@pytest.mark.newest
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
    if at != {9} or lost == "raises":  # what raises is looked for before it is made again
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
