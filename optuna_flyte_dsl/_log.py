"""The library's logger, `optuna_flyte_dsl`.

The logger obeys `optuna.logging.set_verbosity` and Python's own configuration of logging.
"""

import logging

import optuna

from optuna_flyte_dsl._text import printable


def _passes_verbosity(record: logging.LogRecord) -> bool:
    """Drop a record that Optuna's verbosity silences. INFO, Optuna's default verbosity, and below silence nothing."""
    verbosity = optuna.logging.get_verbosity()
    return verbosity <= optuna.logging.INFO or record.levelno >= verbosity


def _escape_message(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


logger = logging.getLogger("optuna_flyte_dsl")
logger.addFilter(_passes_verbosity)
logger.addFilter(_escape_message)
