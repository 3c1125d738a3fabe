"""Locks that keep searches of one study apart."""

import asyncio
import os
import signal
import threading

import optuna
import pytest
from optuna.trial import TrialState

from optuna_flyte_dsl._compat.optuna import set_storage
from optuna_flyte_dsl.study.attributes import ERROR, LOST
from optuna_flyte_dsl.study.durable_storage import DurableStorage
from optuna_flyte_dsl.study.file_locks import FileLock
from optuna_flyte_dsl.study.liveness import Owner
from optuna_flyte_dsl.study.storages import open_storage
from optuna_flyte_dsl.study.trial_quota import ASK_LATER, Quota
from tests.support.studies import objective, on, states


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


@pytest.mark.newest
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


@pytest.mark.newest
def test_searches_that_share_a_small_pool_do_not_wait_for_each_other(server, name):
    storage = optuna.storages.RDBStorage(server.url, engine_kwargs={"pool_size": 2, "max_overflow": 0})
    searches = [objective(storage=storage, study_name=f"{name}{n}", resume=True, n_trials=3) for n in range(6)]

    async def together():
        return await asyncio.wait_for(asyncio.gather(*(search() for search in searches)), 120)

    assert [states(study) for study in asyncio.run(together())] == [{"COMPLETE": 3}] * 6
    storage.engine.dispose()
