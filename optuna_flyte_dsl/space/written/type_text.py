"""Types as text, such as `list[float]` or `Literal['a', 'b']`, and back."""

from __future__ import annotations

import ast
import operator
import types
from typing import Any, Literal, Union, cast, get_args, get_origin

from optuna_flyte_dsl.space.annotations import NO_TYPE

_NAMED: dict[str, Any] = {
    **{kind.__name__: kind for kind in (bool, int, float, str, bytes, list, dict, tuple, set, frozenset, object)},
    "Any": Any,
    "untyped": NO_TYPE,  # beside `None`, in a union: the annotation names no other type
    "None": type(None),
}


def type_text(kind: Any) -> str | None:
    """Return a type as text; `None` for a type that is made of others than the built-in ones."""
    for name, named in _NAMED.items():
        if kind is named:
            return name
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        is_plain = all(type(each) in (bool, int, str, type(None)) for each in arguments)
        return f"Literal[{', '.join(map(repr, arguments))}]" if is_plain else None
    texts = [type_text(each) for each in arguments]
    if not texts or None in texts:
        return None
    if origin in (Union, types.UnionType):
        return " | ".join(map(str, texts))
    outer = type_text(origin)
    return f"{outer}[{', '.join(map(str, texts))}]" if outer is not None else None


def read_type(text: str) -> Any:
    """Return the type that a text stands for.

    Raises:
        ValueError: If the text is none that `type_text` returns.
    """
    try:
        return _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(text) from error


def _read(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name):
            return _NAMED[name]
        case ast.Constant(value=None):
            return type(None)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_read(left), _read(right)]  # noqa: UP007 - the members are known at run time only
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            literal = operator.getitem(cast("Any", Literal), ast.literal_eval(inner))
            if type_text(literal) is None:
                raise ValueError(ast.dump(inner))
            return literal
        case ast.Subscript(value=outer, slice=ast.Tuple(elts=elements)):
            return _read(outer)[tuple(map(_read, elements))]
        case ast.Subscript(value=outer, slice=inner):
            return _read(outer)[_read(inner)]
    raise ValueError(ast.dump(node))
