"""What `storage` may be."""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile

import optuna
import pytest

from optuna_flyte_dsl import Category, Float, InvalidOptionError, OptunaFlyteError, StorageUnavailableError, optimize
from tests.support.studies import objective


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(InvalidOptionError, match=r"is a folder. Name a file in it, as in '.*/search.journal'"):
        objective(storage=tmp_path).run_sync()


def test_a_device_or_a_pipe_is_no_journal(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(InvalidOptionError, match=r"is a device or a pipe. Give the path of a new file"):
            objective(storage=path).run_sync()


@pytest.mark.newest
@pytest.mark.parametrize(
    ("scheme", "in_pod"), [("postgresql+psycopg", False), ("unknown+driver", False), ("postgresql+psycopg", True)]
)
def test_what_a_database_needs_is_loaded_before_the_loop_runs(scheme, in_pod):
    """Loading it in the loop would make it stand still: Python then collects the garbage of all that is imported."""
    code = f"""
import sys
import flytekit
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


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "notes"
    path.write_bytes(b"my only notes" * 100)
    with pytest.raises(InvalidOptionError, match=r"^`storage`: the file of 'sqlite:///.*notes' exists, and is no SQL"):
        objective(storage=f"sqlite:///{path}").run_sync()
    assert path.read_bytes() == b"my only notes" * 100


def test_a_url_that_is_misspelt_is_not_shown():
    for url in ("postgresql+psycopg:/joe:s3cr3t@host/db", "joe:s3cr3t@host/db"):
        with pytest.raises(InvalidOptionError, match="looks like a URL") as error:
            objective(storage=url)
        assert "s3cr3t" not in str(error.value)
    with pytest.raises(InvalidOptionError, match=r"a folder that exists.*nowhere"):
        objective(storage="sqlite:////nowhere/study.db").run_sync()


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


def test_a_journal_that_is_damaged_in_the_middle_is_named(tmp_path):
    path = tmp_path / "study.journal"
    objective(storage=path, study_name="s", n_trials=2).run_sync()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b'{"op_code": 4, "worker\n', *lines[4:]]))
    with pytest.raises(OptunaFlyteError, match=r"study\.journal' is damaged in line 4"):
        objective(storage=path, study_name="s").run_sync()


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


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqllite:///s.db", r"Did you mean 'sqlite://...'\?"),
        ("postgres+psycopg://h/db", r"Did you mean 'postgresql://...'\?"),
        ("~/s.journal", r"Python does not expand '~': write `pathlib.Path\('~/s.journal'\).expanduser\(\)`"),
        (lambda: None, r"it made a NoneType. Is the environment variable set from which it reads the URL\?"),
    ],
)
def test_a_slip_in_a_storage_is_named_with_the_cure(storage, message):
    with pytest.raises(InvalidOptionError, match=message):
        objective(storage=storage).run_sync()


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_choices_that_a_storage_does_not_keep_are_refused_before_a_trial_runs(kind, tmp_path):
    path = str(tmp_path / "s.journal") if kind == "journal" else f"sqlite:///{tmp_path}/s.db"

    def layers(sizes: Category([(64,), (64, 32)])) -> float:
        return 1.0

    optimize(layers, n_trials=1, progress=False).run_sync()
    search = optimize(layers, n_trials=1, storage=path, progress=False)
    with pytest.raises(InvalidOptionError, match=r"`sizes`: a storage keeps choices .* but got \(64,\), of type tuple"):
        search.run_sync()


def test_an_index_that_an_interrupted_creation_has_left_out_is_created(tmp_path):
    """Optuna creates the indexes of a table with the table only: a kill between them left two studies of one name."""
    url = f"sqlite:///{tmp_path}/s.db"
    optuna.storages.RDBStorage(url)
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as database:
        names = {"ix_studies_study_name", "ix_trials_study_id"}
        for name in names:
            database.execute(f"DROP INDEX {name}")

        def line(x: Float(0, 1)) -> float:
            return x

        optimize(line, n_trials=1, storage=url, study_name="s").run_sync()
        found = database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")
        assert names <= {name for (name,) in found}
        with pytest.raises(sqlite3.IntegrityError):
            database.execute("INSERT INTO studies (study_name) VALUES ('s')")


@pytest.mark.parametrize("harm", ["emptied", "cut", "removed", "folder"])
def test_what_was_finished_is_saved_when_the_journal_is_damaged_during_a_search(harm, tmp_path, monkeypatch, pauses):
    pauses.storage_patience_at_end = 0.1
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    journal = folder / "search.journal"
    returned = []

    @optimize(n_trials=9, storage="search.journal", resume=True, progress=False)
    def objective(x: Float(0, 1)) -> float:
        if len(returned) == 3:
            match harm:
                case "emptied":
                    journal.write_bytes(b"")
                case "cut":
                    os.truncate(journal, journal.stat().st_size // 3)
                case "removed":
                    journal.unlink()
                case _:
                    shutil.rmtree(folder)
        returned.append(x)
        return x

    with pytest.raises(StorageUnavailableError, match="trials 3, which have finished, could not be told") as caught:
        objective.run_sync()
    assert caught.value.path.parent == (tmp_path if harm == "folder" else folder)
    assert json.loads(caught.value.path.read_text())["values"] == [returned[3]]
    assert len(returned) == 4
