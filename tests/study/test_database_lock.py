"""The lock on PostgreSQL."""

import optuna
from optuna.trial import TrialState

from optuna_flyte_dsl._compat.optuna import engine_of
from optuna_flyte_dsl.study import liveness
from optuna_flyte_dsl.study.attributes import OWNER
from optuna_flyte_dsl.study.database_lock import AdvisoryLock
from optuna_flyte_dsl.study.liveness import Life, Owner
from optuna_flyte_dsl.study.storages import open_storage
from tests.support import wait_until
from tests.support.sessions import dead_record
from tests.support.studies import on


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


def test_a_lock_can_be_checked_while_another_is_held_though_a_pool_has_two_connections(server, name):
    kwargs = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 3}  # Optuna itself needs two
    storage = optuna.storages.RDBStorage(server.url, engine_kwargs=kwargs)
    lock = AdvisoryLock.of(storage, name)
    try:
        with lock.exclusive("a study"):
            assert lock.is_held(lock.key, lock.server)
    finally:
        lock.close()
        storage.engine.dispose()
