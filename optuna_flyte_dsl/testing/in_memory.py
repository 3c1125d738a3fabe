"""Makes the session of a search that keeps nothing, for tests and simulations."""

import copy
import dataclasses
import functools
import inspect
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from optuna_flyte_dsl.sampling.auto_sampler import AutoSampler
from optuna_flyte_dsl.session import Session


def in_memory(session: Session, seed: int, *, time_share: float | None, **changes: Any) -> Session:
    """Return a session with the same search, whose study is a new one in memory, and without a progress bar.

    A function that makes a study is called, for the directions, the sampler and the pruner of the study.

    Args:
        seed: The seed of the sampler, if the options give neither a seed nor a sampler that is made already.
        time_share: The `time_share` of an `AutoSampler`: 0 for no GPSampler, `None` for one however slow it is.
        **changes: Further options.
    """
    options = session.options
    changed: dict[str, Any] = dict.fromkeys(("study", "storage"))
    changed |= {"resume": False, "takeover": False, "progress": False, "study_name": "in memory"}
    study = options.study() if callable(options.study) else options.study
    if isinstance(study, optuna.Study):
        changed |= {"sampler": study.sampler, "direction": None}
        changed["directions"] = [each.name.lower() for each in study.directions]
        if session.objective.takes_trial:
            changed["pruner"] = study.pruner
    sampler = changed.get("sampler", options.sampler)
    if sampler is None:
        sampler = changed["sampler"] = functools.partial(AutoSampler, time_share=time_share)
    if isinstance(sampler, BaseSampler):
        changed["sampler"] = copy.deepcopy(sampler)  # the user's sampler is not changed
    elif options.seed is None and callable(sampler) and "seed" in inspect.signature(sampler).parameters:
        changed["seed"] = seed
    if isinstance(pruner := changed.get("pruner", options.pruner), BasePruner):
        changed["pruner"] = copy.deepcopy(pruner)
    return Session(session.objective, dataclasses.replace(options, **{**changed, **changes}))
