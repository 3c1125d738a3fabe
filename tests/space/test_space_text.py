"""A search space as text."""

from hypothesis import given

from optuna_flyte_dsl import Category, Fixed, Float, Integer, SearchSpace, suggest
from tests.support import spaces


def train(lr: Float(1e-5, 1e-1, log=True), depth: Integer(2, 12), params: dict, rows, dataset: str = "wine"):
    raise NotImplementedError


def test_a_space_is_shown_as_a_tree():
    space = SearchSpace.of(train).bind(
        depth=Fixed(30), params={"booster": suggest.category(["a", "b"]), "layers": [suggest.integer(1, 9), 3]}
    )
    assert (
        str(space)
        == """train: 3 parameters, infinitely many points
├── lr: Float(1e-05, 0.1, log=True)
├── depth = 30 (fixed)
├── params
│   ├── booster: Category(['a', 'b'])
│   └── layers
│       ├── 0: Integer(1, 9)
│       └── 1 = 3 (fixed)
├── dataset = 'wine' (default)
└── rows: needs a value"""
    )


def test_the_points_of_a_finite_space_are_counted():
    space = SearchSpace.of(lambda x, y: 0.0).bind(x=Integer(1, 3), y=Category(["a", "<b>"]))
    assert str(space).splitlines()[0] == "<lambda>: 2 parameters, 6 points"
    assert space._repr_html_().startswith("<pre>&lt;lambda&gt;: 2 parameters, 6 points")
    assert str(space.bind(x=1, y="a")).startswith("<lambda>: 0 parameters, 1 point\n├── x = 1 (fixed)")


def test_a_long_value_is_cut():
    text = str(SearchSpace.of(train).bind(rows=list(range(10_000))))
    assert max(map(len, text.splitlines())) < 120


@given(spaces.spaces)
def test_each_parameter_has_a_line(space):
    lines = str(space).splitlines()
    for name, marker in space.items():
        assert sum(line.endswith(f"── {name}: {marker!r}") for line in lines) == 1
