"""Shows a search space as text: a tree of its parameters, with their markers, conditions, fixed values and defaults."""

import math
from collections.abc import Collection, Iterator
from typing import Any

from optuna_flyte_dsl._record import record
from optuna_flyte_dsl._text import counted, shown
from optuna_flyte_dsl.space.nodes import (
    Branches,
    ChosenBranch,
    Conditional,
    Items,
    Leaf,
    Node,
    Record,
    Searched,
    SizedList,
)

_VALUE_LIMIT = 60  # characters of a fixed value


@record
class Branch:
    """A text of the tree, of one line or more, and the branches below it."""

    text: str
    branches: tuple["Branch", ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield the lines of the tree."""
        yield from self.text.splitlines() or [""]
        for number, branch in enumerate(self.branches, start=1):
            is_last = number == len(self.branches)
            first, *others = branch.lines()
            yield f"{'└── ' if is_last else '├── '}{first}"
            for line in others:
                yield f"{'    ' if is_last else '│   '}{line}"


def node_branch(name: str, node: Node, remark: str = "") -> Branch:
    """Return the branch of a node.

    Args:
        name: What the branch is called.
        remark: What is written behind the node.
    """
    match node:
        case Conditional():
            otherwise = f" when {node.condition.in_words()}, else {shown(node.otherwise, _VALUE_LIMIT)}"
            return node_branch(name, node.node, f"{otherwise}{remark}")
        case Searched():
            return Branch(f"{name}: {node.marker!r}{remark}")
        case Leaf():
            origin = "default" if node.is_default else "fixed"
            return Branch(f"{name} = {shown(node.value, _VALUE_LIMIT)} ({origin}){remark}")
        case Branches():
            return Branch(f"{name}: one of{remark}", _branches(node.branches.items()))
        case ChosenBranch():
            return node_branch(f"{name}: {node.label} (fixed)", node.node, remark)
        case SizedList():
            return Branch(f"{name}: as many as {node.length}{remark}", _branches(enumerate(node.items)))
        case Items():
            return Branch(f"{name}{remark}", _branches(node.items.items()))
        case Record():
            return Branch(f"{name}{remark}", _branches({**node.fields, **node.defaults}.items()))
    raise AssertionError(node)


def size_text(parameters: Collection[Any], n_points: float) -> str:
    """Return how many parameters are searched, and how many points there are: "2 parameters, 12 points"."""
    points = "infinitely many points" if n_points == math.inf else counted(int(n_points), "point")
    return f"{counted(len(parameters), 'parameter')}, {points}"


def _branches(nodes: Any) -> tuple[Branch, ...]:
    return tuple(node_branch(str(key), node) for key, node in nodes)
