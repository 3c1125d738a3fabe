"""`Plan`: what a search would do, and what of it looks wrong, before a trial is run."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler, TPESampler

from optuna_flyte_dsl._compat.optuna import grid_size
from optuna_flyte_dsl._text import counted, shown
from optuna_flyte_dsl.errors import RefusedPointError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.sampling.auto_sampler import START, AutoSampler, has_gp, suits_gp
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.directions import direction_names
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Ordinal
from optuna_flyte_dsl.space.objective import Kind, Objective
from optuna_flyte_dsl.space.priors import unused_priors
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.space.space_text import Branch

_MANY_DECADES = 4  # a range of so many powers of ten is to be searched by its logarithm
_RANDOM_POINTS = 1000  # drawn to see how many points the constraints allow
_FEW_ALLOWED = 0.05
_EXHAUSTIVE = ("GridSampler", "BruteForceSampler")  # they end a search by themselves
_WITHOUT_CHOICES = ("CmaEsSampler",)
_WITHOUT_CONDITIONS = ("CmaEsSampler", "GPSampler")
_WITHOUT_LEARNING = ("RandomSampler", "QMCSampler", *_EXHAUSTIVE)


@dataclass(frozen=True, repr=False)
class Plan:
    """What a search would do. `print(plan)` shows all of it; a plan runs no trial, and opens no storage.

    What depends on a storage, or on a study that a function makes, is not checked.

    Attributes:
        objective: The name of the objective.
        n_trials: The number of trials that the call would run; with `resume`, the total of the study.
        concurrency: The largest number of trials at the same time.
        space: What is searched, with the arguments of the call.
        n_points: The number of points of the space: an int, or infinity. Infinity too if the objective samples by
            itself.
        expected_duplicates: How many trials would repeat a point that another trial has, on average, if each point were
            drawn uniformly at random. A sampler that learns repeats good points more often. With
            `duplicates="resample"`, only as many as there are too few points.
        constraints: The constraints on the parameters.
        directions: "minimize" or "maximize" for each objective; with an objective's name in front, if it has one.
        result_constraints: The names of the constraints that the objective returns.
        sampler: The name of the sampler's class; for "auto", the samplers that it chooses from.
        pruner: The name of the pruner's class; `None` if the objective cannot report.
        storage: Where the study is kept, without passwords.
        warm_start: The earlier trials with which the search begins, in words; `None` if it begins with none.
        engine: Where the trials run.
        limits: The limits of time, failures and pace that are set, in words.
        warnings: What looks wrong, each with the cure.
    """

    objective: str
    n_trials: int
    concurrency: int
    space: SearchSpace
    n_points: float
    expected_duplicates: float
    constraints: tuple[str, ...]
    directions: tuple[str, ...]
    result_constraints: tuple[str, ...]
    sampler: str
    pruner: str | None
    storage: str
    warm_start: str | None
    engine: str
    limits: tuple[str, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Return the plan as a tree."""
        branches = [
            Branch(f"space of {self.space}" if self.space else "space: the objective samples by `trial`"),
            Branch(f"duplicates: {self._duplicates_text()}"),
            *([Branch(f"constraints: {', '.join(self.constraints)}")] if self.constraints else []),
            Branch(f"directions: {', '.join(self.directions)}"),
            *([Branch(f"at most 0: {', '.join(self.result_constraints)}")] if self.result_constraints else []),
            Branch(f"sampler: {self.sampler}"),
            Branch(f"pruner: {self.pruner or 'none, because the objective cannot report'}"),
            Branch(f"storage: {self.storage}"),
            *([Branch(f"begins with: {self.warm_start}")] if self.warm_start is not None else []),
            Branch(f"trials run: {self.engine}"),
            _listing("limits", self.limits, "none"),
            _listing("looks wrong", self.warnings, "nothing"),
        ]
        head = f"{self.objective}: {counted(self.n_trials, 'trial')}, {self.concurrency} at once"
        return "\n".join(Branch(head, tuple(branches)).lines())

    def _duplicates_text(self) -> str:
        if not self.space:
            return "unknown, because the objective samples by `trial`"
        if not self.expected_duplicates:
            return "none to be expected"
        return f"about {self.expected_duplicates:.0f} of {self.n_trials}, if points were drawn at random"

    def _repr_html_(self) -> str:
        """Return the plan as notebooks show it."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __repr__(self) -> str:
        return (
            f"<plan of {self.objective}: {counted(self.n_trials, 'trial')}, {counted(len(self.warnings), 'warning')}>"
        )


def _listing(title: str, texts: Sequence[str], usual: str) -> Branch:
    return Branch(title, tuple(map(Branch, texts))) if texts else Branch(f"{title}: {usual}")


def expected_duplicates(n_points: float, n_trials: int) -> float:
    """Return how many of some uniform draws repeat an earlier one, on average: `n - N (1 - (1 - 1/N)^n)`."""
    if math.isinf(n_points):
        return 0.0
    if n_points <= 1:
        return float(max(0, n_trials - 1))
    distinct = -n_points * math.expm1(n_trials * math.log1p(-1 / n_points))
    return max(0.0, n_trials - distinct)


def make_plan(
    options: Options, objective: Objective, space: SearchSpace, cluster: str | None, is_kept: bool = False
) -> Plan:
    """Return the plan of a search.

    Args:
        space: The space with the arguments of the call.
        cluster: The cluster on which the trials run, in words; `None` if they run on this machine.
        is_kept: Whether a study that the user does not store is kept in a checkpoint of this pod.
    """
    n_points = math.inf if objective.suggests_itself else space.n_points
    directions = objective.directions_with(_given_directions(options)) or (optuna.study.StudyDirection.MINIMIZE,)
    names = objective.returns.names or [""] * len(directions)
    words = [direction_names([each]) for each in directions]
    sampler = _sampler_name(options, objective, space, len(directions))
    return Plan(
        objective=objective.name,
        n_trials=options.n_trials,
        concurrency=options.concurrency,
        space=space,
        n_points=n_points,
        expected_duplicates=_repeated(options, n_points, sampler),
        constraints=tuple(each.name for each in options.constraints_of(objective)),
        directions=tuple(f"{name}: {word}" if name else word for name, word in zip(names, words, strict=True)),
        result_constraints=tuple(objective.returns.constraints.values()),
        sampler=sampler,
        pruner=_pruner_name(options, objective),
        storage=_storage_text(options, objective, is_kept),
        warm_start=_warm_start_text(options),
        engine=cluster or _local_engine(options, objective),
        limits=tuple(_limits(options)),
        warnings=tuple(_warnings(options, objective, space, n_points, sampler, cluster, is_kept)),
    )


def _given_directions(options: Options) -> Sequence[Any] | None:
    return options.study.directions if isinstance(options.study, optuna.Study) else options.given_directions


def _repeated(options: Options, n_points: float, sampler: str) -> float:
    if sampler in _EXHAUSTIVE:
        return 0.0
    if options.duplicates == "resample":
        return 0.0 if options.stop_when_exhausted else max(0.0, options.n_trials - n_points)
    return expected_duplicates(n_points, options.n_trials)


def _class_name(given: Any, usual: str) -> str:
    """Return the name of the class that an option gives: as an object, as the class, or by a function."""
    if given is None:
        return usual
    if isinstance(given, BaseSampler | BasePruner):
        return type(given).__name__
    if isinstance(given, functools.partial):
        return _class_name(given.func, usual)
    return given.__name__ if isinstance(given, type) else f"what {shown(given)} makes"


def _sampler_name(options: Options, objective: Objective, space: SearchSpace, n_objectives: int) -> str:
    if isinstance(options.study, optuna.Study):
        return type(options.study.sampler).__name__
    if options.sampler is not None:
        return _class_name(options.sampler, AutoSampler.__name__)
    distributions = {name: marker.stored.to_distribution() for name, marker in space.items()}
    may_suit = objective.suggests_itself or (not space.conditions and suits_gp(distributions, n_objectives))
    gp = f"{GPSampler.__name__} where it suits, else " if may_suit and has_gp() else ""
    model = f"{gp}{TPESampler.__name__}"
    return f"{AutoSampler.__name__}: {START} points, then {model}"


def _pruner_name(options: Options, objective: Objective) -> str | None:
    if not objective.takes_trial:
        return None
    if isinstance(options.study, optuna.Study):
        return type(options.study.pruner).__name__
    return _class_name(options.pruner, "NopPruner" if options.deterministic else "MedianPruner")


def _storage_text(options: Options, objective: Objective, is_kept: bool) -> str:
    storage = options.storage
    if isinstance(options.study, optuna.Study):
        return f"the given study `{options.study.study_name}`"
    if options.study is not None:
        return f"a study that {shown(options.study)} makes"
    if storage is None:
        return "the checkpoint of this pod" if is_kept else "memory, so that the study ends with this process"
    text = _place_of(os.fspath(storage)) if isinstance(storage, str | os.PathLike) else ""
    name = options.study_name or (objective.name if options.resume else None)
    study = f"the study `{name}`" if name is not None else "a new study"
    total = "; `n_trials` is its total" if options.resume else ""
    return f"{study} in {text or type(storage).__name__}{total}"


def _place_of(storage: str) -> str:
    """Return the address of a storage, without its user, its password and its options."""
    if "://" not in storage:
        return storage
    import sqlalchemy  # loaded late: not every plan needs it

    try:
        url = sqlalchemy.make_url(storage)
        return f"{url.drivername}://{url.host or ''}/{url.database or ''}"
    except Exception:  # noqa: BLE001 - the search names what is wrong with the URL
        return f"{storage.partition('://')[0]}://..."


def _warm_start_text(options: Options) -> str | None:
    source = options.warm_start
    if source is None:
        return None
    texts = []
    for each in source if isinstance(source, list | tuple) else [source]:
        if isinstance(each, optuna.Study):
            texts.append(f"the study `{each.study_name}`")
        else:
            texts.append(_place_of(os.fspath(each)) if isinstance(each, str | os.PathLike) else type(each).__name__)
    return f"the trials that fit of {', '.join(texts)}"


def _local_engine(options: Options, objective: Objective) -> str:
    if options.executor == "process":
        devices = f", on the devices {list(options.gpus)}" if options.gpus is not None else ""
        return f"in worker processes of this machine{devices}"
    if objective.kind is Kind.ASYNC_FUNCTION:
        return "in the event loop of this process"
    return "in threads of this process"


def _limits(options: Options) -> Iterator[str]:
    timeout, trial_timeout = options.timeouts
    if timeout is not None:
        yield f"the search ends after {timeout:g} s"
    if trial_timeout is not None:
        yield f"a trial fails after {trial_timeout:g} s"
    if options.retries:
        yield f"a trial that raises is run {counted(options.retries, 'more time')}"
    if options.failure_limits is not None:
        before, after = options.failure_limits
        later = f", or {after} once a trial has succeeded" if after != before else ""
        yield f"the search ends after {before} failures in a row{later}"
    if options.delay:
        yield f"{options.delay:g} s lie between the starts of two trials"


def _warnings(
    options: Options,
    objective: Objective,
    space: SearchSpace,
    n_points: float,
    sampler: str,
    cluster: str | None,
    is_kept: bool,
) -> Iterator[str]:
    yield from _space_warnings(space)
    yield from _size_warnings(options, n_points, sampler)
    yield from _sampler_warnings(options, space, sampler)
    if not objective.suggests_itself:
        yield from _constraint_warnings(options, objective, space)
    if cluster is not None and not is_kept and options.storage is None and options.study is None:
        yield (
            "The study is kept in memory, and its trials run on a cluster: if this process dies, what they found is "
            'lost. Give `storage="search.journal"` and `resume=True`.'
        )
    cores = os.cpu_count() or 1
    if options.executor == "process" and cluster is None and options.concurrency > cores and options.gpus is None:
        yield (
            f"`concurrency={options.concurrency}` worker processes share {counted(cores, 'core')}. Lower "
            "`concurrency`, unless the trials wait for something else."
        )


def _space_warnings(space: SearchSpace) -> Iterator[str]:
    for name, marker in space.items():
        if isinstance(marker, Float | Integer) and not marker.log and marker.low > 0:
            decades = math.log10(marker.high) - math.log10(marker.low)
            if decades >= _MANY_DECADES and marker.step == (1 if isinstance(marker, Integer) else None):
                yield (
                    f"`{name}`: {marker!r} spans {decades:.0f} powers of ten, and nine of ten points lie in the "
                    f"last one. Write `{dataclasses.replace(marker, log=True, prior=None)!r}`."
                )
        if not isinstance(marker, Category) or marker.holds_markers:
            continue
        if len(marker.choices) == 1:
            yield f"`{name}`: {marker!r} has a single choice, so there is nothing to search. Add one, or fix it."
        numbers = [each for each in marker.choices if type(each) in (int, float)]
        is_plain = marker.names is None and not isinstance(marker, Ordinal)
        if is_plain and len(numbers) == len(marker.choices) > 2 and sorted(numbers) == numbers:
            yield (
                f"`{name}`: a sampler does not know that the choices of {marker!r} are numbers in an order. Write "
                f"`Ordinal({numbers!r})`."
            )


def _size_warnings(options: Options, n_points: float, sampler: str) -> Iterator[str]:
    n_trials, concurrency = options.n_trials, options.concurrency
    if n_trials == 1:
        yield "The search runs a single trial. Give `n_trials`."
    elif concurrency > n_trials:
        yield f"`concurrency={concurrency}` is more than the {n_trials} trials. Lower it, or raise `n_trials`."
    elif concurrency > 1 and 2 * concurrency > n_trials and sampler not in _WITHOUT_LEARNING:
        yield (
            f"{concurrency} of the {n_trials} trials start before any has ended, so that the sampler learns from few "
            "of them. Lower `concurrency`, or raise `n_trials`."
        )
    if (
        n_points < n_trials
        and options.duplicates == "allow"
        and not options.stop_when_exhausted
        and sampler not in _EXHAUSTIVE
    ):
        yield (
            f"The space has {counted(int(n_points), 'point')}, fewer than the {n_trials} trials, so that some repeat "
            'others. Write `stop_when_exhausted=True` and `duplicates="resample"`, or lower `n_trials`.'
        )
    size = grid_size(options.sampler) if isinstance(options.sampler, GridSampler) else n_points
    if sampler in _EXHAUSTIVE and n_trials < size < math.inf:
        yield (
            f"{sampler} goes through all of its {int(size)} points in an order of its own, and {n_trials} trials see "
            f"{n_trials / size:.1%} of them. Raise `n_trials`, widen the steps, or take another sampler."
        )


def _sampler_warnings(options: Options, space: SearchSpace, sampler: str) -> Iterator[str]:
    choices = [name for name, each in space.items() if isinstance(each, Category) and not isinstance(each, Ordinal)]
    if sampler in _WITHOUT_CHOICES and choices:
        yield f"{sampler} draws `{choices[0]}` at random, because it learns nothing of choices. Take a TPESampler."
    if sampler in _WITHOUT_CONDITIONS and space.conditions:
        name = next(iter(space.conditions))
        yield f"{sampler} draws `{name}` at random, because it is not always active. Take a TPESampler."
    if space.priors and not sampler.startswith(AutoSampler.__name__):
        yield unused_priors(space.priors, sampler)
    learns = sampler not in _WITHOUT_LEARNING
    if options.seed is not None and options.concurrency > 1 and not options.deterministic and learns:
        yield (
            f"With `seed={options.seed}` and {options.concurrency} trials at once, what is tried depends on which "
            "trial ends first. Write `deterministic=True`, or `concurrency=1`, for a search that repeats exactly."
        )


def _constraint_warnings(options: Options, objective: Objective, space: SearchSpace) -> Iterator[str]:
    constraints = options.constraints_of(objective)
    if not constraints:
        return
    generator = random.Random(0)  # noqa: S311 - no secret is drawn
    allowed = 0
    for _ in range(_RANDOM_POINTS):
        try:
            arguments = space.fill(lambda _, marker: domain.random_value(marker, generator))
        except RefusedPointError:
            continue
        allowed += all(constraint.value(arguments) <= 0 for constraint in constraints)
    if allowed < _FEW_ALLOWED * _RANDOM_POINTS:
        found = f"{allowed} of {_RANDOM_POINTS} random points" if allowed else f"none of {_RANDOM_POINTS} random points"
        yield f"The constraints allow {found}. Narrow the ranges, or mend the constraints."
