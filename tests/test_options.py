"""Options that are refused, with the rule and the cure."""

import datetime
import re

import optuna
import pytest
from optuna.samplers import TPESampler

from optuna_flyte_dsl import InvalidOptionError
from tests.support.small_searches import plain, search


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "`timeout` must be a number of seconds above 0, or a timedelta, but got 0"),
        ({"timeout": "1h"}, "`timeout` must be a number of seconds above 0, or a timedelta, but got '1h'"),
        ({"trial_timeout": datetime.timedelta(0)}, "`trial_timeout` must be a number of seconds above 0"),
        ({"max_consecutive_failures": 0}, "`max_consecutive_failures` must be an integer greater than 0, but got 0"),
        ({"retries": -1}, "`retries` must be an integer 0 or greater, but got -1"),
        ({"catch": "ValueError"}, r"`catch` must be an exception class.*Write `catch=\(ValueError,\)`"),
        ({"catch": [3]}, "`catch` must be an exception class"),
        ({"executor": "gpu"}, '`executor` must be "thread" or "process", but got \'gpu\''),
        ({"gpus": [0]}, '`gpus` needs `executor="process"`'),
        ({"gpus": "0,1", "executor": "process"}, "`gpus` must be a list of devices"),
        ({"gpus": [0], "executor": "process", "concurrency": 2}, r"`gpus` has 1 devices, fewer than `concurrency=2`"),
        ({"deterministic": True}, "`deterministic=True` needs `seed`"),
        ({"deterministic": True, "seed": 1, "timeout": 3}, "`deterministic=True` and `timeout` were both given"),
        ({"deterministic": True, "seed": 1, "pruner": optuna.pruners.NopPruner}, "what pruner does depends on time"),
        ({"deterministic": 1}, "`deterministic` must be True or False"),
        ({"duplicates": "never"}, "`duplicates` must be 'allow', 'reuse', 'resample', but got 'never'"),
        ({"pruner": 3}, "`pruner` must be a pruner of Optuna's"),
        ({"pruner": int}, "but got the class"),
        ({"pruner": optuna.pruners.MedianPruner(), "study": optuna.create_study()}, "`pruner` and `study` were both"),
    ],
)
def test_wrong_options_are_named_at_decoration(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        search(plain, **options)


def test_options_that_need_a_space_are_refused_where_there_is_none():
    def samples(trial) -> float:
        return trial.suggest_float("x", 0, 1)

    for options in ({"duplicates": "reuse"}, {"stop_when_exhausted": True}):
        with pytest.raises(InvalidOptionError, match="needs a search space that is known before"):
            search(samples, **options)
    with pytest.raises(InvalidOptionError, match="each trial needs a sampler of its own"):
        search(samples, deterministic=True, concurrency=2, sampler=TPESampler(seed=1))


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        (
            "sampler",
            optuna.samplers.GridSampler,
            "needs `search_space`. Give a sampler that is made, as in `sampler",
        ),
        ("pruner", lambda low, high=1: None, "needs `low`. Give a pruner that is made"),
        ("timeout", 10**400, "a number of seconds above 0"),
        ("study", optuna.Study, "an optuna.Study, or a function that makes one"),
    ],
)
def test_what_cannot_be_made_or_waited_for_is_refused_at_once(option, given, message):
    with pytest.raises(InvalidOptionError, match=re.escape(message)):
        search(plain, **{option: given})


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqlite:///:memory:", "a SQLite database in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "a SQLite database in memory"),
        ("a\0b", "none of them zero"),
        ("x" * 300, "at most 240 bytes"),
    ],
)
def test_a_storage_that_cannot_be_one_is_refused_at_once(storage, message):
    with pytest.raises(InvalidOptionError, match=message):
        search(plain, storage=storage)
