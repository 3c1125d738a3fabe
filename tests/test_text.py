"""What error messages show of a user's values."""

import pytest

from optuna_flyte_dsl import Float, InvalidMarkerTypeError, ObjectiveValueError, optimize
from optuna_flyte_dsl._text import nearest, shown


def test_two_swapped_letters_are_the_nearest_of_equally_similar_words():
    assert nearest("lgo", ["low", "high", "log", "step"]) == "log"
    assert nearest("Lwo", ["low", "high", "log", "step"]) == "low"
    assert nearest("stp", ["low", "high", "log", "step"]) == "step"
    assert nearest("zzz", ["low", "high"]) is None


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no text")


def test_a_long_value_is_cut_and_its_length_told():
    assert shown("a" * 298) == repr("a" * 298)
    assert shown("a" * 10_000) == "'" + "a" * 299 + "... (10002 characters)"


@pytest.mark.parametrize(
    ("value", "told"), [(Unshowable(), "RuntimeError"), (10**10_000, "ValueError")], ids=["class", "int"]
)
def test_a_value_whose_repr_raises_is_shown_by_its_class(value, told):
    assert shown(value) == f"<{type(value).__name__}, whose repr raises {told}>"


@pytest.mark.parametrize("value", [Unshowable(), 10**10_000, "a" * 10**6], ids=["class", "int", "str"])
def test_errors_of_values_that_cannot_be_shown_whole_keep_their_rule_and_cure(value):
    with pytest.raises(InvalidMarkerTypeError if not isinstance(value, int) else ValueError, match="must be") as caught:
        Float(0, value)
    assert len(str(caught.value)) < 1_000

    @optimize(n_trials=1, progress=False)
    def train(x: Float(0, 1)):
        return value

    with pytest.raises(ObjectiveValueError, match=r"must return a number.*Return a float") as wrong:
        train.run_sync()
    assert len(str(wrong.value)) < 1_000
