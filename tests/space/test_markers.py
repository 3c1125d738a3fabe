import copy
import inspect
import pickle
import typing

import numpy as np
import pytest
from hypothesis import given
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_flyte_dsl import (
    Category,
    Fixed,
    Float,
    Integer,
    InvalidMarkerError,
    InvalidMarkerTypeError,
    Number,
    OptunaFlyteError,
    Ordinal,
    Suggestion,
    suggest,
)
from tests.support import spaces


@given(spaces.markers)
def test_a_marker_survives_the_way_to_its_distribution_and_back(marker):
    assert Suggestion.from_distribution(marker.to_distribution()) == marker.stored


@given(spaces.markers)
def test_optuna_changes_no_bound_of_a_marker(marker):
    distribution, marker = marker.to_distribution(), marker.stored
    if isinstance(marker, Category):
        assert distribution.choices == marker.choices
    else:
        assert (distribution.low, distribution.high, distribution.log) == (marker.low, marker.high, marker.log)


@given(spaces.markers)
def test_a_marker_is_a_value(marker):
    twins = [copy.copy(marker), copy.deepcopy(marker), pickle.loads(pickle.dumps(marker))]
    if getattr(marker, "names", None) is None:  # the repr does not show the values of names
        twins.append(eval(repr(marker)))
    for twin in twins:
        assert twin == marker
        assert hash(twin) == hash(marker)
        assert type(twin) is type(marker)


def test_markers_make_their_optuna_distributions():
    assert Float(1e-5, 0.1, log=True).to_distribution() == FloatDistribution(1e-5, 0.1, log=True)
    assert Float(0, 1, step=0.1).to_distribution() == FloatDistribution(0, 1, step=0.1)
    assert Integer(3, 9, step=2).to_distribution() == IntDistribution(3, 9, step=2)
    assert Category(["a", None]).to_distribution() == CategoricalDistribution(["a", None])


def test_a_marker_is_frozen():
    with pytest.raises(AttributeError):
        Float(0, 1).low = 2
    with pytest.raises(AttributeError):
        Category(["a"]).choices = ()


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        (Float(-10, 10), "Float(-10, 10)"),
        (Float(1e-5, 0.1, log=True), "Float(1e-05, 0.1, log=True)"),
        (Float(0, 1, step=0.25), "Float(0, 1, step=0.25)"),
        (Integer(2, 12), "Integer(2, 12)"),
        (Integer(2, 12, step=5), "Integer(2, 12, step=5)"),
        (Category(["a", 1]), "Category(['a', 1])"),
    ],
)
def test_a_marker_has_a_short_repr(marker, text):
    assert repr(marker) == text


def test_the_peers_names_are_the_same_classes():
    assert (suggest.float, suggest.integer, suggest.category) == (Float, Integer, Category)
    assert suggest.float(low=-10, high=10) == Float(-10, 10)
    assert issubclass(Float, Number)
    assert issubclass(Integer, Number)
    assert issubclass(Number, Suggestion)
    assert issubclass(Category, Suggestion)


def test_numpy_numbers_become_plain_ones():
    marker = Integer(np.int64(1), np.int32(5))
    assert type(marker.low) is int
    assert type(Float(np.float32(0), np.float64(1)).high) is float


def test_equality_tells_types_apart():
    assert Float(0, 1) != Integer(0, 1)
    assert Category([1]) != Category([1.0])
    assert Category([1]) != Category([1, 2])
    assert Category([1]) != 1


def test_a_category_keeps_its_choices_whatever_they_came_in():
    assert Category(["a", "b"]).choices == ("a", "b")
    assert Category(name for name in ("a", "b")).choices == ("a", "b")
    assert hash(Category([[1, 2], [3]])) == hash(Category([[1, 2], [3]]))


def test_a_marker_goes_into_a_union():
    assert Float(0, 1) | None == typing.Optional[Float(0, 1)]
    assert None | Float(0, 1) == typing.Union[None, Float(0, 1)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(3, 1), "Float: `low < high` must hold, but got (low=3, high=1). Swap them."),
        (
            lambda: Integer(1, 1),
            "Integer: `low < high` must hold, but got (low=1, high=1). "
            "Raise `high`, or give the value itself: it needs no search.",
        ),
        (lambda: Float(0, float("inf")), "Float: `high` must be finite, but got inf."),
        (lambda: Float(float("nan"), 1), "Float: `low` must be finite, but got nan."),
        (lambda: Float(0, 10**400), "Float: `high` must be finite, but got inf."),
        (
            lambda: Float(-1e308, 1e308),
            "Float: `high - low` must be finite, but got (low=-1e+308, high=1e+308). Narrow the range.",
        ),
        (
            lambda: Integer(0, 10**309 - 1),
            "Integer: `high` must lie within the range of a float, about ±1.8e308, because Optuna stores integers as "
            "floats, but got "
            f"{'9' * 300}... (309 characters). Narrow the range.",
        ),
        (
            lambda: Integer(2**60, 2**60 + 3),
            "Integer: `low` and `high` must differ as floats, which is how Optuna stores integers, but got "
            "(low=1152921504606846976, high=1152921504606846979). Search the distance from `low`, and add `low` in the "
            "objective.",
        ),
        (lambda: Float(0, 1, step=0), "Float: `step > 0` must hold, but got step=0."),
        (lambda: Integer(0, 5, step=-1), "Integer: `step > 0` must hold, but got step=-1."),
        (
            lambda: Float(0, 1, step=2),
            "Float: `step <= high - low` must hold, but got step=2 over (low=0, high=1).",
        ),
        (
            lambda: Float(0.1, 1, step=0.1, log=True),
            "Float: `log=True` goes with no `step`, but got step=0.1. Drop `step`, or drop `log=True`.",
        ),
        (
            lambda: Integer(1, 9, step=2, log=True),
            "Integer: `log=True` goes with no `step`, but got step=2. Drop `step`, or drop `log=True`.",
        ),
        (
            lambda: Float(0, 1, log=True),
            "Float: `low > 0` must hold with `log=True`, but got low=0. Raise `low`, or drop `log=True`.",
        ),
        (
            lambda: Integer(0, 8, log=True),
            "Integer: `low > 0` must hold with `log=True`, but got low=0. Raise `low`, or drop `log=True`.",
        ),
        (
            lambda: Integer(0, 10, step=3),
            "Integer: `high` must be reached from `low` by whole steps, but got (low=0, high=10, step=3). "
            "Write high=9, the last value reached, or high=12, one step more.",
        ),
        (
            lambda: Float(0, 1, step=0.3),
            "Float: `high` must be reached from `low` by whole steps, but got (low=0, high=1, step=0.3). "
            "Write high=0.9, the last value reached, or high=1.2, one step more.",
        ),
        (lambda: Category([]), "Category: `choices` must hold at least one value, but got none."),
        (
            lambda: Category(["a", "b", "a"]),
            "Category: each of the `choices` must stand once, but got both 'a' and 'a', "
            "which are equal in Python. Drop one.",
        ),
        (
            lambda: Category([1, True]),
            "Category: each of the `choices` must stand once, but got both 1 and True, "
            "which are equal in Python. Drop one, or write them as strings.",
        ),
    ],
)
def test_a_broken_rule_is_named_with_its_cure(make, message):
    with pytest.raises(InvalidMarkerError) as caught:
        make()
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, OptunaFlyteError)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float("0", 1), "Float: `low` must be a number, but got '0', of type str. Write it without quotes."),
        (
            lambda: Fixed(Float(0, 1)),
            "Fixed: `value` must be a value, but got the marker Float(0, 1). Give the marker itself.",
        ),
        (lambda: Float(0, True), "Float: `high` must be a number, but got True, of type bool."),
        (
            lambda: Float(0, 1, step="1"),
            "Float: `step` must be a number, but got '1', of type str. Write it without quotes.",
        ),
        (
            lambda: suggest.float("x", 0, 1),
            "Float: `low` must be a number, but got 'x', of type str. The name of the parameter is not given: "
            "the first argument is `low`.",
        ),
        (lambda: Float(0, "high"), "Float: `high` must be a number, but got 'high', of type str. Write a number."),
        (lambda: Float(0, 1, log=1), "Float: `log` must be True or False, but got 1, of type int."),
        (
            lambda: Integer(0.5, 3),
            "Integer: `low` must be an integer, but got 0.5, of type float. Write it without a fraction, or use Float.",
        ),
        (
            lambda: Integer(0, "9"),
            "Integer: `high` must be an integer, but got '9', of type str. Write it without quotes.",
        ),
        (
            lambda: Category("abc"),
            """Category: `choices` must be a list of values, but got 'abc'. Write `Category(["a", "b"])`.""",
        ),
        (
            lambda: Category(3),
            """Category: `choices` must be a list of values, but got 3. Write `Category(["a", "b"])`.""",
        ),
        (
            lambda: Ordinal([Float(0, 1), 3]),
            "Ordinal: a choice must be a value, but got [Float(0, 1), 3]. For choices that hold markers, write "
            "`Category([...])`.",
        ),
        (
            lambda: Suggestion.from_distribution("x"),
            "`distribution` must be a FloatDistribution, an IntDistribution or a CategoricalDistribution, but got 'x'.",
        ),
    ],
)
def test_a_wrong_type_is_named(make, message):
    with pytest.raises(InvalidMarkerTypeError) as caught:
        make()
    assert str(caught.value) == message
    assert isinstance(caught.value, TypeError)


def test_many_choices_are_checked_in_linear_time():
    compared = 0

    class Choice:
        def __init__(self, number):
            self.number = number

        def __hash__(self):
            return hash(self.number)

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return self.number == other.number

    Category([Choice(number) for number in range(1_000)])
    assert compared <= 1_000
    with pytest.raises(InvalidMarkerError, match="must stand once"):
        Category([Choice(1), Choice(2), Choice(1)])


@pytest.mark.parametrize(
    "choices",
    [
        [[1], [2], [1]],
        [float("nan"), 0.0, float("nan")],
        ["a", None, "a"],
        [{1}, frozenset({1})],
        [frozenset({1}), {1}],
    ],
)
def test_a_repeated_choice_is_found_with_a_hash_or_without(choices):
    with pytest.raises(InvalidMarkerError, match="must stand once"):
        Category(choices)


def test_choices_that_cannot_be_compared_are_different():
    class Odd:
        def __hash__(self):
            return 1

        def __eq__(self, other):
            raise KeyError("odd")

    assert len(Category([Odd(), Odd(), 1]).choices) == 3


def test_steps_are_counted_in_base_ten():
    assert Float(0, 0.3, step=0.1).high == 0.3
    assert Float(0.1, 0.7, step=0.2).high == 0.7
    assert Integer(0, 10**30).high == 10**30


@pytest.mark.parametrize("choices", [{"a", "b"}, frozenset({1, 2})])
def test_a_set_has_no_order_and_is_refused(choices):
    with pytest.raises(InvalidMarkerTypeError, match=r"`choices` must stand in an order.*Write a list"):
        Category(choices)


def test_a_bool_in_the_place_of_a_step_is_named_with_its_cure():
    with pytest.raises(InvalidMarkerTypeError, match=r"`step` must be a number, but got True.*write `log=True`"):
        Float(1e-5, 1, True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Category("a", "b"),
            r'Category: too many positional arguments. Write it as in `Category\(\["a", "b"\]\)`',
        ),
        (lambda: Float(0, 1, 2, False, 3), r"Float: too many positional arguments. Write it as in `Float\(0, 1\)`"),
        (lambda: Integer(0, 1, lg=True), r"Integer has no `lg`. Did you mean `log`\? Write it as in"),
        (lambda: Float(min=0, max=1), r"Float has no `min`. Did you mean `low`\? Write it as in `Float\(0, 1\)`"),
        (lambda: Category(options=["a"]), r"Category: got an unexpected keyword argument 'options'. Write it as in"),
    ],
)
def test_a_wrong_number_or_name_of_arguments_is_an_error_of_this_library(make, message):
    with pytest.raises(InvalidMarkerTypeError, match=message):
        make()


def test_optunas_names_of_suggestions_are_told_by_their_names_here():
    for name, ours in (("int", "integer"), ("categorical", "category"), ("uniform", "float")):
        with pytest.raises(AttributeError, match=f"Write `suggest.{ours}`"):
            getattr(suggest, name)
    with pytest.raises(AttributeError, match="It has `float`, `integer` and `category`"):
        suggest.anything  # noqa: B018


@pytest.mark.parametrize(
    ("marker", "signature"),
    [
        (
            Float,
            "(low: 'float' = None, high: 'float' = None, step: 'float | None' = None, log: 'bool' = False, *, "
            "prior: 'Normal | Beta | None' = None)",
        ),
        (
            Integer,
            "(low: 'int' = None, high: 'int' = None, step: 'int' = 1, log: 'bool' = False, *, "
            "prior: 'Normal | Beta | None' = None)",
        ),
        (
            Category,
            "(choices: 'Iterable[Any] | Mapping[str, Any] | None' = None, *, weights: 'Sequence[float] | None' = None)",
        ),
    ],
)
def test_editors_and_help_show_the_arguments_of_a_marker(marker, signature):
    assert str(inspect.signature(marker)) == signature
