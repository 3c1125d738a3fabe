"""How the study of a search is opened, and what is refused there."""

import contextlib
import pathlib
import socket
import subprocess
import sys
from typing import NamedTuple

import optuna
import pytest
import sqlalchemy.exc

from optuna_flyte_dsl import (
    DirectionError,
    Float,
    InvalidOptionError,
    Maximize,
    Minimize,
    StorageUnavailableError,
    optimize,
)
from optuna_flyte_dsl.study.attributes import ERROR
from tests.support.postgres import Postgres
from tests.support.studies import objective, states


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


class Before(NamedTuple):
    precision: Maximize
    recall: Maximize


class After(NamedTuple):
    recall: Maximize
    precision: Maximize


def test_a_study_whose_objectives_have_another_order_is_refused(tmp_path):
    def scores(x: Float(0, 1)) -> Before:
        return Before(precision=x, recall=1 - x)

    options = {"storage": tmp_path / "study.journal", "resume": True, "study_name": "s", "progress": False}
    optimize(scores, n_trials=2, **options).run_sync()

    def swapped(x: Float(0, 1)) -> After:
        return After(precision=x, recall=1 - x)

    with pytest.raises(DirectionError, match=r"are \['recall', 'precision'\] now, but the study has \['precision', 'r"):
        optimize(swapped, n_trials=4, **options).run_sync()


def test_a_search_in_memory_ends_at_any_timeout():
    assert states(objective(timeout=1e-9).run_sync()) == {}


@pytest.mark.parametrize("resume", [False, True])
def test_the_timeout_of_a_search_holds_while_its_storage_is_opened(resume):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:  # it accepts, and never answers
        url = f"postgresql+psycopg://joe:s3cr3t@127.0.0.1:{silent.getsockname()[1]}/db"
        search = objective(storage=url, study_name="s", resume=resume, timeout=0.3)
        with pytest.raises(StorageUnavailableError, match=r"has not answered for 0\.3 s.*no trial was run") as error:
            search.run_sync()
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruner": optuna.pruners.ThresholdPruner}, "ThresholdPruner cannot be made without arguments: Either lower"),
        ({"sampler": lambda seed: optuna.samplers.RandomSampler(seed=seed)}, "needs a seed. Give `seed=1` beside it"),
    ],
)
def test_a_sampler_or_a_pruner_that_needs_more_is_named(options, message):
    def objective(x: Float(0, 1)) -> float:
        return x

    with pytest.raises(InvalidOptionError, match=message):
        optimize(objective, n_trials=2, progress=False, **options).run_sync()
