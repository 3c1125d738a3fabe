"""Saves the outcomes of finished trials in a file when the storage does not accept them."""

import contextlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from optuna_flyte_dsl._compat.optuna import cached_trial
from optuna_flyte_dsl.errors import StorageUnavailableError
from optuna_flyte_dsl.search.outcome import Outcome


def untold_error(name: str, study: str, untold: Mapping[int, tuple[Trial, Outcome]]) -> StorageUnavailableError:
    """Save in a file the outcomes of trials that could not be told, and return the error that names the file."""
    lines: list[dict[str, Any]] = [
        {
            "study": study,
            "trial": number,
            "state": outcome.state.name,
            "values": outcome.values,
            "reason": outcome.reason,
            "params": cached_trial(trial).params,
        }
        for number, (trial, outcome) in untold.items()
    ]
    text = "".join(json.dumps(line, default=repr) + "\n" for line in lines)
    path = _save(text)
    numbers = ", ".join(str(number) for number in untold)
    where = f"They are saved in {path}." if path else f"They could not be saved either: {text}"
    return StorageUnavailableError(
        f"The storage of `{name}` does not answer, and trials {numbers}, which have finished, "
        f"could not be told. {where} Tell them when it is back, with `study.tell(trial, values)`.",
        tuple(lines),
        path,
    )


def _save(text: str) -> pathlib.Path | None:
    name = f"optuna-flyte-untold-{os.getpid()}-{time.time_ns()}.jsonl"
    for folder in (pathlib.Path.cwd, tempfile.gettempdir):  # the working directory may have been removed
        with contextlib.suppress(OSError):
            path = pathlib.Path(folder(), name)
            path.write_text(text)
            return path
    return None
