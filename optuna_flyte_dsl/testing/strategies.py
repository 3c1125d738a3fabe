"""Hypothesis strategies for search spaces. Needs the extra `testing`."""

import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

try:
    from hypothesis import reject
    from hypothesis import strategies as st
except ModuleNotFoundError as _missing:
    _missing.add_note("The strategies need hypothesis: `pip install 'optuna-flyte-dsl[testing]'`.")
    raise

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.engines.engine_choice import space_of
from optuna_flyte_dsl.errors import InvalidMarkerTypeError, RefusedPointError
from optuna_flyte_dsl.session import Session
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Suggestion
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.testing.space_strategies import spaces as spaces


def params(objective_or_space: Any, /, **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Draw the keyword arguments of one trial.

    Every draw is a point that a search can run: within the bounds, on the grid of a step, and allowed by the option
    `constraints`. The bounds are drawn often. Draws with `log=True` spread over the orders of magnitude. Draws shrink
    towards the low bounds and the first choices.

    Args:
        objective_or_space: An objective with or without `@optimize`, or a `SearchSpace`.
        **fixed: Arguments, as in a call of the objective: fixed values or suggestions.

    Returns:
        A strategy of dicts, to be passed on as `train.task(**drawn)`.

    Raises:
        ArgumentError: If the arguments do not fit the objective, or an argument is missing.

    >>> from hypothesis import given
    >>> from optuna_flyte_dsl import Integer, SearchSpace, optimize
    >>> @optimize
    ... def parabola(x: Integer(-3, 3)) -> float:
    ...     return float(x * x)
    >>> @given(params(parabola))
    ... def test_is_never_negative(drawn):
    ...     assert parabola.task(**drawn) >= 0
    >>> test_is_never_negative()
    """
    space = space_of(objective_or_space).bind(**fixed)
    space.check_complete()
    session = getattr(objective_or_space, "_session", None)
    constraints = session.options.constraints_of(session.objective) if isinstance(session, Session) else ()
    drawn = _points(space)
    return drawn.filter(lambda point: all(each.value(point) <= 0 for each in constraints)) if constraints else drawn


def _points(space: SearchSpace) -> st.SearchStrategy[dict[str, Any]]:
    if not space.conditions:
        return st.fixed_dictionaries({name: values(marker) for name, marker in space.items()}).map(
            lambda drawn: _filled(space, lambda name, _: drawn[name])
        )
    strategies = {name: values(marker) for name, marker in space.items()}

    @st.composite
    def points(draw: st.DrawFn) -> dict[str, Any]:
        return _filled(space, lambda name, _: draw(strategies[name]))

    return points()


def _filled(space: SearchSpace, choose: Callable[[str, Suggestion], Any]) -> dict[str, Any]:
    """Return the arguments of a trial. Reject the draw if a class refuses its values, because such a trial fails."""
    try:
        return space.fill(choose)
    except RefusedPointError:
        reject()


def values(marker: Suggestion) -> st.SearchStrategy[Any]:
    """Draw the values of one parameter.

    Args:
        marker: The parameter's marker.

    Raises:
        InvalidMarkerTypeError: If `marker` is no marker of this library.
    """
    if isinstance(marker, Suggestion):
        marker.check_complete()
        if domain.is_composite(marker):
            parameter = inspect.Parameter("value", inspect.Parameter.KEYWORD_ONLY, annotation=marker)
            space = SearchSpace.from_signature(inspect.Signature([parameter]))
            return params(space).map(lambda drawn: drawn["value"])
    match marker:
        case Category():
            return st.sampled_from(marker.choices)
        case Float(step=None):
            spread = _orders(marker) if marker.log else st.floats(marker.low, marker.high)
            return spread | st.sampled_from([marker.low, marker.high])
        case Integer(log=True):
            return _orders(marker).map(round) | st.sampled_from([marker.low, marker.high])
        case Float() | Integer():
            return st.integers(0, int(domain.count(marker)) - 1).map(lambda index: domain.value_at(marker, index))
    raise InvalidMarkerTypeError(f"`marker` must be a Float, an Integer or a Category, but got {shown(marker)}.")


def _orders(marker: Float | Integer) -> st.SearchStrategy[float]:
    """Draw numbers uniformly in their logarithm. The draws shrink towards `low`."""
    span = math.log(marker.high) - math.log(marker.low)
    return st.floats(0, span).map(lambda above: marker.high if above == span else _above(marker, above))


def _above(marker: Float | Integer, above: float) -> float:
    """Return `low * e**above`, within the bounds of the marker."""
    if above == 0:
        return marker.low
    if isinstance(marker, Integer):  # an int may be too large for a float
        return min(max(math.floor(marker.low * _exp(above)), marker.low), marker.high)
    return min(max(math.exp(math.log(marker.low) + above), marker.low), marker.high)


def _exp(above: float) -> Fraction:
    """Return `e**above` as a fraction: the result may be too large for a float."""
    twos = int(above / math.log(2))
    return Fraction(math.exp(above - twos * math.log(2))) * Fraction(2) ** twos
