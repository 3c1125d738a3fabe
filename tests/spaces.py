"""Hypothesis strategies for what the tests search: markers and spaces."""

import inspect
from fractions import Fraction

from hypothesis import strategies as st

from optuna_flyte_dsl import Category, Float, Integer, SearchSpace

names = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True).filter(
    lambda name: name not in {"trial", "self"} and not __import__("keyword").iskeyword(name)
)
bounds = st.floats(-1e6, 1e6, allow_nan=False, width=32)
plain_values = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)


@st.composite
def floats(draw):
    kind = draw(st.sampled_from(["plain", "log", "step"]))
    if kind == "log":
        low = draw(st.floats(1e-8, 1e3))
        return Float(low, low * draw(st.floats(1.5, 1e6)), log=True)
    if kind == "step":
        # Written in base ten, as people write steps.
        scale = draw(st.sampled_from([1, 10, 100]))
        low, step = draw(st.integers(-500, 500) | st.integers(-(10**11), 10**11)), draw(st.integers(1, 50))
        high = low + step * draw(st.integers(1, 40))
        return Float(*(float(Fraction(number, scale)) for number in (low, high, step)))
    low, high = sorted(draw(st.tuples(bounds, bounds).filter(lambda pair: pair[0] != pair[1])))
    return Float(low, high)


@st.composite
def integers(draw):
    if draw(st.booleans()):
        low = draw(st.integers(1, 1000))
        return Integer(low, low + draw(st.integers(1, 10**6)), log=True)
    low, step = draw(st.integers(-1000, 1000)), draw(st.integers(1, 20))
    return Integer(low, low + step * draw(st.integers(1, 500)), step)


categories = st.lists(
    st.one_of(st.none(), st.integers(2, 99), st.floats(0.1, 0.9), st.text(max_size=4)),
    min_size=1,
    max_size=5,
    unique=True,
).map(Category)
markers = floats() | integers() | categories


@st.composite
def signatures(draw):
    """Draw a signature, and the names of its marked parameters."""
    marked = draw(st.dictionaries(names, markers, min_size=1, max_size=4))
    fixed = draw(st.dictionaries(names.filter(lambda name: name not in marked), plain_values, max_size=3))
    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=m) for n, m in marked.items()]
    parameters += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=v) for n, v in fixed.items()]
    return inspect.Signature(draw(st.permutations(parameters))), marked, fixed


spaces = signatures().map(lambda drawn: SearchSpace.from_signature(drawn[0]))
