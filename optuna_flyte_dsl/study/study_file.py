"""A study as a file: a journal of Optuna's, which holds all trials, attributes, directions and metric names."""

import json
import pathlib

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from optuna_flyte_dsl._compat.optuna import storage_of
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidStudyFileError
from optuna_flyte_dsl.study.storages import open_storage


def write_study(study: optuna.Study, path: pathlib.Path) -> None:
    """Write a study into a new journal file. The sampler and the pruner are no part of it.

    Raises:
        InvalidStudyFileError: If an attribute of the study, or of a trial, has a value that JSON does not have.
    """
    owners = {"the study": study.user_attrs}
    owners |= {f"trial {trial.number}": trial.user_attrs for trial in study.get_trials(deepcopy=False)}
    for owner, attributes in owners.items():
        for name, value in attributes.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise InvalidStudyFileError(
                    f"The attribute {name!r} of {owner} is {shown(value)}, which no file of Optuna's keeps: {error}. "
                    "Set the attribute to a number, a str, or a list or a dict of such."
                ) from error
    _copy(storage_of(study), study.study_name, JournalStorage(JournalFileBackend(str(path))))


def read_study(path: pathlib.Path) -> optuna.Study:
    """Return the study of a file as a study in memory.

    Raises:
        InvalidStudyFileError: If the file is no journal of Optuna's with a single study.
    """
    if not path.is_file():
        raise InvalidStudyFileError(f"The study's file {shown(str(path))} does not exist.")
    try:
        storage = open_storage(path)
        names = optuna.get_all_study_names(storage)
    except Exception as error:
        raise InvalidStudyFileError(f"The file {shown(str(path))} holds no study: {error}") from error
    if len(names) != 1:
        raise InvalidStudyFileError(
            f"The file {shown(str(path))} must hold one study, but it holds {len(names)}. Write one with "
            "`optuna.copy_study`, to a `JournalStorage` of a new file."
        )
    in_memory = InMemoryStorage()
    _copy(storage, names[0], in_memory)
    return optuna.load_study(study_name=names[0], storage=in_memory)


def _copy(source: BaseStorage, name: str, target: BaseStorage) -> None:
    optuna.copy_study(from_study_name=name, from_storage=source, to_storage=target)
