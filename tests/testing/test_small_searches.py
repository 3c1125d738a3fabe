"""Small searches in tests, and the pytest plugin that makes them."""

import asyncio
import subprocess
import sys

import flytekit as fl
import optuna
import pytest

from optuna_flyte_dsl import Float, InvalidOptionError, Maximize, Minimize, Optimizer, optimize
from optuna_flyte_dsl.testing.small_searches import SmallSearches, on_engine

pytestmark = pytest.mark.newest


def make(tmp_path, **options):
    @optimize(
        n_trials=100,
        concurrency=8,
        delay=0.01,
        storage=str(tmp_path / "study.journal"),
        resume=True,
        initial_points=[{"x": 0.5}] * 9,
        **options,
    )
    @fl.task
    def train(x: Float(0, 1)) -> Minimize:
        return x

    return train


def test_each_search_is_small_seeded_and_in_memory(tmp_path):
    train = make(tmp_path)

    @fl.eager
    async def workflow() -> int:
        return len((await train()).trials)

    with SmallSearches() as small:
        assert asyncio.run(workflow()) == 5
        assert len(train.study.trials) == 5
        one, other = train.run_sync(), train.run_sync()
        assert [trial.params for trial in one.trials] == [trial.params for trial in other.trials]
        assert (train.n_trials, train.concurrency) == (5, 1)
        small.n_trials = 2  # for searches that are not yet known
    assert list(tmp_path.iterdir()) == []
    assert (train.n_trials, train.concurrency) == (100, 8)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ntrials", 2, "`small_searches` has no `ntrials`; it has .* Did you mean `n_trials`"),
        ("n_trials", "3", "`small_searches.n_trials` must be an int of 1 or more, but got '3'"),
        ("concurrency", 0, "must be an int of 1 or more, but got 0"),
    ],
)
def test_how_small_a_search_is_is_checked(name, value, message):
    with SmallSearches() as small, pytest.raises(InvalidOptionError, match=message):
        setattr(small, name, value)


def test_code_under_test_does_not_escape(tmp_path):
    train = make(tmp_path)
    with SmallSearches():
        train.n_trials = 50
        assert len(train.run_sync().trials) == 5
    assert train.n_trials == 50
    assert train.with_options(storage=None, resume=False).study.trials == []


def test_an_optimizer_keeps_its_own_study():
    optimizer = Optimizer(lambda trial: trial.suggest_float("x", 0, 1), concurrency=4, n_trials=20, progress=False)
    with SmallSearches(n_trials=3):
        assert len(optimizer.run_sync().trials) == 3
        assert len(optimizer.run_sync().trials) == 6  # all its calls add to one study
        assert len(optimizer.study.trials) == 6
    assert optimizer.study.trials == []


def test_a_study_that_is_looked_at_before_a_call_is_not_kept_for_later(tmp_path):
    train = make(tmp_path)
    with SmallSearches():
        assert train.study.trials == []
    assert type(train.study) is optuna.Study
    assert (tmp_path / "study.journal").exists()


def test_a_given_study_gives_its_directions_only():
    study = optuna.create_study(direction="maximize")

    @optimize(study=study, n_trials=3)
    def train(x: Float(0, 1)): ...

    with SmallSearches(), on_engine("thread"):
        assert train.with_options(catch=(Exception,)).plan().directions == ("maximize",)
    assert study.trials == []


def test_a_search_runs_on_an_engine():
    @optimize(n_trials=2, progress=False)
    def train(x: Float(0, 1)) -> Maximize:
        return x

    for engine, text in [("thread", "in threads of this process"), ("process", "in worker processes of this machine")]:
        with on_engine(engine):
            assert train.plan().engine == text
    with pytest.raises(InvalidOptionError, match="one of thread, process, cluster, but got 'pro'"), on_engine("pro"):
        pass


TESTS = """
import os
import sys

import pytest

def test_the_plugin_is_idle():
    assert "optuna" not in sys.modules
    assert "optuna_flyte_dsl" not in sys.modules

def make():
    from optuna_flyte_dsl import optimize, Float
    @optimize(n_trials=50)
    def train(x: Float(0, 1)) -> float:
        return float(os.getpid())
    return train

def test_small(small_searches):
    small_searches.n_trials = 3
    assert len(make().run_sync().trials) == 3

@pytest.mark.every_engine
def test_engines(small_searches, search_engine):
    study = make().run_sync()
    assert len(study.trials) == 5
    assert all((trial.value == os.getpid()) == (search_engine == "thread") for trial in study.trials)

@pytest.mark.every_engine("thread")
def test_one_engine():
    assert "threads" in make().plan().engine

@pytest.mark.every_engine
class TestAll:
    def test_is_planned(self):
        assert make().plan().n_trials == 50
"""


def test_the_plugin_works_in_a_project_of_its_own(tmp_path):
    (tmp_path / "test_searches.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-v", "--strict-markers", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    names = {line.split("::", 1)[1].split(" ")[0] for line in done.stdout.splitlines() if " PASSED" in line}
    assert names == {
        "test_the_plugin_is_idle",
        "test_small",
        "test_engines[thread]",
        "test_engines[process]",
        "test_one_engine[thread]",
        "TestAll::test_is_planned[thread]",
        "TestAll::test_is_planned[process]",
    }
