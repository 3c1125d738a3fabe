"""Says in words how one search space differs from another."""

from collections.abc import Iterator

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.space.annotations import listed
from optuna_flyte_dsl.space.nodes import Branches, ChosenBranch, Conditional, Leaf, Node, Record, Searched, SizedList
from optuna_flyte_dsl.space.tree import ArgumentTree


def differences(new: ArgumentTree, old: ArgumentTree) -> Iterator[str]:
    """Yield a line for each path at which one tree of arguments differs from another one."""
    now, before = _descriptions(new), _descriptions(old)
    for path in [*now, *(path for path in before if path not in now)]:
        if path not in before:
            yield f"{path}: {now[path]}, which is new"
        elif path not in now:
            yield f"{path}: gone, was {before[path]}"
        elif now[path] != before[path]:
            yield f"{path}: {now[path]}, was {before[path]}"


def _descriptions(tree: ArgumentTree) -> dict[str, str]:
    """Return what a tree has at each path."""
    found: dict[str, str] = dict.fromkeys(tree.missing, "a value that a call must give")
    otherwise: dict[str, str] = {}
    for node, condition in tree.every_node():
        if isinstance(node, Conditional):
            otherwise[node.name] = f", else {shown(node.otherwise)}"
        elif (text := _text(node)) is not None:
            active = f" when {condition.in_words()}{otherwise.get(node.name, '')}" if condition is not None else ""
            found[node.name] = f"{text}{active}"
    return found


def _text(node: Node) -> str | None:
    match node:
        case Searched():
            return repr(node.marker)
        case Leaf():
            return f"{shown(node.value)} ({'default' if node.is_default else 'fixed'})"
        case Branches():
            return f"one of {listed(node.branches)}"
        case ChosenBranch():
            return f"{node.label} (fixed)"
        case SizedList():
            return f"a list of up to {len(node.items)} items, as many as `{node.length}`"
        case Record():
            return f"a {node.type.kind.__name__}"
    return None
