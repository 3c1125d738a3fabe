"""Writes the parts of the documentation that are made from the code: tables, and the picture of the house.

python docs/generate.py           writes them
python docs/generate.py --check   fails if one is not up to date
"""

import ast
import functools
import html
import inspect
import itertools
import pathlib
import re
import sys
import textwrap
import tomllib
import types
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin

from optuna_flyte_dsl import (
    Beta,
    Category,
    Fixed,
    Float,
    Integer,
    Normal,
    Ordinal,
    Repeated,
    When,
    WhenTrue,
    errors,
)
from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.options import Options

ROOT = pathlib.Path(__file__).parent.parent
PICTURE = ROOT / "docs/explanation/house.svg"


def type_text(kind: Any) -> str:
    """Return an annotation as a reader wants it: without the names of modules."""
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(type_text(each) for each in get_args(kind))
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", inspect.formatannotation(kind))
    return text.replace("NoneType", "None").replace("~", "")


def row(*cells: str) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def options_tables(
    options: type[Options] | type[Cluster], groups: Mapping[str, str]
) -> str:
    """Return the Markdown tables of a dataclass of options.

    Args:
        groups: The first option of each group, and the title of the group.
    """
    parts: list[str] = []
    parameters = options.signature().parameters
    assert groups.keys() <= parameters.keys()
    for name, text in options.documentation().items():
        if name in groups:
            parts += [
                "",
                f"### {groups[name]}",
                "",
                "| option, with its default | type | meaning |",
                "|---|---|---|",
            ]
        default = parameters[name].default
        shown = (
            "{}"
            if "factory" in repr(default)
            else "(Exception,)"
            if name == "catch"
            else repr(default)
        )
        parts.append(
            row(
                f"`{name}={shown}`", f"`{type_text(parameters[name].annotation)}`", text
            )
        )
    return "\n".join(parts[1:])


def first_sentence(docstring: str | None) -> str:
    """Return the first sentence of a docstring, on one line."""
    return " ".join(
        re.split(r"(?<=\.)\s", (docstring or "").strip(), maxsplit=1)[0].split()
    )


def arguments_of(docstring: str) -> dict[str, str]:
    """Return the texts of the section `Args` of a docstring, by argument."""
    _, _, section = inspect.cleandoc(docstring).partition("Args:\n")
    found: dict[str, str] = {}
    for line in itertools.takewhile(
        lambda line: line.startswith("    "), section.splitlines()
    ):
        name, colon, text = line.strip().partition(": ")
        if not line.startswith("     ") and colon:
            found[name] = text
        else:
            found[next(reversed(found))] += f" {line.strip()}"
    return found


def markers_table() -> str:
    """Return the Markdown tables of the markers and of their arguments."""
    markers = [
        Float,
        Integer,
        Category,
        Ordinal,
        Repeated,
        When,
        WhenTrue,
        Normal,
        Beta,
        Fixed,
    ]
    parts = ["| class | what it is |", "|---|---|"]
    for marker in markers:
        signature = inspect.signature(marker).replace(
            return_annotation=inspect.Signature.empty
        )
        text = str(signature).replace("'", "")
        parts.append(row(f"`{marker.__name__}{text}`", first_sentence(marker.__doc__)))
    parts += ["", "| argument | of | meaning |", "|---|---|---|"]
    for marker in markers:
        for name, text in arguments_of(marker.__doc__ or "").items():
            parts.append(row(f"`{name}`", f"`{marker.__name__}`", text))
    return "\n".join(parts)


def errors_table() -> str:
    """Return the Markdown table of the errors, each after its base class."""
    parts = ["| error | is also | meaning |", "|---|---|---|"]
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.OptunaFlyteError):
            bases = ", ".join(
                f"`{base.__name__}`"
                for base in error.__bases__
                if base is not Exception
            )
            parts.append(
                row(
                    f"`{error.__name__}`",
                    bases,
                    first_sentence(error.__doc__),
                )
            )
    return "\n".join(parts)


PARTS = {
    "docs/reference/optimize.md": {
        "options": functools.partial(
            options_tables,
            Options,
            {
                "concurrency": "What runs",
                "direction": "Directions, sampling and pruning",
                "storage": "Where the study is kept",
                "timeout": "Limits and failures",
                "executor": "Where trials run on this machine",
                "deterministic": "Repetition",
                "callbacks": "The rest",
            },
        ),
        "cluster": functools.partial(
            options_tables,
            Cluster,
            {
                "launches_per_second": "Pace, outages and the end of a pod",
                "interruptible": "What each execution gets",
                "trials_host": "How trials in pods reach their search",
                "max_parallelism": "Other options",
            },
        ),
    },
    "docs/reference/spaces.md": {"markers": markers_table},
    "docs/reference/errors.md": {"errors": errors_table},
}
"""The generated parts of each page, by the names in the page's comments."""


def page(path: pathlib.Path, parts: Mapping[str, Callable[[], str]]) -> str:
    """Return a page with its generated parts made anew."""
    text = path.read_text()
    for name, make in parts.items():
        begin, end = (
            f"<!-- {name}: made by docs/generate.py -->",
            f"<!-- {name}: end -->",
        )
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


def describe(module: str) -> str:
    """Return the first sentence of a module's or a package's docstring."""
    path = ROOT / "optuna_flyte_dsl" / module
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    return re.split(r"(?<=\.)\s", text.replace("`", ""), maxsplit=1)[0]


def contents(module: str) -> str:
    """Return the names of the modules and packages in a package; nothing for a module."""
    path = ROOT / "optuna_flyte_dsl" / module
    names = [
        each.stem + ("/" if each.is_dir() else "")
        for each in sorted(path.glob("*"), key=lambda each: each.name)
    ]
    return (
        ", ".join(name for name in names if not name.startswith("__"))
        if path.is_dir()
        else ""
    )


def picture() -> str:
    """Return the layers of the import contract, top to bottom, as an SVG."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "importlinter"
    ]["contracts"]
    layers = [
        [room.strip() for room in re.split("[|:]", layer)]
        for layer in contracts[0]["layers"]
    ]
    layers[-1] = [
        room for room in layers[-1] if room == "_compat" or not room.startswith("_")
    ]
    width, gap, parts, y = (
        560,
        12,
        [],
        68,
    )  # narrow, so that a telephone shows it in a size that can be read
    for layer in layers:
        each = (width - 40 - gap * (len(layer) - 1)) / len(layer)
        fit = functools.partial(textwrap.wrap, width=int(each / 6.8))
        blocks = [
            (module, fit(describe(module)), fit(contents(module))) for module in layer
        ]
        height = 34 + 17 * max(len(lines) + len(inside) for _, lines, inside in blocks)
        for index, (module, lines, inside) in enumerate(blocks):
            x = 20 + index * (each + gap)
            name = module + ("/" if inside else ".py")
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{each:.0f}" height="{height}" rx="8" fill="#eef4fb" '
                'stroke="#4a78a8"/>'
                f'<text x="{x + 14:.0f}" y="{y + 22}" font-weight="bold">{html.escape(name)}</text>'
            )
            texts = [(line, "#1c2733") for line in lines] + [
                (line, "#4a6078") for line in inside
            ]
            for number, (text, color) in enumerate(texts):
                parts.append(
                    f'<text x="{x + 14:.0f}" y="{y + 41 + 17 * number}" font-size="13" fill="{color}">'
                    f"{html.escape(text)}</text>"
                )
        y += height + gap
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 6}" font-family="sans-serif" '
        f'font-size="15" fill="#1c2733">\n<rect width="{width}" height="{y + 6}" fill="#ffffff"/>\n'
        '<text x="20" y="32">Each room may import the rooms below it, and none above it.</text>\n'
        '<text x="20" y="52">Every room may import the modules whose names begin with _.</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main() -> None:
    """Write or check the generated parts."""
    stale = []
    pages = [(ROOT / name, page(ROOT / name, parts)) for name, parts in PARTS.items()]
    for path, made in (*pages, (PICTURE, picture())):
        if not path.exists() or path.read_text() != made:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.write_text(made)
    if stale and "--check" in sys.argv:
        sys.exit(f"Not up to date: {', '.join(stale)}. Run `python docs/generate.py`.")


if __name__ == "__main__":
    main()
