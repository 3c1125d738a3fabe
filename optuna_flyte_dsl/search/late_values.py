"""Keeps the values of a trial that another process has taken for dead, and that has ended after all."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.search.outcome import Outcome, store_details
from optuna_flyte_dsl.study.attributes import LOST, RETRY_OF


def keep_late_values(
    study: optuna.Study, name: str, trial: FrozenTrial, outcome: Outcome, constraint_attributes: Mapping[str, Any]
) -> None:
    """Keep the values of a trial that another process has told as lost: in the retry that waits, or in a new trial.

    Args:
        name: The objective's name, for a message.
        constraint_attributes: The system attributes in which Optuna has the values of the constraints.
    """
    logger.warning(
        "Trial %d of `%s` was taken for dead, and has ended with %s: its values are kept.",
        trial.number,
        name,
        outcome.values,
    )
    storage = storage_of(study)
    for retrying in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        is_its_retry = retrying.user_attrs.get(RETRY_OF) == trial.number
        if is_its_retry and storage.set_trial_state_values(trial_id(retrying), TrialState.RUNNING):
            for parameter, distribution in trial.distributions.items():
                value = distribution.to_internal_repr(trial.params[parameter])
                storage.set_trial_param(trial_id(retrying), parameter, value, distribution)
            store_details(storage, trial_id(retrying), outcome, dict(constraint_attributes))
            study.tell(retrying.number, outcome.values)
            return
    late = optuna.trial.create_trial(
        values=outcome.values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={LOST: True, RETRY_OF: trial.number},
        system_attrs=dict(constraint_attributes),
    )
    study.add_trial(late)
