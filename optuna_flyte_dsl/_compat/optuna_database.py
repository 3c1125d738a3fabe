"""Private names of Optuna's storage in a database."""

import functools
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

_LARGEST_LIST = 500
"""How many ids one statement takes. An old SQLite takes 999 parameters."""


def database_of(storage: BaseStorage) -> RDBStorage | None:
    """Return the storage in a database that is behind the storage of a study; `None` if it is of another kind.

    A user's subclass is of another kind: what it overrides would not be called.
    """
    database = getattr(storage, "_backend", storage)
    return database if type(database) is RDBStorage else None


def create_trial(database: RDBStorage, study_id: int, template: FrozenTrial | None) -> FrozenTrial:
    """Store a new trial in one transaction, and return it. Its number is known without another read."""
    return database._create_new_trial(study_id, template)


def read_trials(
    database: RDBStorage, study_id: int, trial_ids: Collection[int] = (), newer_than: int = -1
) -> list[FrozenTrial]:
    """Return the trials of a study that have some ids, and all those with larger ids than `newer_than`."""
    return database._get_trials(study_id, None, set(trial_ids), newer_than)


def _without_transaction(database: RDBStorage) -> "Connection":
    """Return a connection whose statements need no BEGIN and COMMIT, each of which is a round trip to the server."""
    return database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def read_states(
    database: RDBStorage, study_id: int, trial_ids: Collection[int], newer_than: int | None
) -> dict[int, TrialState]:
    """Return, by id, the states of some trials of a study, and of all those with larger ids than `newer_than`.

    The read is a single statement without a transaction, so that it costs one round trip to the server.
    """
    import sqlalchemy  # loaded late: not every search needs it
    from optuna.storages._rdb.models import TrialModel

    statement: Any = sqlalchemy.select(TrialModel.trial_id, TrialModel.state)
    statement = statement.where(TrialModel.study_id == study_id)
    ids = sorted(trial_ids)
    states: dict[int, TrialState] = {}
    with _without_transaction(database) as connection:
        for start in range(0, max(len(ids), 1), _LARGEST_LIST):
            condition: ColumnElement[bool] = TrialModel.trial_id.in_(ids[start : start + _LARGEST_LIST])
            if newer_than is not None and not start:
                condition = sqlalchemy.or_(condition, TrialModel.trial_id > newer_than)
            found: Any = connection.execute(statement.where(condition))
            states.update((trial_id, state) for trial_id, state in found)
    return states


def has_user_attr(database: RDBStorage, trial_id: int, key: str) -> bool:
    """Return whether a trial has a user attribute, by a single statement without a transaction."""
    import sqlalchemy
    from optuna.storages._rdb.models import TrialUserAttributeModel as Attribute

    statement = sqlalchemy.select(Attribute.key).where(Attribute.trial_id == trial_id, Attribute.key == key)
    with _without_transaction(database) as connection:
        return connection.execute(statement).first() is not None


def write_together(
    database: RDBStorage,
    trial_id: int,
    params: Mapping[str, tuple[float, BaseDistribution]],
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any],
) -> None:
    """Store parameters and attributes of a trial that has not ended, in one transaction.

    Like Optuna's calls, the call can be repeated if its answer was lost: parameters that are stored stay as they are.

    Args:
        params: The new parameters, each as Optuna stores it, with its distribution.

    Raises:
        UpdateFinishedTrialError: If the trial has ended.
        KeyError: If there is no such trial.
    """
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError

    write = functools.partial(_write_together, database, trial_id, params, user_attrs, system_attrs)
    try:
        try:
            write()
        except IntegrityError:  # some of the parameters are stored
            write(some_are_stored=True)
    except SQLAlchemyError as error:
        raise StorageInternalError(f"The trial could not be stored: {error}") from error


def _write_together(
    database: RDBStorage,
    trial_id: int,
    params: Mapping[str, tuple[float, BaseDistribution]],
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any],
    *,
    some_are_stored: bool = False,
) -> None:
    from optuna.storages._rdb import models
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    with Session(database.engine) as session, session.begin():
        trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
        database.check_trial_is_updatable(trial_id, trial.state)
        if some_are_stored:
            name_column = models.TrialParamModel.param_name
            stored = set(session.scalars(select(name_column).where(models.TrialParamModel.trial_id == trial_id)))
            params = {name: each for name, each in params.items() if name not in stored}
        session.add_all(
            models.TrialParamModel(
                trial_id=trial_id,
                param_name=name,
                param_value=value,
                distribution_json=distribution_to_json(distribution),
            )
            for name, (value, distribution) in params.items()
        )
        kinds = ((models.TrialUserAttributeModel, user_attrs), (models.TrialSystemAttributeModel, system_attrs))
        for model, attributes in kinds:
            for key, value in attributes.items():
                database._set_trial_attr_without_commit(session, model, trial_id, key, value)
