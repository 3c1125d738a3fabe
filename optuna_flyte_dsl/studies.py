"""Opens or makes the study of a search: its directions, its sampler, its metrics' names."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl.errors import DirectionError, InvalidOptionError
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.objective import Objective
from optuna_flyte_dsl.owners import Life
from optuna_flyte_dsl.share import close_lost, counts, left_running, lock_name, release, try_again
from optuna_flyte_dsl.space import SearchSpace
from optuna_flyte_dsl.storage import KeptStorage, StorageOption, check_storage, open_storage

Direction: TypeAlias = str | StudyDirection
StudyOption: TypeAlias = optuna.Study | Callable[[], optuna.Study] | None
SamplerOption: TypeAlias = BaseSampler | Callable[..., BaseSampler] | None
PrunerOption: TypeAlias = BasePruner | Callable[[], BasePruner] | None

GOALS_ATTRIBUTE = "optuna_flyte_dsl:goals"
"""The user attribute of a study that holds, for each call, how many trials it is to have when the call ends."""

IDENTITY_ATTRIBUTE = "optuna_flyte_dsl:identity"
"""The user attribute of a study that names it among all others."""

ARGUMENTS_ATTRIBUTE = "optuna_flyte_dsl:arguments"
"""The user attribute of a study that holds the fixed arguments of its first search."""

_OPTUNA_4 = int(optuna.__version__.split(".", 1)[0]) < 5


@dataclass(frozen=True)
class StudyOptions:
    """How the study of a search is opened or made.

    Args:
        study: A study, something that makes one, or `None` for a new one in memory.
        directions: What the user gave beside the objective's annotation; `None` for nothing.
        sampler: A sampler, something that makes one, or `None` for Optuna's default.
        seed: Seed of the sampler.
        pruner: A pruner, something that makes one, or `None` for Optuna's default.
        storage: Where a study that is not given is kept: a URL, a journal file's path, a storage, or what makes one.
        study_name: The study's name there.
        resume: Whether a search totals its number of trials with all that the study has.
        takeover: Whether running trials count as dead of whose process nothing is known.
        deterministic: Whether nothing may depend on time.
    """

    study: StudyOption = None
    directions: tuple[StudyDirection, ...] | None = None
    sampler: SamplerOption = None
    seed: int | None = None
    pruner: PrunerOption = None
    storage: StorageOption = field(default=None, repr=False)  # a URL may hold a password
    study_name: str | None = None
    resume: bool = False
    takeover: bool = False
    deterministic: bool = False

    def check(self, objective: Objective) -> None:
        """Check what can be known before a study is made.

        Raises:
            InvalidOptionError: If an option has a wrong type, or contradicts another.
            DirectionError: If the directions do not fit the objective.
        """
        if self.study is not None and not isinstance(self.study, optuna.Study) and not callable(self.study):
            raise InvalidOptionError(
                f"`study` must be an optuna.Study, or a function that makes one, but got {self.study!r}. "
                "Write `study=optuna.create_study(...)`."
            )
        _check_maker("sampler", self.sampler, BaseSampler, "optuna.samplers.TPESampler")
        if self.seed is not None and (
            isinstance(self.seed, bool) or not hasattr(self.seed, "__index__") or not 0 <= self.seed < 2**32
        ):
            raise InvalidOptionError(f"`seed` must be an integer from 0 to 2**32 - 1, but got {self.seed!r}.")
        if self.seed is not None and isinstance(self.sampler, BaseSampler):
            raise InvalidOptionError(
                f"`seed={self.seed}` and `sampler={type(self.sampler).__name__}(...)` contradict each other: a sampler "
                "that is made already has its seed. Give the seed to the sampler, or give its class."
            )
        if self.study is not None:
            options = {"sampler": self.sampler, "seed": self.seed, "pruner": self.pruner, "storage": self.storage}
            for name, value in {**options, "study_name": self.study_name}.items():
                if value is not None:
                    its = "sampler" if name == "seed" else name.removeprefix("study_")
                    raise InvalidOptionError(
                        f"`{name}` and `study` were both given, but a study has its own {its}. Give it to "
                        f"`optuna.create_study({'sampler' if name == 'seed' else name}=...)`, or drop `study`."
                    )
        self._check_kept()
        self._check_pruner(objective)
        if self.study is None:
            objective.directions_with(self.directions)
        elif isinstance(self.study, optuna.Study):
            self._check_study(objective, self.study)

    def open(self, objective: Objective, storage: BaseStorage | None = None) -> optuna.Study:
        """Return the study of a search.

        Args:
            objective: What it is for: its annotation may name directions and metrics.
            storage: Where a study that is not given is kept; it may be there already. By default in memory.

        Raises:
            InvalidOptionError: If `study` or `sampler` made something else.
            DirectionError: If the study's directions do not fit the objective.
        """
        if self.study is None:
            directions = objective.directions_with(self.directions) or (StudyDirection.MINIMIZE,)
            kept = storage if storage is not None or self.storage is None else open_storage(self.storage)
            study = optuna.create_study(
                storage=kept,
                study_name=self.study_name or (objective.name if storage is not None or self.resume else None),
                load_if_exists=storage is not None or self.resume or self.study_name is not None,
                directions=list(directions),
            )
            self._check_study(objective, study)
            study.sampler = self._make_sampler(len(study.get_trials(deepcopy=False)))
            study.pruner = self._make_pruner()
            given = self.pruner is not None
            self._check_pruning(objective.name, study.pruner, len(study.directions), given=given)
        else:
            study = self.study if isinstance(self.study, optuna.Study) else self.study()
            if not isinstance(study, optuna.Study):
                raise InvalidOptionError(f"`study` must make an optuna.Study, but it made {study!r}.")
            self._check_study(objective, study)
        _name_metrics(study, objective.returns.names)
        return study

    def _check_kept(self) -> None:
        check_storage(self.storage)
        for name, value in (("resume", self.resume), ("takeover", self.takeover)):
            if not isinstance(value, bool):
                raise InvalidOptionError(f"`{name}` must be True or False, but got {value!r}.")
        if self.study_name is not None and (not isinstance(self.study_name, str) or not self.study_name):
            raise InvalidOptionError(f"`study_name` must be a string, but got {self.study_name!r}.")
        if self.resume and self.storage is None and self.study is None:
            raise InvalidOptionError(
                "`resume=True` needs `storage`, or `study`: a study in memory ends with its process. Write "
                "`storage='search.journal'` for a file, or give a database's URL."
            )
        if self.takeover and not self.resume:
            raise InvalidOptionError("`takeover=True` needs `resume=True`: without it, no trial is gone on with.")

    def _check_pruner(self, objective: Objective) -> None:
        _check_maker("pruner", self.pruner, BasePruner, "optuna.pruners.HyperbandPruner()")
        said = self.directions or objective.returns.directions
        if self.pruner is not None and said is not None and self.pruner is not NopPruner:
            self._check_pruning(objective.name, self._make_pruner(), len(said), given=True)

    @staticmethod
    def _check_pruning(name: str, pruner: BasePruner, n_objectives: int, *, given: bool = False) -> None:
        """Refuse a pruner where there are several objectives: Optuna would, in the first trial that reports.

        Each study has a MedianPruner, whether it was asked for or not.
        """
        if n_objectives > 1 and not isinstance(pruner, NopPruner) and (given or type(pruner) is not MedianPruner):
            raise InvalidOptionError(
                f"`pruner`: `{name}` has {n_objectives} objectives, and Optuna prunes for one only. Drop the pruner, "
                "or let the objective raise `optuna.TrialPruned` by a rule of its own."
            )

    def _make_pruner(self) -> BasePruner:
        if self.pruner is None:
            return NopPruner() if self.deterministic else MedianPruner()
        made = self.pruner if isinstance(self.pruner, BasePruner) else self.pruner()
        if not isinstance(made, BasePruner):
            raise InvalidOptionError(f"`pruner` must make a pruner of Optuna's, but it made {made!r}.")
        return made

    def pruner_of_pods(self) -> BasePruner:
        """Make the pruner of a trial that reaches its storage from a pod by itself."""
        return self.study.pruner if isinstance(self.study, optuna.Study) else self._make_pruner()

    @property
    def makes_samplers(self) -> bool:
        """Whether samplers are made here, and not given with a study or as one that is made already."""
        return self.study is None and not isinstance(self.sampler, BaseSampler)

    def sampler_of(self, number: int) -> BaseSampler:
        """Make the sampler of one trial, whose draws depend on its number only."""
        return self._make_sampler(number + 1)

    def _check_study(self, objective: Objective, study: optuna.Study) -> None:
        directions = study.directions
        self._check_pruning(objective.name, study.pruner, len(directions))
        if self.directions is not None and list(self.directions) != directions:
            raise DirectionError(
                f"`direction` or `directions` says {_names(self.directions)}, but the study says {_names(directions)}. "
                "Drop one of them: a study has its own directions."
            )
        objective.directions_with(directions)

    def _make_sampler(self, n_trials: int) -> BaseSampler:
        """Make the sampler of a study that has some trials already: the same seed would repeat their points."""
        seed = None if self.seed is None else (self.seed + n_trials) % 2**32
        if isinstance(self.sampler, BaseSampler):
            return self.sampler
        if self.sampler is not None:
            sampler = self.sampler(**self._seed_for(self.sampler, seed))
            if not isinstance(sampler, BaseSampler):
                raise InvalidOptionError(f"`sampler` must make a sampler of Optuna's, but it made {sampler!r}.")
            return sampler
        if not _OPTUNA_4:
            return TPESampler(seed=seed)
        with _unwarned():
            # It takes into account the trials that run, as Optuna 5's does by default.
            return TPESampler(seed=seed, constant_liar=True)

    def _seed_for(self, factory: Callable[..., Any], seed: int | None) -> dict[str, int]:
        if seed is None:
            return {}
        if "seed" not in inspect.signature(factory).parameters:
            raise InvalidOptionError(
                f"`seed={self.seed}` was given, but `sampler={factory!r}` takes no `seed`. Let it take one, or drop it."
            )
        return {"seed": seed}


def _check_maker(name: str, value: Any, kind: type, example: str) -> None:
    """Check an option that is one of Optuna's objects, or makes one.

    Raises:
        InvalidOptionError: If it is neither, as far as that is known before it is called.
    """
    if isinstance(value, type) and not issubclass(value, kind):
        raise InvalidOptionError(f"`{name}` must be a {name} of Optuna's, but got the class {value!r}.")
    if value is not None and not isinstance(value, kind) and not callable(value):
        raise InvalidOptionError(
            f"`{name}` must be a {name} of Optuna's, or a function that makes one, but got {value!r}. "
            f"Write `{name}={example}`."
        )


class StudySource:
    """The one study of an `Optimizer`, made when it is first needed.

    Args:
        options: How it is made.
        objective: What it is for.
    """

    def __init__(self, options: StudyOptions, objective: Objective) -> None:
        self._options = options
        self._objective = objective
        self._lock = threading.Lock()
        self.opening = asyncio.Lock()  # held while an earlier process's trials are looked for
        self.kept = False  # whether another process can go on with it
        self.key: str | None = None  # by which another process finds it
        self.calls = itertools.count()
        self._study: optuna.Study | None = options.study if isinstance(options.study, optuna.Study) else None

    @property
    def given(self) -> bool:
        """Whether the study is the user's, and so is where it is kept."""
        return self._options.study is not None or self._options.storage is not None

    def get(self, storage: Callable[[], BaseStorage] | None = None) -> optuna.Study:
        """Return the study; the first call makes it. It may block: a storage is opened.

        Args:
            storage: Opens where a study is kept that the user has not given; by default it is in memory.
        """
        with self._lock:
            if self._study is None:
                opened = storage() if storage is not None and not self.given else None
                self._study = self._options.open(self._objective, opened)
                self.kept = opened is not None
            else:
                _name_metrics(self._study, self._objective.returns.names)
            return self._study


@dataclass(frozen=True)
class Resumption:
    """What is left to do of a search that an earlier process may have begun.

    Args:
        n_trials: How many trials are still to end, the running ones among them.
        running: Trials that the earlier process has asked for and that can be gone on with.
        finished: Trials that have ended.
    """

    n_trials: int
    running: tuple[FrozenTrial, ...] = ()
    finished: tuple[FrozenTrial, ...] = ()


def resume(study: optuna.Study, n_trials: int, call: int, adopts: Callable[[FrozenTrial], bool]) -> Resumption:
    """Go on with what an earlier process has left in a study, so that each call totals its number of trials.

    A trial that was running and cannot be gone on with ends as failed; it does not count, and its parameters are tried
    again, once. Only the first call of a process finds trials of an earlier one: later, what runs is another call's.

    Args:
        study: The study. It may block.
        n_trials: How many trials the call asks for.
        call: Which call on this study it is in this process, from 0.
        adopts: Whether a running trial can be gone on with.
    """
    running: tuple[FrozenTrial, ...] = ()
    if call == 0:
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if not adopts(trial):
                close_lost(study, trial)
        try_again(study)
        running = tuple(study.get_trials(deepcopy=False, states=[TrialState.RUNNING]))
    finished = finished_in(study)
    goals = list(study.user_attrs.get(GOALS_ATTRIBUTE, []))
    if call == len(goals):
        goals.append((goals[-1] if goals else len(finished)) + n_trials)
        study.set_user_attr(GOALS_ATTRIBUTE, goals)
    # What is missing to the goal of the call before is that call's.
    done = max(len(finished), goals[call - 1]) if call else len(finished)
    return Resumption(max(goals[call] - done, len(running)), running, finished)


def resume_total(
    study: optuna.Study,
    storage: KeptStorage,
    n_trials: int,
    takeover: bool,
    adopts: Callable[[FrozenTrial], bool],
) -> Resumption:
    """Go on with a study that totals its trials over all who work on it: look what dead processes have left running.

    Args:
        study: The study. It may block.
        storage: Where it is.
        n_trials: How many trials it is to have.
        takeover: Whether running trials count as dead of whose process nothing is known.
        adopts: Whether a running trial can be gone on with.
    """
    with storage.exclusive(lock_name(study)):
        running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        adopted, lives = release(study, storage, running, takeover=takeover, adopts=adopts)
        try_again(study)  # what was closed where nobody went on
    if lives[Life.UNKNOWN]:
        logger.warning("%s", left_running(lives[Life.UNKNOWN]))
    finished = finished_in(study)
    if len(finished) >= n_trials and not adopted and all(trial.state is TrialState.FAIL for trial in finished):
        logger.warning(
            "The study %r has its %d trials already, and all have failed: nothing is run. To try more, raise "
            "`n_trials`, or give another `study_name`.",
            study.study_name,
            len(finished),
        )
    return Resumption(n_trials, tuple(adopted), finished)


def identity_of(study: optuna.Study) -> str:
    """Return a name of a study that no other has, also not one of the same name in another storage. It may block."""
    identity = study.user_attrs.get(IDENTITY_ATTRIBUTE)
    if identity is None:
        study.set_user_attr(IDENTITY_ATTRIBUTE, uuid.uuid4().hex)
        identity = study.user_attrs[IDENTITY_ATTRIBUTE]  # another may have been quicker
    return str(identity)


def check_space(study: optuna.Study, space: SearchSpace) -> None:
    """Check that a study's trials so far and those of a space can be in one study. It may block.

    Raises:
        InvalidOptionError: If a parameter has become another, so that Optuna would refuse the first trial.
    """
    known: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        known.update(trial.distributions)
    for name, distribution in space.distributions().items():
        if name in known:
            try:
                check_distribution_compatibility(known[name], distribution)
            except ValueError as error:
                raise InvalidOptionError(
                    f"`{name}` is {distribution} now, but the trials of the study {study.study_name!r} have "
                    f"{known[name]}: {error} Give another `study_name`, or the space that it had."
                ) from error


def note_arguments(study: optuna.Study, space: SearchSpace, name: str) -> None:
    """Note what a study's objective is called with, and warn where that is something else than before. It may block."""
    fixed = {key: value for key, value in space.arguments.items() if isinstance(value, bool | int | float | str)}
    before = study.user_attrs.get(ARGUMENTS_ATTRIBUTE)
    if before is None:
        study.set_user_attr(ARGUMENTS_ATTRIBUTE, fixed)
    for key, value in fixed.items():
        if before is not None and key in before and before[key] != value:
            logger.warning(
                "`%s` goes on with the study %r with %s=%r, but its trials so far had %r. If their values cannot be "
                "compared, give another `study_name`.",
                name,
                study.study_name,
                key,
                value,
                before[key],
            )


def settle(study: optuna.Study, call: int) -> None:
    """Note that a call has ended by itself, also with fewer trials than it asked for: no other process goes on with it.

    Args:
        study: The study. It may block.
        call: Which call on this study it was.
    """
    goals = list(study.user_attrs.get(GOALS_ATTRIBUTE, []))
    finished = len(finished_in(study))
    if call == len(goals) - 1 and finished < goals[call]:
        goals[call] = finished
        study.set_user_attr(GOALS_ATTRIBUTE, goals)


def finished_in(study: optuna.Study) -> tuple[FrozenTrial, ...]:
    """Return the trials that count as finished. It may block."""
    return tuple(trial for trial in study.get_trials(deepcopy=False) if counts(trial))


def read_directions(
    direction: Direction | None, directions: Sequence[Direction] | None
) -> tuple[StudyDirection, ...] | None:
    """Return the directions that a user gave, by one option or the other.

    Raises:
        InvalidOptionError: If both were given, or one is neither "minimize" nor "maximize".
    """
    if direction is not None and directions is not None:
        raise InvalidOptionError(
            f"Give `direction` or `directions`, not both: got {direction!r} and {directions!r}. "
            "`direction` is for one objective, `directions` for several."
        )
    if direction is not None:
        if not isinstance(direction, str | StudyDirection):
            raise InvalidOptionError(
                f'`direction` must be "minimize" or "maximize", but got {direction!r}. '
                "For several objectives, write `directions=[...]`."
            )
        return (_read_direction(direction),)
    if directions is None:
        return None
    if isinstance(directions, str) or not isinstance(directions, Sequence) or not directions:
        raise InvalidOptionError(
            f"`directions` must be a list with a direction for each objective, but got {directions!r}. "
            'Write `directions=["maximize", "minimize"]`.'
        )
    return tuple(_read_direction(each) for each in directions)


def _read_direction(direction: Direction) -> StudyDirection:
    if direction in (StudyDirection.MINIMIZE, "minimize"):
        return StudyDirection.MINIMIZE
    if direction in (StudyDirection.MAXIMIZE, "maximize"):
        return StudyDirection.MAXIMIZE
    raise InvalidOptionError(
        f'`direction`, and each of `directions`, must be "minimize" or "maximize", but got {direction!r}.'
    )


def _names(directions: Sequence[StudyDirection]) -> str:
    return ", ".join(direction.name.lower() for direction in directions)


def _name_metrics(study: optuna.Study, names: tuple[str, ...] | None) -> None:
    """Name the study's metrics after the objective's fields, unless they have names."""
    if names is not None and study.metric_names is None:
        with _unwarned():
            study.set_metric_names(list(names))


_one_at_a_time = threading.Lock()  # the filters of warnings are the process's


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Silence Optuna's warnings of what is experimental: the user has not asked for it by name."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
