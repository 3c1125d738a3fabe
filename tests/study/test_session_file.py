"""The locked files that show that a search is alive."""

import os
import pathlib
import signal
import tempfile
import threading
import time
from types import SimpleNamespace

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from optuna_flyte_dsl import Float, optimize
from optuna_flyte_dsl.study import session_file
from optuna_flyte_dsl.study.attributes import OWNER
from optuna_flyte_dsl.study.file_locks import file_of
from optuna_flyte_dsl.study.liveness import Life, Owner
from optuna_flyte_dsl.study.session_file import SessionFiles
from optuna_flyte_dsl.study.storages import open_storage
from tests.support import wait_until
from tests.support.marks import newest
from tests.support.sessions import LIVING, dead_record, living_process
from tests.support.studies import objective, on, states


def life_of(record, storage=None):
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs={f"{OWNER}other": record})
    return Owner(storage or optuna.storages.InMemoryStorage()).life(trial)


@pytest.mark.newest
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


@pytest.mark.newest
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


def test_a_users_storage_with_a_relative_path_is_found_after_a_change_of_folder(tmp_path, name, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    storage = optuna.storages.RDBStorage("sqlite:///s.db")
    monkeypatch.chdir(tmp_path / "other")
    assert states(objective(storage=storage, study_name=name, resume=True).run_sync()) == {"COMPLETE": 6}
    assert not list((tmp_path / "other").iterdir())


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


def test_a_search_whose_session_file_cannot_be_removed_returns_its_study(tmp_path, name, monkeypatch):
    def refuses(path, *, missing_ok):
        if path.suffix == ".alive":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok=missing_ok)

    unlink = pathlib.Path.unlink
    monkeypatch.setattr(pathlib.Path, "unlink", refuses)
    search = objective(storage=tmp_path / "study.journal", study_name=name, resume=True, n_trials=3)
    assert states(search.run_sync()) == {"COMPLETE": 3}


def test_the_files_of_searches_killed_long_ago_are_removed_once_in_a_process(tmp_path):
    def left_for(days, name):
        file = tmp_path / f"{name}.alive"
        file.touch()
        os.utime(file, (time.time() - days * 24 * 3600,) * 2)
        return file

    def search_with_files():
        files = SessionFiles("this", tmp_path)
        files.open()
        files.close(is_clean=True)

    long_ago, lately = left_for(31, "long-ago"), left_for(29, "lately")
    held = SessionFiles("held", tmp_path)
    held.open()  # the first search of this process in this folder: it removes what is old
    assert (long_ago.exists(), lately.exists()) == (False, True)
    left_for(31, "held")
    another = left_for(31, "another")
    search_with_files()  # a folder with thousands of files is not looked through again
    assert another.exists()
    session_file._remove_old.cache_clear()
    search_with_files()
    assert not another.exists()
    assert (tmp_path / "held.alive").exists()
    held.close(is_clean=True)


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
@pytest.mark.parametrize("executor", ["thread", newest("process")])
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
