"""`Options`: every option of a search, with its type, check, default and documentation.

The parameters and docstrings of `optimize` and `Optimizer`, and the reference page, are made from `Options`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal, TypeAlias, cast, get_args

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from optuna_flyte_dsl import _option_checks as check
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._options_base import CheckedOptions
from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.space.directions import Direction, read_directions
from optuna_flyte_dsl.space.objective import Kind, Objective
from optuna_flyte_dsl.space.parameter_constraints import ConstraintFunction, ParameterConstraint, read_constraints

Callback: TypeAlias = Callable[[optuna.Study, FrozenTrial], Any]
Duplicates: TypeAlias = Literal["allow", "reuse", "resample"]
StorageOption: TypeAlias = str | os.PathLike[str] | BaseStorage | Callable[[], BaseStorage] | None
WarmStart: TypeAlias = (
    optuna.Study | str | os.PathLike[str] | BaseStorage | Sequence[optuna.Study | str | os.PathLike[str] | BaseStorage]
)

_FEW_TRIALS = 10  # with `max_consecutive_failures="auto"`, a search of up to so many trials runs to its end


_Seconds: TypeAlias = Annotated[float | timedelta | None, check.seconds]
_Flag: TypeAlias = Annotated[bool, check.flag]
_IS_CLUSTER = check.must(
    "be a Cluster, such as `Cluster(interruptible=True)`",
    lambda value: value is None or isinstance(value, Cluster),
    convert=lambda value: value or Cluster(),
)


@dataclass(frozen=True, repr=False, eq=False)
class Options(CheckedOptions):
    """The options of `optimize`, checked by themselves and against each other.

    Raises:
        InvalidOptionError: If an option breaks its rule, or contradicts another option.
    """

    concurrency: Annotated[int, check.count] = 1
    """The largest number of trials that run at the same time."""

    n_trials: Annotated[int, check.count] = 1
    """The number of trials that a call runs."""

    study: Annotated[optuna.Study | Callable[[], optuna.Study] | None, check.study] = None
    """An `optuna.Study`, to which every call adds its trials; or a function that makes a study. By default a new study
    is made."""

    delay: Annotated[float, check.delay] = 0
    """The least time between the starts of two trials, in seconds."""

    _: KW_ONLY

    direction: Direction | None = None
    """"minimize" or "maximize", for a single objective whose return annotation names no direction. By default
    "minimize"."""

    directions: Sequence[Direction] | None = None
    """A list with the direction of each objective, if there are several."""

    sampler: Annotated[BaseSampler | Callable[..., BaseSampler] | Literal["auto"] | None, check.sampler] = "auto"
    """An Optuna sampler, or a callable that makes a sampler for each search, such as the sampler's class. The default,
    "auto" or `None`, is an `AutoSampler`, which chooses the sampler of each trial by what is known of the search."""

    seed: Annotated[int | None, check.seed] = None
    """The seed of the sampler. With `concurrency=1`, a search with a seed repeats exactly."""

    pruner: Annotated[
        BasePruner | Callable[[], BasePruner] | None, check.maker_of(BasePruner, "optuna.pruners.MedianPruner()")
    ] = None
    """An Optuna pruner, or a callable that makes a pruner for each search.

    Pruning is possible for a single objective only. The default is Optuna's MedianPruner.
    """

    storage: Annotated[StorageOption, check.storage] = None
    """The place where the study is kept: a URL of Optuna's, the path of a journal file, a storage object, or a function
    that makes a storage. By default the study is kept in memory."""

    study_name: Annotated[str | None, check.study_name] = None
    """The study's name in its storage. If the storage has a study of this name, the search continues it."""

    resume: _Flag = False
    """Whether `n_trials` is the total of the study over all calls, kills and machines, instead of the number that each
    call adds. With `resume`, `study_name` is by default the objective's name."""

    takeover: _Flag = False
    """With `resume`: whether to close, and to try again, RUNNING trials of a process that cannot be
    checked from the searching process, such as a process on another host."""

    timeout: _Seconds = None
    """The time limit of the search, in seconds or as a timedelta. At the limit, no more trials start, running trials
    are stopped and fail, and the study is returned. A trial in a thread cannot be stopped: its function runs on."""

    trial_timeout: _Seconds = None
    """The time limit of each trial, in seconds or as a timedelta, counted from when its objective begins to run. A
    trial that exceeds the limit is stopped and fails. A trial in a thread cannot be stopped: its function runs on."""

    max_consecutive_failures: Annotated[int | Literal["auto"] | None, check.failures] = "auto"
    """The number of failures in a row that ends the search with `TooManyFailuresError`. `None` sets no limit. "auto"
    sets `max(5, min(max(10, 2 * concurrency), n_trials // 4))`, five times as many once a trial has succeeded, and no
    limit for up to 10 trials. For example, a search of 100 trials at concurrency 8 ends after 16 failures in a row, or
    after 80 once a trial has succeeded."""

    retries: Annotated[int, check.count_or_zero] = 0
    """How many more times a trial that raises is run, with the same parameters."""

    catch: Annotated[type[BaseException] | Sequence[type[BaseException]], check.catch] = (Exception,)
    """The exceptions that fail only their trial. Any other exception ends the search."""

    executor: Annotated[Literal["thread", "process"], check.one_of('"thread" or "process"', "thread", "process")] = (
        "thread"
    )
    """Where trials run on this machine: in a "thread", or each in a worker "process", which may crash and can be
    stopped."""

    gpus: Annotated[Sequence[int | str] | None, check.gpus] = None
    """With `executor="process"`: the devices for trials.

    Each running trial has one device of `gpus` as its `CUDA_VISIBLE_DEVICES`.
    """

    deterministic: _Flag = False
    """Whether a concurrent search repeats exactly, in whatever order its trials end.

    Needs `seed`, or a sampler object with a seed.
    """

    duplicates: Annotated[
        Duplicates, check.one_of(", ".join(map(repr, get_args(Duplicates))), *get_args(Duplicates))
    ] = "allow"
    """What happens when the sampler suggests a point that was tried already: "allow" runs it again, "reuse" takes the
    values of the finished trial, "resample" asks for another point."""

    stop_when_exhausted: _Flag = False
    """Whether the search ends when each point of its space was tried or is being tried."""

    constraints: Annotated[Sequence[ConstraintFunction] | None, check.constraints] = None
    """Functions of the objective's arguments, by their names: `lambda depth, width: depth * width - 4096`. A point is
    run only if each returns at most 0. A function may also return a bool: True forbids the point. In place of a point
    that is not allowed, the search looks for another one. If it finds none, the trial fails."""

    callbacks: Annotated[Sequence[Callback] | None, check.callbacks] = None
    """Functions that are called with the study and each finished trial, one at a time, in a thread. `study.stop()` in a
    callback ends the search."""

    initial_points: Annotated[Sequence[Mapping[str, Any]] | None, check.initial_points] = None
    """The parameters of the first trials, a dict for each. Parameters that a dict leaves out are sampled. A dict may
    hold whole arguments, such as an object of a class with searched fields: it may be what `train.best` returns."""

    warm_start: Annotated[WarmStart | None, check.optional(check.warm_start)] = None
    """An earlier study, or a storage with earlier studies, or a list of such. Their complete and pruned trials that fit
    the space are inserted before the first trial, so that the sampler learns from them. They do not count towards
    `n_trials`. The others are counted in a warning, with the reasons."""

    progress: _Flag = True
    """Whether to show a progress bar on a terminal, and a line every ten seconds elsewhere."""

    cluster: Annotated[Cluster | None, _IS_CLUSTER] = None
    """How trials run on a Flyte cluster: a `Cluster`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.given_directions and self.directions:
            object.__setattr__(self, "directions", tuple(self.directions))  # a copy that the caller cannot change
        self._check_study()
        self._check_executor()
        self._check_deterministic()
        if (n_points := len(self.initial_points or ())) > self.n_trials:
            raise InvalidOptionError(
                f"`initial_points` holds {n_points} points, more than `n_trials={self.n_trials}`. "
                "Raise `n_trials`, or drop some."
            )

    @property
    def given_directions(self) -> tuple[StudyDirection, ...] | None:
        """The directions of `direction` or `directions`; `None` if neither is given."""
        return read_directions(self.direction, self.directions)

    @property
    def timeouts(self) -> tuple[float | None, float | None]:
        """`timeout` and `trial_timeout` in seconds."""
        return cast("float | None", self.timeout), cast("float | None", self.trial_timeout)

    @property
    def caught(self) -> tuple[type[BaseException], ...]:
        """`catch` as a tuple."""
        return cast("tuple[type[BaseException], ...]", self.catch)

    @property
    def failure_limits(self) -> tuple[int, int] | None:
        """How many failures in a row end the search: before the first success, and after it. `None` for no limit."""
        limit = self.max_consecutive_failures
        if limit is None or (limit == "auto" and self.n_trials <= _FEW_TRIALS):
            return None
        if isinstance(limit, int):
            return limit, limit
        first = max(5, min(max(_FEW_TRIALS, 2 * self.concurrency), self.n_trials // 4))
        return first, 5 * first

    @property
    def makes_samplers(self) -> bool:
        """Whether each search makes its sampler, instead of using a given object or a given study's sampler."""
        return self.study is None and not isinstance(self.sampler, BaseSampler)

    def _check_study(self) -> None:
        if self.seed is not None and isinstance(self.sampler, BaseSampler):
            raise InvalidOptionError(
                f"`seed={self.seed}` and `sampler={type(self.sampler).__name__}(...)` contradict each other: a sampler "
                "that is made already has its seed. Give the seed to the sampler, or give its class."
            )
        if self.study is not None:
            for name in ("sampler", "seed", "pruner", "storage", "study_name"):
                if getattr(self, name) is not None:
                    its = "sampler" if name == "seed" else name.removeprefix("study_")
                    raise InvalidOptionError(
                        f"`{name}` and `study` were both given, but a study has its own {its}. Give it to "
                        f"`optuna.create_study({'sampler' if name == 'seed' else name}=...)`, or drop `study`."
                    )
        if self.resume and self.storage is None and self.study is None:
            raise InvalidOptionError(
                "`resume=True` needs `storage`, or `study`: a study in memory ends with its process. Write "
                "`storage='search.journal'` for a file, or give a database's URL."
            )
        if self.takeover and not self.resume:
            raise InvalidOptionError("`takeover=True` needs `resume=True`: without it, no trial is continued.")

    def _check_executor(self) -> None:
        if self.gpus is None:
            return
        if self.executor != "process":
            raise InvalidOptionError(
                '`gpus` needs `executor="process"`: threads of one process share its CUDA_VISIBLE_DEVICES.'
            )
        if self.concurrency > len(self.gpus):
            raise InvalidOptionError(
                f"`gpus` has {len(self.gpus)} devices, fewer than `concurrency={self.concurrency}`: each "
                "running trial has its own. Lower `concurrency`, or name a device twice to share it, as in `gpus=[0, "
                "0]`."
            )

    def _check_deterministic(self) -> None:
        if not self.deterministic:
            return
        for name in ("timeout", "trial_timeout", "pruner"):
            if getattr(self, name) is not None:
                raise InvalidOptionError(
                    f"`deterministic=True` and `{name}` were both given, but what {name} does depends on time. Drop "
                    "one."
                )
        if isinstance(self.study, optuna.Study) and not isinstance(self.study.pruner, MedianPruner | NopPruner):
            raise InvalidOptionError(
                "`deterministic=True`: the study has a pruner, and what that does depends on time. Make it with "
                "`pruner=optuna.pruners.NopPruner()`, or drop `deterministic`."
            )
        if self.seed is None and self.makes_samplers:
            raise InvalidOptionError(
                "`deterministic=True` needs `seed`, as in `seed=1`: a sampler without one draws anew each time."
            )

    def constraints_of(self, objective: Objective) -> tuple[ParameterConstraint, ...]:
        """Return the constraints on the parameters of an objective.

        Raises:
            InvalidOptionError: If a constraint takes an argument that the objective does not have.
        """
        return read_constraints(self.constraints or (), objective.name, objective.space.parameter_names)

    def check_objective(self, objective: Objective) -> None:
        """Check the options against the objective.

        Raises:
            InvalidOptionError: If an option cannot work with this objective.
            ArgumentError: If an initial point names a parameter that the objective does not have.
        """
        if self.resume and self.study is None and self.study_name is None and objective.name == "<lambda>":
            raise InvalidOptionError("`resume=True` needs `study_name` for a lambda, because a lambda has no name.")
        if self.pruner is not None and not objective.takes_trial and objective.kind is not Kind.TASK:
            raise InvalidOptionError(
                f"`pruner` has no effect, because `{objective.name}` cannot report: it does not take `trial`. Add the "
                "parameter `trial: optuna.Trial`, or drop `pruner`."
            )
        if self.n_trials == 1 < self.concurrency and "n_trials" not in self.given:
            logger.warning(
                "`%s` will run one trial, because `n_trials` is 1. Give `n_trials`, beside `concurrency=%d`.",
                objective.name,
                self.concurrency,
            )
        if self.deterministic and objective.takes_trial and not self.makes_samplers and self.concurrency > 1:
            raise InvalidOptionError(
                f"`deterministic=True`: `{objective.name}` takes `trial`, so it may sample while it runs, at the same "
                "time as others, and each trial needs a sampler of its own. Give `seed` and the sampler's class, as in "
                "`sampler=TPESampler`, and neither a sampler that is made already nor a study; or drop `trial`."
            )
        if not objective.suggests_itself:
            self.constraints_of(objective)
            for point in self.initial_points or ():
                objective.space.check_point(point)
            return
        needing = {"duplicates": self.duplicates != "allow", "stop_when_exhausted": self.stop_when_exhausted}
        needing["constraints"] = bool(self.constraints)
        if any(needing.values()):
            name = next(name for name, is_needing in needing.items() if is_needing)
            raise InvalidOptionError(
                f"`{name}` needs a search space that is known before a trial runs, but `{objective.name}` samples by "
                "itself. Mark its parameters in the signature, as in `x: Integer(1, 5)`."
            )


# Python's errors about arguments show the `__qualname__`: it must be the function that the user calls.
Options.__init__.__qualname__ = "optimize"
