"""The objectives of the conformance suite. An engine whose objectives are tasks of its own has tasks of these names.

They use files in a folder to see each other, because they may run in different processes.
"""

import math
import os
import pathlib
import time
from typing import Annotated, TypeAlias

import optuna

from optuna_flyte_dsl.space.markers import Float, Minimize

Unit: TypeAlias = Annotated[float, Float(0, 1)]

PATIENCE = 60.0
"""The seconds after which an objective that waits gives up."""


def good(x: Unit) -> Minimize:
    """Return the parameter."""
    return x


def takes_plain_values(x: Unit, number: int, ratio: float, text: str, is_on: bool) -> Minimize:
    """Return the parameter if each argument has arrived as it was given."""
    given = (number, ratio, text, is_on)
    if given != (7, 0.1, "ö'\n", True) or [type(each) for each in given] != [int, float, str, bool]:
        raise AssertionError(given)
    return x


def fails(x: Unit) -> Minimize:
    """Raise an error."""
    if x >= 0:
        raise ValueError("nothing works")
    return x


def fails_at_times(x: Unit) -> Minimize:
    """Raise an error for a third of the points."""
    if x > 0.66:
        raise ValueError("one in three")
    return x


def returns_nan(x: Unit) -> Minimize:  # noqa: ARG001
    """Return NaN."""
    return math.nan


def returns_none(x: Unit) -> Minimize:  # noqa: ARG001
    """Return nothing."""
    nothing: dict[str, float] = {}
    return nothing.get("value")  # type: ignore[return-value]


def works_the_second_time(folder: str, x: Unit) -> Minimize:
    """Raise an error at the first attempt of each point."""
    path = pathlib.Path(folder, f"second-{x}")
    if not path.exists():
        path.touch()
        raise ValueError("the first time")
    return x


def hangs(folder: str, x: Unit) -> Minimize:
    """Wait until there is a file `over` in the folder."""
    pathlib.Path(folder, f"begun-{x}").touch()
    wait_for(folder, "over")
    return x


def meets(folder: str, x: Unit) -> Minimize:
    """Wait until two trials are there. Return how many are."""
    pathlib.Path(folder, f"met-{x}").touch()
    deadline = time.monotonic() + PATIENCE
    while (there := sum(name.startswith("met-") for name in os.listdir(folder))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return float(there)


def prunes(trial: optuna.Trial, x: Unit) -> Minimize:
    """Report twice, and be pruned if the pruner says so."""
    trial.set_user_attr("ran", True)
    trial.report(x, 0)
    if trial.should_prune():
        raise optuna.TrialPruned
    trial.report(x / 2, 1)
    return x


def wait_for(folder: str, name: str) -> None:
    """Wait until a folder has a file."""
    deadline = time.monotonic() + PATIENCE
    while not pathlib.Path(folder, name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
