"""JSON and YAML text of written spaces, and the files that hold it.

YAML is read as YAML 1.2 says: `no` and `on` are texts, and `1e-5` is a number.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Hashable
from typing import Any

import yaml

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidSpaceError

_SUFFIXES = (".yaml", ".yml", ".json")
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
        _check_keys(keys)
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


def to_json(data: Any) -> str:
    """Return plain data as JSON."""
    return json.dumps(data, indent=2, allow_nan=False)


def to_yaml(data: Any) -> str:
    """Return plain data as YAML."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def from_json(text: str) -> Any:
    """Return the plain data that JSON holds.

    Raises:
        InvalidSpaceError: If the text is not JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_keys([key for key, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except InvalidSpaceError:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidSpaceError(f"The space is not written in JSON: {error}") from error


def from_yaml(text: str) -> Any:
    """Return the plain data that YAML holds.

    Raises:
        InvalidSpaceError: If the text is not YAML, or has aliases.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except InvalidSpaceError:
        raise
    except Exception as error:  # PyYAML lets errors of all kinds through, as for `!!bool maybe`
        raise InvalidSpaceError(f"The space is not written in YAML: {error or type(error).__name__}") from error


def save(data: Any, path: str | os.PathLike[str]) -> None:
    """Write plain data into a JSON or YAML file, as the end of its name says."""
    file = _checked(path)
    try:
        file.write_text(to_json(data) + "\n" if file.suffix == ".json" else to_yaml(data), encoding="utf-8")
    except OSError as error:
        raise InvalidSpaceError(f"The file of a space, {shown(str(path))}, cannot be written: {error}") from error


def load(path: str | os.PathLike[str]) -> Any:
    """Return the plain data of a JSON or YAML file.

    Raises:
        InvalidSpaceError: If the file cannot be read as its name says.
    """
    file = _checked(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpaceError(f"The file of a space, {shown(str(path))}, cannot be read: {error}") from error
    return from_json(text) if file.suffix == ".json" else from_yaml(text)


def _checked(path: str | os.PathLike[str]) -> pathlib.Path:
    if not isinstance(path, str | os.PathLike):
        raise InvalidSpaceError(f"The file of a space must be given as a path, but got {shown(path)}.")
    file = pathlib.Path(path)
    if file.suffix not in _SUFFIXES:
        raise InvalidSpaceError(
            f"The name of a space's file must end with one of {', '.join(_SUFFIXES)}, but got {shown(str(path))}."
        )
    return file


def _check_keys(keys: list[Any]) -> None:
    seen: set[str] = set()
    for key in map(str, keys):
        if key in seen:
            raise InvalidSpaceError(f"The space has the key {shown(key)} twice in one dict. Drop one of them.")
        seen.add(key)
