"""Measure the library beside its peers: `python -m benchmarks`, or `python -m benchmarks quality --seeds 5`.

Each figure is a median of rounds in which all contestants take turns, so that a machine that slows down slows all of
them. The results are printed, and kept in `benchmarks/results.json`.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings

import optuna

from benchmarks.results import machine

ROWS = ("local", "processes", "growth", "storages", "kept", "quality", "slots", "duplicates", "cluster", "peers")
"""The parts, each a module of this folder."""


def main(arguments: list[str]) -> None:
    """Measure the named parts, or all. What follows a single name goes to that part."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("flytekit").setLevel(logging.CRITICAL)
    named = [each for each in arguments if each in ROWS]
    if arguments and arguments[0] not in ROWS:
        sys.exit(f"There is no part {arguments[0]!r}; there are {', '.join(ROWS)}.")
    print(machine())
    for name in named or ROWS:
        options = [each for each in arguments if each not in ROWS] if len(named) == 1 else []
        part = importlib.import_module(f"benchmarks.{name}")
        part.main(options) if options else part.main()


if __name__ == "__main__":
    main(sys.argv[1:])
