"""YAML 1.2 by PyYAML, which reads YAML 1.1 by itself: `no` and `on` are texts here, and `1e-5` is a number.

A module of its own, because loading PyYAML takes a moment, and few searches need it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from optuna_flyte_dsl.errors import InvalidSpaceError
from optuna_flyte_dsl.space.written.files import check_unique

_CORE = {  # the scalars of YAML 1.2's core schema, by tag, with the characters by which each may begin
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
}


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2, without aliases and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias, whose content could be huge."""
        if self.check_event(yaml.AliasEvent):
            raise InvalidSpaceError(
                "The YAML of a space must have no aliases, but this one has. Write what it stands for."
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that stands twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        check_unique(keys)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes texts in quotes if YAML 1.1 or YAML 1.2 would read something else without them."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML reads a control character back only from double quotes.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan").lower())


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def dump(data: Any) -> str:
    """Return plain data as YAML."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def load(text: str) -> Any:
    """Return the plain data that YAML holds."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
