"""The library's one logger, `optuna_flyte_dsl`, which hears Optuna's verbosity as well as Python's configuration."""

from __future__ import annotations

import logging

import optuna


def _heard(record: logging.LogRecord) -> bool:
    """Drop what `optuna.logging.set_verbosity` has silenced; lower than its default, it adds nothing here."""
    verbosity = optuna.logging.get_verbosity()
    return verbosity <= optuna.logging.INFO or record.levelno >= verbosity


logger = logging.getLogger("optuna_flyte_dsl")
logger.addFilter(_heard)
