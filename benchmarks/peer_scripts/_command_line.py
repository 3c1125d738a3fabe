"""What the programs of the peers have in common. A program imports it by its bare name: its folder is on the path."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def print_seconds(search: Callable[[int, int, float], object]) -> None:
    """Run a search as the command line says, and print how long it has taken.

    Args:
        search: Is called with the number of trials, the number of trials at once, and the seconds of each trial.
    """
    n_trials, at_once, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    search(at_once, at_once, 0.0)
    begun = time.perf_counter()
    search(n_trials, at_once, seconds)
    print(f"SECONDS {time.perf_counter() - begun}", flush=True)
