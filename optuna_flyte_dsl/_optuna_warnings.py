"""Keeps warnings of Optuna's from a user who has not caused them: that a name is experimental or deprecated."""

import contextlib
import threading
import warnings
from collections.abc import Iterator

from optuna.exceptions import ExperimentalWarning

_lock = threading.Lock()  # the filters of warnings belong to the whole process


@contextlib.contextmanager
def without_optuna_warnings() -> Iterator[None]:
    """Ignore Optuna's warnings meanwhile."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # The version of Python decides whether such a warning is said to come from Optuna's modules or from ours.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"optuna(_flyte_dsl)?(\.|$)")
        yield
