"""Opens or makes the study of a search, with its sampler, its pruner and its metric names."""

import asyncio
import inspect
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from optuna_flyte_dsl._foreign_errors import is_opening_outage
from optuna_flyte_dsl._optuna_warnings import without_optuna_warnings
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import backoff, retry
from optuna_flyte_dsl._text import shown, text_of
from optuna_flyte_dsl.errors import DirectionError, InvalidOptionError, StorageUnavailableError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.space.directions import direction_names
from optuna_flyte_dsl.space.objective import Objective
from optuna_flyte_dsl.study.feasibility import IS_OPTUNA_4, constraints_for_sampler
from optuna_flyte_dsl.study.storages import open_storage

T = TypeVar("T")


def check_study_options(options: Options, objective: Objective) -> None:
    """Check that a study with these options would fit the objective, without making a study."""
    known = options.given_directions or objective.returns.directions
    if options.pruner is not None and known is not None and options.pruner is not NopPruner:
        _check_pruning(objective.name, make_pruner(options), len(known), is_given=True)
    if options.study is None:
        objective.directions_with(options.given_directions)
    elif isinstance(options.study, optuna.Study):
        _check_study(options, objective, options.study)


def open_study(
    options: Options, objective: Objective, new_name: str, storage: BaseStorage | None = None
) -> optuna.Study:
    """Return the study of a search. `open_study` may block.

    Args:
        new_name: The name of a study that the options do not name.
        storage: Used if the options give neither a study nor a storage. With no storage at all, the study is in memory.
    """
    if options.study is None:
        directions = objective.directions_with(options.given_directions) or (StudyDirection.MINIMIZE,)
        is_kept = storage is not None or options.resume
        study = optuna.create_study(
            storage=storage if storage is not None or options.storage is None else open_storage(options.storage),
            study_name=options.study_name or (objective.name if is_kept else new_name),
            load_if_exists=True,
            directions=list(directions),
        )
        _check_study(options, objective, study)
        study.sampler = make_sampler(
            options, len(study.get_trials(deepcopy=False)), is_constrained=bool(objective.returns.constraints)
        )
        study.pruner = make_pruner(options)
        _check_pruning(objective.name, study.pruner, len(study.directions), is_given=options.pruner is not None)
    else:
        study = options.study if isinstance(options.study, optuna.Study) else options.study()
        if not isinstance(study, optuna.Study):
            raise InvalidOptionError(f"`study` must make an optuna.Study, but it made {shown(study)}.")
        _check_study(options, objective, study)
    _name_metrics(study, objective.returns.names)
    return study


def make_sampler(options: Options, n_trials: int, *, is_constrained: bool = False) -> BaseSampler:
    """Return the sampler of a search.

    Args:
        is_constrained: Whether the objective returns constraints. A sampler of Optuna 4 must be told so.
        n_trials: The number of trials that the study has. The number of trials changes the seed, because the same seed
            would repeat the first points.
    """
    seed = None if options.seed is None else (options.seed + n_trials) % 2**32
    if isinstance(options.sampler, BaseSampler):
        return options.sampler
    see_constraints: dict[str, Any] = (
        {"constraints_func": constraints_for_sampler} if is_constrained and IS_OPTUNA_4 else {}
    )
    if callable(options.sampler):
        if "constraints_func" not in inspect.signature(options.sampler).parameters:
            see_constraints = {}
        with without_optuna_warnings():
            seeded = _seed_argument(options.sampler, options.seed, seed)
            sampler = _make("sampler", options.sampler, **seeded, **see_constraints)
        if not isinstance(sampler, BaseSampler):
            raise InvalidOptionError(f"`sampler` must make a sampler of Optuna's, but it made {shown(sampler)}.")
        return sampler
    # What is measured differs from run to run, and a search that repeats exactly must not depend on it.
    repeats = options.deterministic or (options.seed is not None and options.concurrency == 1)
    from optuna_flyte_dsl.sampling.auto_sampler import LARGEST_SHARE, AutoSampler  # loaded late, by the first search

    limit = {"time_share": None} if repeats else {"time_share": LARGEST_SHARE}
    return AutoSampler(seed, **limit, **see_constraints)


def make_pruner(options: Options) -> BasePruner:
    """Return the pruner of a search."""
    if options.pruner is None:
        return NopPruner() if options.deterministic else MedianPruner()
    made = options.pruner if isinstance(options.pruner, BasePruner) else _make("pruner", options.pruner)
    if not isinstance(made, BasePruner):
        raise InvalidOptionError(f"`pruner` must make a pruner of Optuna's, but it made {shown(made)}.")
    return made


def pruner_in_pod(options: Options) -> BasePruner:
    """Return the pruner for a pod that opens the study's storage itself."""
    return options.study.pruner if isinstance(options.study, optuna.Study) else make_pruner(options)


def wait_until_open(function: Callable[..., T], *args: Any, of: str, given_up: threading.Event) -> T:
    """Call a function that opens or reads a search's storage, and wait out an outage for a moment.

    Args:
        of: The objective's name, for messages.
        given_up: Set when nobody waits for the storage any longer.

    Raises:
        StorageUnavailableError: If the storage does not answer.
    """

    def patience() -> float:
        return 0.0 if given_up.is_set() else pauses.storage_opening

    waits = backoff(pauses.storage_first, pauses.storage_longest, patience)
    try:
        return retry(lambda: function(*args), waits, may_pass=is_opening_outage, wait=given_up.wait)
    except Exception as error:
        if not is_opening_outage(error):
            raise
        said = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise StorageUnavailableError(
            f"The storage of `{of}` does not answer: {type(error).__name__}: {said}. No trial was run. Check the "
            "address and the credentials in `storage`, or start the storage.",
            (),
            None,
        ) from error


class StudySource:
    """One study, made when it is first needed."""

    def __init__(self, options: Options, objective: Objective) -> None:
        self._options = options
        self._objective = objective
        self._lock = threading.Lock()
        # If a new study is stored and the response is lost, the next attempt finds it by this name.
        self._new_name = f"no-name-{uuid.uuid4()}"
        self.opening: asyncio.Lock = asyncio.Lock()  # held while the trials of an earlier process are looked for
        self.is_checkpointed: bool = False  # whether the study is kept in Flyte's checkpoint
        self.key: str | None = None  # the study's key in the checkpoint
        self.calls: Iterator[int] = itertools.count()
        self._study: optuna.Study | None = options.study if isinstance(options.study, optuna.Study) else None

    @property
    def is_given(self) -> bool:
        """Whether the user has given the study, or its storage."""
        return self._options.study is not None or self._options.storage is not None

    def get(self, storage: Callable[[], BaseStorage] | None = None) -> optuna.Study:
        """Return the study; the first call makes the study, and may block.

        Args:
            storage: Opens the storage of a study that the user has not given. By default the study is in memory.
        """
        with self._lock:
            if self._study is None:
                opened = storage() if storage is not None and not self.is_given else None
                self._study = open_study(self._options, self._objective, self._new_name, opened)
                self.is_checkpointed = opened is not None
            else:
                _name_metrics(self._study, self._objective.returns.names)
            return self._study


def _check_study(options: Options, objective: Objective, study: optuna.Study) -> None:
    directions = study.directions
    _check_pruning(objective.name, study.pruner, len(directions))
    given = options.given_directions
    if given is not None and list(given) != directions:
        raise DirectionError(
            f"`direction` or `directions` says {direction_names(given)}, but the study says "
            f"{direction_names(directions)}. Drop one of them: a study has its own directions."
        )
    objective.directions_with(directions)


def _check_pruning(name: str, pruner: BasePruner, n_objectives: int, *, is_given: bool = False) -> None:
    """Refuse a pruner for several objectives: Optuna refuses it only when a trial reports.

    A MedianPruner that the user has not given is accepted: it is the default that Optuna gives each study.
    """
    if n_objectives > 1 and not isinstance(pruner, NopPruner) and (is_given or type(pruner) is not MedianPruner):
        raise InvalidOptionError(
            f"`pruner`: `{name}` has {n_objectives} objectives, and Optuna prunes for one only. Drop the pruner, "
            "or let the objective raise `optuna.TrialPruned` by a rule of its own."
        )


def _make(option: str, factory: Callable[..., T], **arguments: Any) -> T:
    """Call the class or the function that makes the value of an option."""
    try:
        return factory(**arguments)
    except (TypeError, ValueError) as error:
        if not isinstance(factory, type):  # the error is one of the user's function
            raise
        raise InvalidOptionError(
            f"`{option}`: {factory.__name__} cannot be made without arguments: {text_of(error)} Give a {option} that "
            f"is made, as in `{option}={factory.__name__}(...)`."
        ) from error


def _seed_argument(factory: Callable[..., Any], given: int | None, seed: int | None) -> dict[str, int]:
    parameters = inspect.signature(factory).parameters
    if seed is None:
        if "seed" in parameters and parameters["seed"].default is inspect.Parameter.empty:
            raise InvalidOptionError(f"`sampler={shown(factory)}` needs a seed. Give `seed=1` beside it.")
        return {}
    if "seed" not in parameters:
        raise InvalidOptionError(
            f"`seed={given}` was given, but `sampler={shown(factory)}` takes no `seed`. Give a sampler with "
            "a parameter `seed`, or drop `seed`."
        )
    return {"seed": seed}


def _name_metrics(study: optuna.Study, names: tuple[str, ...] | None) -> None:
    """Name the study's metrics after the fields of the objective's NamedTuple, unless they have names.

    Raises:
        DirectionError: If the study has the same names in another order: values go by their places.
    """
    if names is None:
        return
    known = study.metric_names
    if known is None:
        with without_optuna_warnings():
            study.set_metric_names(list(names))
    elif list(names) != known and sorted(names) == sorted(known):
        raise DirectionError(
            f"The objectives are {shown(list(names))} now, but the study has {shown(known)}: its values would be mixed "
            "up. Put the fields of the return annotation into the order of the study, or give another `study_name`."
        )
