"""What reaches the terminal."""

import pytest

from optuna_flyte_dsl import Float, TooManyFailuresError, optimize
from optuna_flyte_dsl._text import printable


def test_control_characters_of_an_errors_text_do_not_reach_the_terminal(caplog):
    @optimize(n_trials=2, progress=False, max_consecutive_failures=2)
    def fails(x: Float(0, 1)) -> float:
        raise ValueError("red \x1b[31m text\x07 \x9b2J")

    with pytest.raises(TooManyFailuresError) as error:
        fails.run_sync()
    for text in [str(error.value), *caplog.messages]:
        assert "\x1b" not in text
        assert "\x9b" not in text
    assert r"red \x1b[31m text\x07" in str(error.value)


def test_other_characters_stay():
    assert printable("naïve 東京 🚀\n\tx") == "naïve 東京 🚀\n\tx"
