"""Writes the parts of the documentation that are made from the code: tables of options, and the picture of the house.

python docs/generate.py           writes them
python docs/generate.py --check   fails if one is not up to date
"""

import ast
import functools
import html
import pathlib
import re
import sys
import textwrap
import tomllib

from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.options import Options

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs/reference/optimize.md"
PICTURE = ROOT / "docs/explanation/house.svg"


def table(options: type[Options] | type[Cluster]) -> str:
    """Return the Markdown table of a dataclass of options."""
    rows = ["| option, with its default | meaning |", "|---|---|"]
    parameters = options.signature().parameters
    for name, text in options.documentation().items():
        default = parameters[name].default
        shown = "{}" if "factory" in repr(default) else "(Exception,)" if name == "catch" else repr(default)
        escaped = text.replace("|", "\\|")
        rows.append(f"| `{name}={shown}` | {escaped} |")
    return "\n".join(rows)


def page() -> str:
    """Return the reference page with its tables made anew."""
    text = PAGE.read_text()
    for name, options in (("options", Options), ("cluster", Cluster)):
        begin, end = f"<!-- {name}: made by docs/generate.py -->", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table(options)}\n{end}{rest.split(end)[1]}"
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
    names = [each.stem + ("/" if each.is_dir() else "") for each in sorted(path.glob("*"), key=lambda each: each.name)]
    return ", ".join(name for name in names if not name.startswith("__")) if path.is_dir() else ""


def picture() -> str:
    """Return the layers of the import contract, top to bottom, as an SVG."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [[room.strip() for room in re.split("[|:]", layer)] for layer in contracts[0]["layers"]]
    layers[-1] = [room for room in layers[-1] if room == "_compat" or not room.startswith("_")]
    width, gap, parts, y = 560, 12, [], 68  # narrow, so that a telephone shows it in a size that can be read
    for layer in layers:
        each = (width - 40 - gap * (len(layer) - 1)) / len(layer)
        fit = functools.partial(textwrap.wrap, width=int(each / 6.8))
        blocks = [(module, fit(describe(module)), fit(contents(module))) for module in layer]
        height = 34 + 17 * max(len(lines) + len(inside) for _, lines, inside in blocks)
        for index, (module, lines, inside) in enumerate(blocks):
            x = 20 + index * (each + gap)
            name = module + ("/" if inside else ".py")
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{each:.0f}" height="{height}" rx="8" fill="#eef4fb" '
                'stroke="#4a78a8"/>'
                f'<text x="{x + 14:.0f}" y="{y + 22}" font-weight="bold">{html.escape(name)}</text>'
            )
            texts = [(line, "#1c2733") for line in lines] + [(line, "#4a6078") for line in inside]
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
    for path, made in ((PAGE, page()), (PICTURE, picture())):
        if not path.exists() or path.read_text() != made:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.write_text(made)
    if stale and "--check" in sys.argv:
        sys.exit(f"Not up to date: {', '.join(stale)}. Run `python docs/generate.py`.")


if __name__ == "__main__":
    main()
