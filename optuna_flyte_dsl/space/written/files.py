"""JSON and YAML text of written spaces, and the files that hold it."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidSpaceError

_SUFFIXES = (".yaml", ".yml", ".json")


def to_json(data: Any) -> str:
    """Return plain data as JSON."""
    return json.dumps(data, indent=2, allow_nan=False)


def to_yaml(data: Any) -> str:
    """Return plain data as YAML."""
    from optuna_flyte_dsl.space.written import yaml_text  # loaded late

    return yaml_text.dump(data)


def from_json(text: str) -> Any:
    """Return the plain data that JSON holds.

    Raises:
        InvalidSpaceError: If the text is not JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        check_unique([key for key, _ in pairs])
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
    from optuna_flyte_dsl.space.written import yaml_text  # loaded late

    try:
        return yaml_text.load(text)
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


def check_unique(keys: list[Any]) -> None:
    """Check that no key of a dict stands twice."""
    seen: set[str] = set()
    for key in map(str, keys):
        if key in seen:
            raise InvalidSpaceError(f"The space has the key {shown(key)} twice in one dict. Drop one of them.")
        seen.add(key)
