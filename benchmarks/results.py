"""Prints the rows of the benchmarks, and keeps them in a JSON file, from which `benchmarks.page` makes the page."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "results.json"
_PACKAGES = ("flytekit", "optuna", "flytekitplugins-optuna", "torch")


def turns(
    contestants: dict[str, Callable[[], float]],
    rounds: int = 5,
    summary: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Return the median, or another summary, of what each contestant measures in rounds in which they take turns."""
    for measure in contestants.values():
        measure()  # a first call that is not recorded, for one-time work such as imports
    measured = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            measured[name].append(measure())
    return {name: summary(values) for name, values in measured.items()}


def machine() -> str:
    """Return the interpreter, the number of cores and the versions of the packages."""
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {', '.join(versions)}"


def show(
    title: str,
    rows: Mapping[str, float],
    unit: str = "x",
    *,
    limit: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Print some rows, and keep them.

    Args:
        limit: What is asked for: the largest allowed value of a row.
        notes: What is printed behind a row.
    """
    kept = [
        {"name": name, "value": value, "limit": (limit or {}).get(name), "note": (notes or {}).get(name, "")}
        for name, value in rows.items()
    ]
    block = {"machine": machine(), "unit": unit, "rows": kept}
    print(text_of(title, block), flush=True)
    results = read()
    results[title] = block
    FILE.write_text(json.dumps(results, indent=1) + "\n")


def read() -> dict[str, Any]:
    """Return all rows that were kept, by their titles."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def text_of(title: str, block: Mapping[str, Any]) -> str:
    """Return some rows as text."""
    lines = [f"\n{title}"]
    decimals = 2 if block["unit"] else 3
    for row in block["rows"]:
        asked = f"   (asked for: at most {row['limit']:.2f})" if row["limit"] is not None else ""
        note = f"   {row['note']}" if row["note"] else ""
        lines.append(f"  {row['name']:<52}{row['value']:8.{decimals}f}{block['unit']}{note}{asked}")
    return "\n".join(lines)
