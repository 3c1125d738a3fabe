import asyncio

import optuna
import pytest

from optuna_flyte_dsl import Float, SearchRunningError, optimize


async def waits(x: Float(0, 1)) -> float:
    await asyncio.sleep(0.01)
    return x


def both(first, second):
    study = optuna.create_study()
    searches = [optimize(waits, study=study, n_trials=4, progress=False, **options) for options in (first, second)]

    async def main():
        return await asyncio.gather(*(search() for search in searches), return_exceptions=True)

    return study, asyncio.run(main())


@pytest.mark.parametrize("strict", [{"deterministic": True}, {"resume": True}])
@pytest.mark.parametrize("strict_first", [True, False])
def test_a_search_that_must_be_alone_in_a_study_in_memory_is_refused_beside_another(strict, strict_first):
    options = (strict, {}) if strict_first else ({}, strict)
    study, found = both(*options)
    (refused,) = (each for each in found if isinstance(each, BaseException))  # the one that comes later
    assert isinstance(refused, SearchRunningError)
    assert "Await one after the other" in str(refused)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4


def test_one_after_the_other_they_are_not_refused():
    study = optuna.create_study()
    search = optimize(waits, study=study, n_trials=4, deterministic=True, progress=False)
    search.run_sync()
    search.run_sync()
    assert len(study.trials) == 8


def test_other_searches_share_a_study_in_memory():
    study, found = both({}, {})
    assert not [each for each in found if isinstance(each, BaseException)]
    assert len(study.trials) == 8
