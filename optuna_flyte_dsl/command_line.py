"""The command `optuna-flyte-dsl`: shows the plan, or the space, of a search in a Python file."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from optuna_flyte_dsl._text import did_you_mean, printable
from optuna_flyte_dsl.errors import ArgumentError, InvalidObjectiveError, InvalidSpaceError, OptunaFlyteError
from optuna_flyte_dsl.session_attributes import SessionAttributes
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.space.written import files

_FORMS = ("yaml", "json", "schema", "text")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return 0; 1 if `plan --strict` finds something wrong; 2 for an error.

    Args:
        arguments: The arguments of the command line, by default those of the process.
    """
    given = _parser().parse_args(arguments)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is no part of the output
            text, n_warnings = _shown(given)
    except OptunaFlyteError as error:
        sys.stderr.write(f"{type(error).__name__}: {printable(str(error))}\n")
        return 2
    sys.stdout.write(text)
    return int(given.command == "plan" and given.strict and n_warnings > 0)


def _shown(given: argparse.Namespace) -> tuple[str, int]:
    """Return what the command shows, and how many things look wrong."""
    values = _values(given.values)
    search = load_search(given.file, given.name)
    if given.command == "space":
        space = search.space if given.space is None else SearchSpace.load(given.space, search.space)
        return _written(space.bind(**values), given.form), 0
    if given.space is not None:
        if search.space.declares("space"):
            raise ArgumentError(f"`{search.space.name}` has a parameter `space`, so `--space` cannot be given.")
        values["space"] = given.space
    plan = search.plan(**values)
    return f"{plan}\n", len(plan.warnings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optuna-flyte-dsl", description="Look at a search without running it. The file is imported."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="show what a search would run, and what looks wrong")
    space = commands.add_parser("space", help="write the search space, as YAML or in another form")
    for each in (plan, space):
        each.add_argument("file", help="a Python file")
        each.add_argument("name", help="the name of the decorated objective, or of the Optimizer, in the file")
        each.add_argument(
            "values",
            nargs="*",
            default=[],
            metavar="name=value",
            help="arguments and options, written as in YAML: 'x=0.5'",
        )
        each.add_argument("--space", help="a file of a search space, in place of the signature's")
    plan.add_argument("--strict", action="store_true", help="exit with 1 if something looks wrong")
    space.add_argument("--form", choices=_FORMS, default="yaml", help="the form of the output (default: yaml)")
    return parser


def load_search(file: str, name: str) -> SessionAttributes:
    """Import a file, and return the search that it defines under a name.

    Raises:
        InvalidObjectiveError: If there is no such file, or no such search in it.
    """
    path = pathlib.Path(file).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file():
        raise InvalidObjectiveError(f"{file!r} does not exist. Give the path of a Python file.")
    if spec is None or spec.loader is None:
        raise InvalidObjectiveError(f"{file!r} is no Python file. Give the path of a file that ends with `.py`.")
    sys.path.insert(0, os.fspath(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        if isinstance(error, OptunaFlyteError):
            raise
        raise InvalidObjectiveError(f"{file!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if isinstance(found, SessionAttributes):
        return found
    searches = [key for key, each in vars(module).items() if isinstance(each, SessionAttributes)]
    has = ", ".join(f"`{each}`" for each in searches) or "none"
    raise InvalidObjectiveError(
        f"{file!r} has no search called `{name}`; it has {has}.{did_you_mean(name, searches)} Give the name of a "
        "function or a task under `@optimize`, or of an `Optimizer`."
    )


def _values(texts: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ArgumentError(f"An argument must be written as `name=value`, but got {text!r}.")
        if name in values:
            raise ArgumentError(f"`{name}` was given twice. Give it once.")
        try:
            values[name] = files.from_yaml(value)
        except InvalidSpaceError as error:
            raise ArgumentError(f"The value of `{name}` must be YAML, but got {value!r}: {error}") from error
    return values


def _written(space: SearchSpace, form: str) -> str:
    match form:
        case "json":
            return f"{space.to_json()}\n"
        case "schema":
            return f"{json.dumps(space.json_schema(), indent=2)}\n"
        case "text":
            return f"{space}\n"
    return space.to_yaml()
