"""Searches that repeat themselves."""

import asyncio
import random
import time

import flytekit as fl
import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler

from optuna_flyte_dsl import Category, Float, Integer, InvalidOptionError, Optimizer
from optuna_flyte_dsl.study.attributes import OUTCOME
from optuna_flyte_dsl.study.storages import open_storage
from tests.support.small_searches import plain, search, states


def shaken(seed):
    """Return objectives whose trials end in another order each time."""
    rng = random.Random(seed)
    pauses = [rng.choice([0.0, 0.001, 0.005]) for _ in range(100)]

    async def space(trial, x: Float(-1, 1), kind: Category(["a", "b"])) -> float:
        await asyncio.sleep(pauses[trial.number])
        if x > 0.9:
            raise ValueError("at times")
        return x * x + (kind == "a")

    async def marked(x: Float(-1, 1), kind: Category(["a", "b"])) -> float:
        await asyncio.sleep(pauses[int(abs(x) * 99)] if seed % 2 else rng.choice(pauses))
        if x > 0.9:
            raise ValueError("at times")
        return x * x + (kind == "a")

    def samples(trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        time.sleep(pauses[trial.number])
        return x * x + trial.suggest_float("y" if x > 0 else "z", 0, 1)

    return {"with-trial": space, "marked": marked, "samples": samples}


@pytest.mark.parametrize("sampler", [None, RandomSampler, TPESampler])
@pytest.mark.parametrize("kind", ["with-trial", "marked", "samples"])
def test_a_deterministic_search_repeats_whatever_order_its_trials_end_in(kind, sampler):
    runs = []
    for seed in range(3):
        options = {"sampler": sampler} if sampler else {}
        objective = shaken(seed)[kind]
        study = search(objective, n_trials=24, concurrency=4, seed=7, deterministic=True, **options).run_sync()
        runs.append([(trial.params, trial.value) for trial in study.trials])
    assert runs[0] == runs[1] == runs[2]
    assert len({str(params) for params, _ in runs[0]}) == 24, "each trial has draws of its own"


def test_a_given_studys_sampler_stays_and_its_pruner_is_refused():
    def samples(trial) -> float:
        return trial.suggest_float("x", 0, 1)

    def run():
        study = optuna.create_study(sampler=RandomSampler(seed=1))
        return [t.params for t in search(samples, study=study, deterministic=True).run_sync().trials]

    assert run() == run()
    study = optuna.create_study(pruner=optuna.pruners.HyperbandPruner())
    with pytest.raises(InvalidOptionError, match="the study has a pruner"):
        search(samples, study=study, deterministic=True)
    optimizer = Optimizer(samples, 1, 4, study=optuna.create_study(), deterministic=True)
    with pytest.raises(InvalidOptionError, match="each trial needs a sampler of its own"):
        optimizer.concurrency = 4


def test_a_deterministic_search_learns_and_stops_as_any():
    study = search(shaken(0)["marked"], n_trials=60, concurrency=4, seed=1, deterministic=True).run_sync()
    assert study.best_value < 0.05

    def stop(study, trial):
        if trial.number == 5:
            study.stop()

    stopped = search(shaken(0)["marked"], n_trials=60, concurrency=4, seed=1, deterministic=True, callbacks=[stop])
    assert len(stopped.run_sync().trials) in range(6, 11)


def test_what_waits_for_its_turn_is_kept(tmp_path):
    seen = []

    async def objective(trial, x: Float(0, 1)) -> float:
        if trial.number == 0:
            for _ in range(1000):
                there = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "s.journal"))
                seen.extend(t.user_attrs[OUTCOME] for t in there.trials if OUTCOME in t.user_attrs)
                if seen:
                    break
                await asyncio.sleep(0.01)
        return x

    study = search(
        objective,
        n_trials=4,
        concurrency=2,
        seed=1,
        deterministic=True,
        storage=tmp_path / "s.journal",
        study_name="s",
    ).run_sync()
    assert seen[0] == {"state": "COMPLETE", "values": [study.trials[1].value]}


def test_a_seed_alone_repeats_where_one_trial_runs_at_a_time():
    values = [[t.params for t in search(plain, n_trials=15, seed=3).run_sync().trials] for _ in range(2)]
    assert values[0] == values[1]


@pytest.mark.parametrize("kept", [True, False])
def test_a_deterministic_search_that_ends_in_an_error_keeps_what_was_finished(tmp_path, kept):
    async def waits(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number == 0:
            await asyncio.sleep(0.3)
            raise KeyError("boom")
        return x

    options = {"storage": tmp_path / "study.journal", "study_name": "s"} if kept else {}
    decorated = search(waits, n_trials=6, concurrency=3, deterministic=True, seed=1, catch=(ValueError,), **options)
    with pytest.raises(KeyError):
        decorated.run_sync()
    assert states(decorated.study) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_deterministic_search_ends_though_an_ask_has_found_nothing_for_a_while():
    @fl.task
    def objective(trial: optuna.Trial, d: Integer(1, 2)) -> float:
        time.sleep(0.05)
        trial.suggest_float("extra", 0, 1)
        return float(d)

    options = {"stop_when_exhausted": True, "duplicates": "resample", "deterministic": True, "seed": 1}
    study = search(objective, n_trials=12, concurrency=3, sampler=RandomSampler, **options).run_sync()
    assert set(states(study)) == {"COMPLETE"}
