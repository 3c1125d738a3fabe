"""The library's logger, `optuna_flyte_dsl`. It obeys `optuna.logging.set_verbosity` and Python's own configuration."""

import logging

import optuna


def _passes_verbosity(record: logging.LogRecord) -> bool:
    """Drop a record that Optuna's verbosity silences. A verbosity below Optuna's default, INFO, changes nothing."""
    verbosity = optuna.logging.get_verbosity()
    return verbosity <= optuna.logging.INFO or record.levelno >= verbosity


logger = logging.getLogger("optuna_flyte_dsl")
logger.addFilter(_passes_verbosity)
