"""The timeouts of a search and of a trial."""

import asyncio
import contextlib
import datetime

from optuna_flyte_dsl import Float
from optuna_flyte_dsl.study.attributes import ERROR, LOST
from tests.support import in_movable_time
from tests.support.small_searches import search, states


def test_at_the_deadline_running_trials_are_stopped_and_the_study_is_returned():
    started = []

    async def waits(x: Float(0, 1)) -> float:
        started.append(x)
        if len(started) == 3:
            asyncio.get_running_loop().skip(3601)
        await asyncio.Event().wait()

    limited = search(waits, n_trials=100, concurrency=3, timeout=datetime.timedelta(hours=1))
    study = in_movable_time(lambda loop: limited())
    assert states(study) == ["FAIL"] * 3
    assert all("The search's timeout of 3600 s" in trial.user_attrs[ERROR] for trial in study.trials)


def test_trials_that_the_deadline_has_stopped_do_not_count_and_are_tried_again(tmp_path):
    first = []

    async def waits(x: Float(0, 1)) -> float:
        if len(first) < 2:
            first.append(x)
            if len(first) == 2:
                asyncio.get_running_loop().skip(3601)
            await asyncio.Event().wait()
        return x

    options = {"storage": tmp_path / "s.journal", "resume": True, "concurrency": 2, "n_trials": 3}
    stopped = in_movable_time(lambda loop: search(waits, timeout=3600, **options)())
    assert all(trial.user_attrs[LOST] for trial in stopped.trials)
    study = search(waits, **options).run_sync()
    assert states(study) == ["FAIL"] * 2 + ["COMPLETE"] * 3
    assert {trial.params["x"] for trial in study.trials[2:]} >= set(first)


def test_the_time_of_a_trial_is_that_of_all_its_attempts():
    attempts = []

    async def fails_slowly(x: Float(0, 1)) -> float:
        attempts.append(x)
        await asyncio.sleep(0.05)
        raise ValueError("again")

    (trial,) = search(fails_slowly, n_trials=1, trial_timeout=0.12, retries=100).run_sync().trials
    assert trial.user_attrs[ERROR].startswith("TrialTimeoutError")
    assert len(attempts) <= 3


def test_a_trial_waits_for_nothing_when_its_time_is_up():
    async def swallows(x: Float(0, 1)) -> float:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        raise TimeoutError("of its own")

    study = search(swallows, n_trials=1, trial_timeout=60).run_sync()
    assert study.trials[0].user_attrs[ERROR] == "TimeoutError: of its own"
