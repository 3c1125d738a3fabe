"""The library's logger, `optuna_flyte_dsl`.

The logger obeys `optuna.logging.set_verbosity` and Python's own configuration of logging.
"""

import logging

import optuna


def _passes_verbosity(record: logging.LogRecord) -> bool:
    """Drop a record that Optuna's verbosity silences. A verbosity below Optuna's default, INFO, silences nothing."""
    verbosity = optuna.logging.get_verbosity()
    return verbosity <= optuna.logging.INFO or record.levelno >= verbosity


def printable(text: str) -> str:
    """Return a text in which control characters are escaped: an error's text may hold sequences for a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _escape_message(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


logger = logging.getLogger("optuna_flyte_dsl")
logger.addFilter(_passes_verbosity)
logger.addFilter(_escape_message)
