"""`AutoSampler`: chooses the sampler of each trial by what is known of the search."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._compat.optuna import (
    add_to_study_attribute,
    gp_knows_running_trials,
    known_trials,
    set_number_of_good_trials,
    study_key,
)
from optuna_flyte_dsl._fork_guard import no_forks
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._optuna_warnings import without_optuna_warnings
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.sampling.quasi_random import QuasiRandomPoints
from optuna_flyte_dsl.sampling.time_budget import TimeBudget
from optuna_flyte_dsl.study.attributes import SAMPLERS
from optuna_flyte_dsl.study.feasibility import IS_OPTUNA_4

START = "quasi-random"
_N_START = 10  # the first trials of a study, whose points are quasi-random
_FEWEST_RESULTS = 5  # without so many results, points are quasi-random too
_MANY_RUNNING = 12  # with more running trials, a TPESampler takes fewer trials for good ones
LARGEST_SHARE = 0.03
_QUICK_SEARCH = 5.0  # a search of fewer seconds imports no torch, which takes 3 s
_IMPORT = 0.5  # seconds of the import in which no other thread runs
_FEW_POINTS = 0.1  # torch is not imported for a smaller share of the points
_USUAL_COST = 0.3  # seconds of a GPSampler's first ask, for each objective

# What a GPSampler is used for.
_MOST_RESULTS = 250  # its cost grows with their third power
_MOST_PARAMETERS = 20
_MOST_CHOICES = 20  # of all categorical parameters together
_MOST_OBJECTIVES = 3


_torch = threading.RLock()


class AutoSampler(BaseSampler):
    """Chooses the sampler of each trial: quasi-random points first, then Optuna's GPSampler or TPESampler.

    - The first 10 points are those of Sobol's sequence, scrambled by the seed. So are the next ones while fewer than 5
      trials have ended. In a finite space without conditions they are all different, as long as there are others.
    - A GPSampler finds better points than a TPESampler, above all with many trials at once. It is used if torch and
      scipy are installed, as by `pip install optuna-flyte-dsl[gp]`, and the space suits it: all trials have the same
      parameters, at most 20, with at most 20 choices together; there are at most 250 results, and at most 3
      objectives; and no more trials were pruned than were completed. On versions of Optuna whose GPSampler does not
      know of running trials, it is used only where no other trial is running.
    - A GPSampler takes 0.1 s and more for a point. Meanwhile the slot of its trial is idle, and so are the slots of the
      trials that end. With a `time_share` of 0.03, it is used as often as that leaves slots idle for at most 3 % of
      their time, and takes at most a third of the search's time. Another thread imports torch for it, once a search
      has run for five seconds, if that is for a tenth of the points and more; meanwhile, forks of the process wait.
    - The other points are those of a TPESampler. With one objective and more than 12 running trials, it takes the best
      7 % of the trials for good ones, where Optuna takes 10 %.

    The names of the samplers that were used are in the study's attribute `optuna_flyte_dsl:samplers`.

    Args:
        seed: The seed of all samplers.
        time_share: The largest share of the slots' time, from 0 to 1, for which slots may be idle because a GPSampler
            samples; `None` for no limit. By default 0.03, and no limit if a seed is given, because what is measured
            differs from run to run. A slot is what runs one trial at a time.
        constraints_func: As of Optuna's samplers: a function of a trial, of whose values at most 0 is feasible. Needed
            with Optuna 4 only.

    Attributes:
        latest: The name of the sampler of the latest trial; "" before the first one.

    >>> study = optuna.create_study(sampler=AutoSampler(seed=1))
    >>> study.optimize(lambda trial: trial.suggest_float("x", -10, 10) ** 2, n_trials=50)
    >>> study.best_value < 0.1
    True
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        time_share: float | str | None = "auto",
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
    ) -> None:
        if time_share == "auto":
            time_share = LARGEST_SHARE if seed is None else None
        if time_share is not None and not (isinstance(time_share, int | float) and 0 <= time_share <= 1):
            raise ValueError(f"`time_share` must be None or a number from 0 to 1, but got {shown(time_share)}.")
        self.latest: str = ""
        self._budget = TimeBudget(time_share)
        self._seed = seed
        self._constraints_func = constraints_func
        self._start = QuasiRandomPoints(_new_seed() if seed is None else seed)
        self._space = IntersectionSearchSpace()
        self._choosing = threading.RLock()
        self._tpe: BaseSampler | None = None
        self._gp: BaseSampler | None = None
        self._is_gp_broken = False
        self._import: threading.Thread | None = None
        self._places: dict[int, dict[str, int]] = {}  # by the number of the trial: the dimension of each parameter
        self._chosen: dict[int, tuple[str, int]] = {}  # by the number of the trial: the choice, and the point's index
        self._forget()

    def reseed_rng(self) -> None:
        """Draw new random numbers, as a new process of a search does. Optuna calls this."""
        with self._choosing:  # the first points go by the numbers of trials, which two processes do not share
            for sampler in (self._tpe, self._gp):
                if sampler is not None:
                    sampler.reseed_rng()

    def _forget(self) -> None:
        """Forget what is known of a study: the sampler may be given to another one."""
        self._known_study: tuple[int, int] | None = None  # which study it is
        self._noted: set[str] = set()  # the samplers that the study's attribute names
        self._has_results = False  # whether the study has enough results for a model
        self._n_running = 1  # how many trials ran at the last ask, with the one that was asked for
        self._n_own = 0  # how many of this sampler's trials run now
        self._is_past_gp = False  # whether the study has too many results for a GPSampler

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in ("_choosing", "_known_study")}
        # Another process has another clock, and other modules.
        return {**state, "_budget": TimeBudget(self._budget.share), "_import": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._choosing = threading.RLock()
        self._forget()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose the sampler of a trial. Optuna calls this before it samples."""
        with self._choosing:
            if self._known_study != (known := study_key(study)):
                self._forget()
                self._known_study = known
            running = {each.number for each in known_trials(study, (TrialState.RUNNING,))}
            self._n_running = len(running | {trial.number})
            # Trials of other processes run in slots of their own.
            self._n_own = len(running & self._chosen.keys())
            self._budget.begin_ask(self._n_own)
            name, index = self._choice(study, trial)
            self._n_own += 1
            self._chosen[trial.number] = name, index
            if name not in self._noted:
                self._noted.add(name)
                add_to_study_attribute(study, SAMPLERS, name)
            self.latest = name

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together. Optuna calls this."""
        name, _ = self._chosen.get(trial.number, (START, trial.number))
        if name == GPSampler.__name__:  # what a GPSampler returns too
            return {each: kind for each, kind in self._space.calculate(study).items() if not kind.single()}
        return {} if name == START else self._sampler(name, study).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample parameters together. Optuna calls this."""
        name, _ = self._chosen.get(trial.number, (START, trial.number))
        if name == START:
            return {}
        if name != GPSampler.__name__:
            return self._sampler(name, study).sample_relative(study, trial, search_space)
        try:
            with self._budget.spent(), _one_thread_of_torch():
                return self._sampler(name, study).sample_relative(study, trial, search_space)
        except Exception as error:  # noqa: BLE001 - a search goes on without the better sampler
            self._give_up_gp(error)
            self._chosen[trial.number] = TPESampler.__name__, trial.number
            tpe = self._sampler(TPESampler.__name__, study)
            return tpe.sample_relative(study, trial, tpe.infer_relative_search_space(study, trial))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter by itself. Optuna calls this."""
        name, index = self._chosen.get(trial.number, (START, trial.number))
        if name == START:
            places = self._places.setdefault(trial.number, {})
            return self._start.value(index, places.setdefault(param_name, len(places)), param_distribution, param_name)
        tpe = self._sampler(TPESampler.__name__, study)  # learns from trials with other parameters too
        return tpe.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Note how a trial has ended. Optuna calls this."""
        with self._choosing:
            self._budget.pass_time(self._n_own)
            self._n_own = max(0, self._n_own - 1)
            self._chosen.pop(trial.number, None)
            self._places.pop(trial.number, None)
        self._sampler(TPESampler.__name__, study).after_trial(study, trial, state, values)

    def _choice(self, study: optuna.Study, trial: FrozenTrial) -> tuple[str, int]:
        """Return the name of a trial's sampler, and the index of the trial's quasi-random point."""
        if not self._has_results:
            results = known_trials(study, (TrialState.COMPLETE, TrialState.PRUNED))
            self._has_results = len(results) >= _FEWEST_RESULTS
        takes_gp = self._has_results and has_gp() and self._suits_gp(study) and self._has_time_for_gp(study)
        if not self._has_results or trial.number < _N_START:
            earlier = [each for each in known_trials(study, tuple(TrialState)) if each.number < trial.number]
            return START, self._start.index_of(trial, [each for each in earlier if each.params])
        return (GPSampler if takes_gp and self._has_usable_gp() else TPESampler).__name__, trial.number

    def _has_time_for_gp(self, study: optuna.Study) -> bool:
        """Return whether a GPSampler has time for a trial, and what it needs is imported."""
        if self._budget.share is None:
            return True
        if not self._budget.allows(_USUAL_COST * len(study.directions)):
            return False
        if self._import is None and ("torch" in sys.modules or self._is_worth_an_import(study)):
            self._begin_import()
        return self._import is not None and not self._import.is_alive()

    def _is_worth_an_import(self, study: optuna.Study) -> bool:
        if IS_OPTUNA_4 and self._n_running > 1:  # its GPSampler does not know of running trials
            return False
        share = self._budget.affordable(_USUAL_COST * len(study.directions))
        return self._budget.elapsed >= _QUICK_SEARCH and share >= _FEW_POINTS

    def _begin_import(self) -> None:
        if "torch" not in sys.modules:
            self._budget.spend(_IMPORT)
        importing = threading.Thread(target=_import_gp, name="optuna_flyte_dsl imports torch")
        with contextlib.suppress(RuntimeError):  # the system starts no thread now
            importing.start()
            self._import = importing

    def _has_usable_gp(self) -> bool:
        """Return whether a GPSampler can be made, and suits the number of running trials: torch may be broken."""
        try:
            with no_forks():
                knows_running = gp_knows_running_trials()
            self._gp = self._gp or self._make_gp()
        except Exception as error:  # noqa: BLE001 - a search goes on without the better sampler
            self._give_up_gp(error)
            return False
        return knows_running or self._n_running == 1

    def _give_up_gp(self, error: Exception) -> None:
        self._is_gp_broken = True
        logger.warning("The GPSampler fails, and a TPESampler replaces it: %s", shown(error))

    def use_priors(self, priors: Mapping[str, Callable[[float], float]]) -> None:
        """Draw the first points from priors.

        Args:
            priors: For each parameter that has a prior, a function that takes a share, from 0 to 1, and returns the
                place, from 0 to 1, in the parameter's range below which this share of the prior lies. With `log`, the
                range is that of the logarithm.
        """
        self._start.priors = dict(priors)

    def use_start_of(self, other: AutoSampler) -> None:
        """Use the quasi-random points of another sampler: one sequence for the trials of a study."""
        self._start = other._start

    def _suits_gp(self, study: optuna.Study) -> bool:
        if self._is_past_gp or self._is_gp_broken or len(study.directions) > _MOST_OBJECTIVES:
            return False
        complete = known_trials(study, (TrialState.COMPLETE,))
        self._is_past_gp = len(complete) > _MOST_RESULTS
        n_pruned = len(known_trials(study, (TrialState.PRUNED,)))
        if self._is_past_gp or len(complete) < _FEWEST_RESULTS or n_pruned > len(complete):
            return False
        space = self._space.calculate(study)
        choices = [len(each.choices) for each in space.values() if isinstance(each, CategoricalDistribution)]
        return (
            0 < len(space) <= _MOST_PARAMETERS
            and sum(choices) <= _MOST_CHOICES
            and all(len(each.params) == len(space) for each in complete)
        )

    def _sampler(self, name: str, study: optuna.Study) -> BaseSampler:
        with self._choosing:
            if name == GPSampler.__name__:
                assert self._gp is not None
                return self._gp
            self._tpe = self._tpe or self._make_tpe(len(study.directions))
            return self._tpe

    def _make_gp(self) -> BaseSampler:
        with without_optuna_warnings():
            return GPSampler(
                seed=self._seed,
                n_startup_trials=_FEWEST_RESULTS,
                constraints_func=self._constraints_func,
                warn_independent_sampling=False,
            )

    def _make_tpe(self, n_objectives: int) -> BaseSampler:
        # Measured by benchmarks/quality.py: a constant liar, which takes running trials for bad ones, finds no better
        # points. Fewer good trials do with 16 trials at once, which leave time for fewer steps, and do not with 8.
        options: dict[str, Any] = {"constant_liar": False}
        if IS_OPTUNA_4:  # as Optuna 5 does by default
            options |= {"multivariate": n_objectives == 1, "warn_independent_sampling": False}
        if self._constraints_func is not None:
            options["constraints_func"] = self._constraints_func
        with without_optuna_warnings():
            sampler = TPESampler(seed=self._seed, n_startup_trials=_FEWEST_RESULTS, **options)
        if n_objectives == 1:
            set_number_of_good_trials(sampler, self._number_of_good_trials)
        return sampler

    def _number_of_good_trials(self, n_trials: int) -> int:
        """Return how many of some trials a TPESampler is to take for good ones."""
        if self._n_running > _MANY_RUNNING:
            return max(2, min(int(0.07 * n_trials + 1), 25))
        return min(math.ceil(0.1 * n_trials), 25)  # Optuna's own


def _import_gp() -> None:
    """Import what a GPSampler needs. If that fails, its next use raises the error again."""
    with no_forks(), contextlib.suppress(Exception):
        for module in ("torch", "scipy.optimize", "scipy.stats"):
            importlib.import_module(module)
        gp_knows_running_trials()


@contextlib.contextmanager
def _one_thread_of_torch() -> Iterator[None]:
    """Let torch compute in one thread, as Optuna 5 does for parts of an ask.

    The matrices of a GPSampler are small. Beside other work, more threads wait for each other. A thread of the process
    that uses torch for the first time meanwhile keeps to one thread too.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        yield
        return
    with _torch:  # two samplers at once would take each other's limit for torch's own
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@functools.cache
def has_gp() -> bool:
    """Return whether the packages that a GPSampler needs are installed. They are not imported."""
    return all(importlib.util.find_spec(package) is not None for package in ("torch", "scipy"))


def _new_seed() -> int:
    return random.SystemRandom().randrange(2**31)
