"""Hypothesis strategies for what the tests search: markers and spaces."""

import enum
import inspect
from fractions import Fraction
from typing import Annotated, Any

import optuna
from hypothesis import strategies as st

from optuna_flyte_dsl import Category, Float, Integer, Ordinal, SearchSpace
from optuna_flyte_dsl.testing import strategies

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
ordinals = st.lists(st.integers(-9, 99) | st.text(max_size=4), min_size=2, max_size=5, unique=True).map(Ordinal)


class Kernel(enum.Enum):
    LINEAR = "linear"
    RBF = "rbf"


class Size(enum.Enum):
    SMALL = 16
    LARGE = 256


named = st.one_of(
    st.dictionaries(names, st.sampled_from([(1, 2), "text", 3.5, None, len]), min_size=1)
    .filter(lambda drawn: len(set(drawn.values())) == len(drawn))
    .map(Category),
    st.sampled_from([Category(Kernel), Category(Size), Category([Kernel.RBF]), Ordinal(Size)]),
)
markers = floats() | integers() | categories | ordinals | named


@st.composite
def annotations(draw, marker):
    """Draw a way to write a marker as an annotation."""
    base = {Float: float, Integer: int}.get(type(marker), Any)
    return draw(
        st.sampled_from(
            [marker, Annotated[base, marker], Annotated[base, "a note", marker], marker | None, Annotated[Any, marker]]
        )
    )


@st.composite
def signatures(draw):
    """Draw a signature, and its marked and its fixed parameters."""
    marked = draw(st.dictionaries(names, markers, min_size=1, max_size=4))
    fixed = draw(st.dictionaries(names.filter(lambda name: name not in marked), plain_values, max_size=3))
    positional, keyword = [], []
    for name, marker in marked.items():
        annotation = draw(annotations(marker))
        if draw(st.booleans()):
            positional.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation))
        else:
            default = draw(st.just(inspect.Parameter.empty) | strategies.values(marker))
            kind = inspect.Parameter.KEYWORD_ONLY
            keyword.append(inspect.Parameter(name, kind, annotation=annotation, default=default))
    keyword += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=v) for n, v in fixed.items()]
    return inspect.Signature([*positional, *draw(st.permutations(keyword))]), marked, fixed


spaces = signatures().map(lambda drawn: SearchSpace.from_signature(drawn[0]))


def sample(space, seed=0):
    """Return the arguments of one trial that a random sampler has drawn."""
    return space.suggest(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask())
