"""`AutoSampler`: chooses the sampler of each trial by what is known of the search."""

from __future__ import annotations

import functools
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._option_checks import is_seed
from optuna_flyte_dsl._optuna_warnings import without_optuna_warnings
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.sampling.gp_points import FEWEST_RESULTS, MANY_RUNNING, GPPoints
from optuna_flyte_dsl.sampling.quasi_random import QuasiRandomPoints
from optuna_flyte_dsl.sampling.sampler_packages import missing_packages
from optuna_flyte_dsl.sampling.sampler_process import SamplerProcessError
from optuna_flyte_dsl.sampling.time_budget import TimeBudget
from optuna_flyte_dsl.study.attributes import SAMPLERS
from optuna_flyte_dsl.study.feasibility import IS_OPTUNA_4

START = "quasi-random"
_N_START = 10  # the first trials of a study, whose points are quasi-random
LARGEST_SHARE = 0.03

# What a GPSampler is used for.
_MOST_RESULTS = 250  # its cost grows with their third power
_MOST_PARAMETERS = 20
_MOST_CHOICES = 20  # of all categorical parameters together
_MOST_OBJECTIVES = 3


class _Choice(NamedTuple):
    """What was chosen for a trial."""

    sampler: str  # its name
    start_index: int  # of the trial's quasi-random point
    gp_space: dict[str, BaseDistribution]  # what a GPSampler would sample; empty if the search does not suit one


class AutoSampler(BaseSampler):
    """Chooses the sampler of each trial: quasi-random points first, then Optuna's GPSampler or TPESampler.

    - The first 10 points are those of Sobol's sequence, scrambled by the seed. So are the next ones while fewer than 5
      trials have ended. In a finite space without conditions they are all different, as long as there are others.
    - A GPSampler finds better points than a TPESampler, above all with many trials at once. It is used if torch and
      scipy are installed, as by the extra `gp`, and the space suits it: all trials have the same parameters, at most
      20, with at most 20 choices together; there are at most 250 results, and at most 3 objectives; and no more
      trials were pruned than were completed. On versions of Optuna whose GPSampler does not
      know of running trials, it is used only where no other trial is running.
    - A GPSampler takes 0.1 s and more for a point. It samples in a process of its own, which starts once a search has
      run for three seconds, if it has time for a tenth of the points and more. While trials run, it samples a point
      ahead for the next trial. If that point lacks the results of several trials, the next trial waits for another one,
      as long as waiting leaves slots idle for at most a `time_share` of their time: 3 % with 0.03. Without time for
      that, the trial takes it as it is. If there is none, the next point is a TPESampler's.
    - With more than 12 running trials, the GPSampler has few results for each point that it proposes. There, with one
      objective, its prior keeps the lengthscales of its kernel near half of the distance of two random points.
    - The other points are those of a TPESampler. With one objective and more than 12 running trials, it takes the best
      7 % of the trials for good ones, where Optuna takes 10 %.

    The names of the samplers that were used are in the study's attribute `optuna_flyte_dsl:samplers`.

    Args:
        seed: The seed of all samplers.
        time_share: The largest share of the slots' time, from 0 to 1, for which slots may be idle because they wait for
            a GPSampler; 0 for no GPSampler. With `None`, each trial waits for its point, and no point is sampled ahead.
            By default 0.03, and `None` if a seed is given, because what is measured differs from run to run. A slot
            is what runs one trial at a time.
        constraints_func: As of Optuna's samplers: a function of a trial, of whose values at most 0 is feasible. Needed
            with Optuna 4 only.

    Attributes:
        latest: The name of the sampler of the latest trial; "" before the first one.
        counts: For how many trials each sampler was chosen, by its name.

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
        if seed is not None and not is_seed(seed):
            raise ValueError(f"`seed` must be None or an integer from 0 to 2**32 - 1, but got {shown(seed)}.")
        self.latest: str = ""
        self._seed = seed
        self._budget = TimeBudget(time_share)
        self._points = GPPoints(seed, self._budget, has_constraints=constraints_func is not None)
        self._constraints_func = constraints_func
        self._start = QuasiRandomPoints(_new_seed() if seed is None else seed)
        self._n_earlier_studies = 0
        self._choosing = threading.RLock()
        self._tpe: BaseSampler | None = None
        self._is_gp_broken = False
        self._places: dict[int, dict[str, int]] = {}  # by the number of the trial: the dimension of each parameter
        self._chosen: dict[int, _Choice] = {}  # by the number of the trial
        self._forget()

    def reseed_rng(self) -> None:
        """Draw new random numbers, as a new process of a search does. Optuna calls this."""
        with self._choosing:  # the first points go by the numbers of trials, which two processes do not share
            if self._tpe is not None:
                self._tpe.reseed_rng()

    def _forget(self) -> None:
        """Forget what is known of a study: the sampler may be given to another one."""
        self._known_study: tuple[Any, int] | None = None  # which study it is
        self._space = IntersectionSearchSpace()
        self.counts: Counter[str] = Counter()
        self._has_results = False  # whether the study has enough results for a model
        self._n_running = 1  # how many trials ran at the last ask, with the one that was asked for
        self._n_own = 0  # how many of this sampler's trials run now
        self._is_past_gp = False  # whether the study has too many results for a GPSampler
        self._points.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("_choosing", "_known_study", "_budget")
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._budget = self._points.budget
        self._choosing = threading.RLock()
        self._forget()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose the sampler of a trial. Optuna calls this before it samples."""
        with self._choosing:
            if self._known_study != (known := study_key(study)):
                if self._known_study is not None:  # a TPESampler is for one study
                    self._tpe = None
                    self._n_earlier_studies += 1
                self._forget()
                self._known_study = known
            running = {each.number for each in known_trials(study, (TrialState.RUNNING,))}
            self._n_running = len(running | {trial.number})
            # Trials of other processes run in slots of their own.
            self._n_own = len(running & self._chosen.keys())
            self._budget.begin_ask(self._n_own)
            chosen = self._chosen[trial.number] = self._choice(study, trial)
            self._n_own += 1
            if chosen.sampler == GPSampler.__name__:  # it has still to send the point
                self.latest = chosen.sampler
            else:
                self._note_sampler(study, chosen.sampler)

    def _note_sampler(self, study: optuna.Study, name: str) -> None:
        """Note the name of the sampler of the latest trial."""
        with self._choosing:
            self.latest = name
            if name not in self.counts:
                add_to_study_attribute(study, SAMPLERS, name)
            self.counts[name] += 1

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together. Optuna calls this."""
        chosen = self._chosen_for(trial)
        if chosen.sampler == GPSampler.__name__:
            return chosen.gp_space
        return {} if chosen.sampler == START else self._tpe_for(study).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample parameters together. Optuna calls this."""
        chosen = self._chosen_for(trial)
        if chosen.sampler == START:
            return {}
        params = self._sample_gp(study, trial, chosen) if chosen.sampler == GPSampler.__name__ else None
        if params is None:
            tpe = self._tpe_for(study)
            if chosen.sampler == GPSampler.__name__:  # the point has come too late
                self._note_sampler(study, TPESampler.__name__)
                search_space = tpe.infer_relative_search_space(study, trial)
            params = tpe.sample_relative(study, trial, search_space)
        else:
            self._note_sampler(study, GPSampler.__name__)
        if chosen.gp_space and not self._is_gp_broken:
            try:
                with self._choosing:
                    self._points.ask_ahead(study, trial, chosen.gp_space, params)
            except Exception as error:  # noqa: BLE001 - a search goes on without the better sampler
                self._give_up_gp(error)
        return params

    def _sample_gp(self, study: optuna.Study, trial: FrozenTrial, chosen: _Choice) -> dict[str, Any] | None:
        try:
            return self._points.take(study, trial, chosen.gp_space)
        except Exception as error:  # noqa: BLE001 - a search goes on without the better sampler
            self._give_up_gp(error)
            return None

    def _chosen_for(self, trial: FrozenTrial) -> _Choice:
        return self._chosen.get(trial.number) or _Choice(START, trial.number, {})

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter by itself. Optuna calls this."""
        chosen = self._chosen_for(trial)
        if chosen.sampler == START:
            places = self._places.setdefault(trial.number, {})
            place = places.setdefault(param_name, len(places))
            return self._start.value(chosen.start_index, place, param_distribution, param_name)
        tpe = self._tpe_for(study)  # learns from trials with other parameters too
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
            self._points.give_back(trial.number)
        self._tpe_for(study).after_trial(study, trial, state, values)

    def _choice(self, study: optuna.Study, trial: FrozenTrial) -> _Choice:
        if not self._has_results:
            results = known_trials(study, (TrialState.COMPLETE, TrialState.PRUNED))
            self._has_results = len(results) >= FEWEST_RESULTS
        if not self._has_results or trial.number < _N_START:
            earlier = [each for each in known_trials(study, tuple(TrialState)) if each.number < trial.number]
            return _Choice(START, self._start.index_of(trial, [each for each in earlier if each.params]), {})
        space = self._space_for_gp(study)
        takes_gp = space and self._has_gp_point(study, trial, space)
        return _Choice((GPSampler if takes_gp else TPESampler).__name__, trial.number, space)

    def _has_gp_point(self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> bool:
        try:
            return self._points.has_point(study, trial, space)
        except Exception as error:  # noqa: BLE001 - a search goes on without the better sampler
            self._give_up_gp(error)
            return False

    def _give_up_gp(self, error: Exception) -> None:
        self._is_gp_broken = True
        text = str(error) if isinstance(error, SamplerProcessError) else shown(error)
        logger.warning("The GPSampler fails, and a TPESampler replaces it: %s.", text)

    def use_priors(self, priors: Mapping[str, Callable[[float], float]]) -> None:
        """Draw the first points from priors.

        Args:
            priors: For each parameter that has a prior, a function that takes a share, from 0 to 1, and returns the
                place, from 0 to 1, in the parameter's range below which this share of the prior lies. With `log`, the
                range is that of the logarithm.
        """
        self._start.priors = dict(priors)

    def join(self, other: AutoSampler) -> None:
        """Be a sampler of the same search as another one: for some of its trials."""
        self._start = other._start  # one sequence of quasi-random points
        self._points.patience = other._points.patience

    def hurry(self) -> None:
        """Wait for no point of the GPSampler any longer, for the search ends. Any thread may call this."""
        self._points.patience.end()

    def end_search(self) -> None:
        """Wait for points again, in another search."""
        self._points.patience.renew()

    def _space_for_gp(self, study: optuna.Study) -> dict[str, BaseDistribution]:
        """Return what a GPSampler samples; nothing if it does not suit the search."""
        if self._is_past_gp or self._is_gp_broken or not has_gp():
            return {}
        if self._budget.share == 0 or not (gp_knows_running_trials() or self._n_running == 1):
            return {}
        complete = known_trials(study, (TrialState.COMPLETE,))
        self._is_past_gp = len(complete) > _MOST_RESULTS
        n_pruned = len(known_trials(study, (TrialState.PRUNED,)))
        if self._is_past_gp or len(complete) < FEWEST_RESULTS or n_pruned > len(complete):
            return {}
        space = self._space.calculate(study)
        if not suits_gp(space, len(study.directions)) or any(len(each.params) != len(space) for each in complete):
            return {}
        return {name: kind for name, kind in space.items() if not kind.single()}

    def _tpe_for(self, study: optuna.Study) -> BaseSampler:
        with self._choosing:
            self._tpe = self._tpe or self._make_tpe(len(study.directions))
            return self._tpe

    def _make_tpe(self, n_objectives: int) -> BaseSampler:
        # Measured by benchmarks/quality.py: a constant liar, which takes running trials for bad ones, finds no better
        # points. Fewer good trials do with 16 trials at once, which leave time for fewer steps, and do not with 8.
        options: dict[str, Any] = {"constant_liar": False}
        if IS_OPTUNA_4:  # as Optuna 5 does by default
            options |= {"multivariate": n_objectives == 1, "warn_independent_sampling": False}
        if self._constraints_func is not None:
            options["constraints_func"] = self._constraints_func
        with without_optuna_warnings():
            # Two studies that take turns would get the same random numbers again and again.
            seed = None if self._seed is None else (self._seed + self._n_earlier_studies) % 2**32
            sampler = TPESampler(seed=seed, n_startup_trials=FEWEST_RESULTS, **options)
        if n_objectives == 1:
            set_number_of_good_trials(sampler, self._number_of_good_trials)
        return sampler

    def _number_of_good_trials(self, n_trials: int) -> int:
        """Return how many of some trials a TPESampler is to take for good ones."""
        if self._n_running > MANY_RUNNING:
            return max(2, min(int(0.07 * n_trials + 1), 25))
        return min(math.ceil(0.1 * n_trials), 25)  # Optuna's own


def suits_gp(space: Mapping[str, BaseDistribution], n_objectives: int) -> bool:
    """Return whether a space that all trials have is small enough for a GPSampler."""
    choices = [len(each.choices) for each in space.values() if isinstance(each, CategoricalDistribution)]
    is_small = len(space) <= _MOST_PARAMETERS and sum(choices) <= _MOST_CHOICES
    return is_small and n_objectives <= _MOST_OBJECTIVES


@functools.cache
def has_gp() -> bool:
    """Return whether the packages that a GPSampler needs are installed. They are not imported."""
    return not missing_packages(GPSampler)


def _new_seed() -> int:
    return random.SystemRandom().randrange(2**31)
