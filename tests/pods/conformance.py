"""Objectives that go wrong in every way: what becomes of them is the same wherever they run."""

import dataclasses
import enum
import math
import os
import pathlib
import signal
from typing import Annotated, Literal

import flytekit as fl
import optuna
import pydantic
from flytekit.exceptions.user import FlyteRecoverableException

from optuna_flyte_dsl import Category, Float, Integer, Minimize, Ordinal, When, optimize
from optuna_flyte_dsl.testing import conformance_objectives


def count(folder: str, name: str) -> int:
    """Return how often this was called before."""
    path = pathlib.Path(folder, name)
    with path.open("a") as file:
        file.write("x")
    return path.stat().st_size - 1


@optimize
@fl.task
def good(x: Float(0, 1)) -> Minimize:
    return x


@optimize
@fl.task
def segfaults(x: Float(0, 1)) -> Minimize:
    if x > 0.5:
        os.kill(os.getpid(), signal.SIGSEGV)
    return x


@optimize
@fl.task
def takes_plain_values(x: Float(0, 1), number: int, ratio: float, text: str, is_on: bool) -> Minimize:
    return conformance_objectives.takes_plain_values(x, number, ratio, text, is_on)


@optimize
@fl.task
def hangs(folder: str, x: Float(0, 1)) -> Minimize:
    return conformance_objectives.hangs(folder, x)


@optimize
@fl.task
def meets(folder: str, x: Float(0, 1)) -> Minimize:
    return conformance_objectives.meets(folder, x)


@optimize
@fl.task
def fails(x: Float(0, 1)) -> Minimize:
    if x >= 0:
        raise ValueError("nothing works")
    return x


@optimize
@fl.task
def fails_at_times(x: Float(0, 1)) -> Minimize:
    if x > 0.66:
        raise ValueError("one in three")
    return x


@optimize
@fl.task
def returns_nan(x: Float(0, 1)) -> Minimize:
    return math.nan


class Kernel(enum.Enum):
    LINEAR = "linear"
    RBF = "rbf"


class Size(enum.Enum):
    SMALL = 16
    LARGE = 256


@optimize
@fl.task
def takes_choices(
    x: Float(0, 1),
    kernel: Category(Kernel),
    again: Annotated[Kernel, Category()],
    size: Category(Size),
    booster: Annotated[Literal["gbtree", "dart"], Category()],
    act: Category({"max": max, "min": min}),
    width: Ordinal([16, 32, 64]),
) -> Minimize:
    taken = (kernel in Kernel, again in Kernel, size in Size, booster in ("gbtree", "dart"), width in (16, 32, 64))
    if not all(taken):
        raise AssertionError(taken)
    return act(x, 0.5)


@dataclasses.dataclass
class SVM:
    C: Annotated[float, Float(0.1, 10, log=True)]
    kernel: Annotated[Kernel, Category()] = Kernel.RBF
    gamma: Annotated[float, Float(1e-3, 1), When("kernel", Kernel.RBF)] = 0.0


@dataclasses.dataclass
class Forest:
    n_trees: Annotated[int, Integer(10, 500)]
    name: str = "forest"


class Config(pydantic.BaseModel):
    depth: Annotated[int, pydantic.Field(ge=1, le=9), Integer()]
    booster: Annotated[Literal["gbtree", "dart"], Category()] = "gbtree"


@optimize
@fl.task
def takes_structures(
    config: Config,
    model: SVM | Forest,
    n_layers: Integer(0, 3),
    widths: Integer(16, 256) * "n_layers",  # noqa: F821
    scheduler: Category({"none": 0, "cosine": {"warmup": Integer(0, 9), "act": Category({"max": max, "min": min})}}),
    sizes: Annotated[list[int], Ordinal([16, 32]) * 2],
    momentum: Annotated[float, Float(0, 1), When("model", SVM)] = 0.5,
) -> Minimize:
    taken = (
        type(config) is Config,
        type(model) in (SVM, Forest),
        len(widths) == n_layers,
        scheduler == 0 or scheduler["act"] in (max, min),
        sizes[0] in (16, 32),
        type(model) is SVM or momentum == 0.5,
    )
    if not all(taken):
        raise AssertionError(taken)
    scheduled = 0 if scheduler == 0 else scheduler["act"](scheduler["warmup"], 5)
    chosen = model.C + model.gamma if isinstance(model, SVM) else model.n_trees
    return config.depth + sum(widths) + sum(sizes) + momentum + scheduled + chosen


@optimize
@fl.task
def returns_none(x: Float(0, 1)) -> Minimize:
    nothing = {}
    return nothing.get("value")


@optimize(pruner=optuna.pruners.ThresholdPruner(upper=0.5))
@fl.task
async def prunes(trial: optuna.Trial, x: Float(0, 1)) -> Minimize:
    return conformance_objectives.prunes(trial, x)


@optimize
@fl.task
def works_the_second_time(folder: str, x: Float(0, 1)) -> Minimize:
    return conformance_objectives.works_the_second_time(folder, x)


@optimize
@fl.task(retries=1)
def recovers(folder: str, x: Float(0, 1)) -> Minimize:
    times = count(folder, f"recovers-{x}")
    if x > 0.5 or times == 0:
        raise FlyteRecoverableException("again")
    return x


@fl.task(retries=1)
def recovers_as_a_part(folder: str, x: float) -> float:
    if count(folder, f"part-{x}") == 0 or x > 0.5:
        raise FlyteRecoverableException("for this attempt")
    return x


@optimize
@fl.workflow
def has_a_part_that_recovers(folder: str, x: Float(0, 1)) -> float:
    return recovers_as_a_part(folder=folder, x=x)


@optimize
def samples_and_prunes(trial: optuna.Trial) -> float:
    """A function, which runs where its search runs; or in a process of its own."""
    x = trial.suggest_float("x", 0, 1)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    trial.report(x, 0)
    if trial.should_prune():
        raise optuna.TrialPruned
    trial.set_user_attr("kind", kind)
    return x
