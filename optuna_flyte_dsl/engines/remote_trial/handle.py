"""`TrialHandle`: the text by which another process or a pod finds its trial. The handle contains no secret."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.trial import BaseTrial, Trial

from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl.engines.remote_trial.client import connect, token_of_trial
from optuna_flyte_dsl.engines.remote_trial.endpoint import open_channel
from optuna_flyte_dsl.errors import OptunaFlyteError
from optuna_flyte_dsl.study.attributes import PRUNED

TOKEN_ENV = "OPTUNA_FLYTE_DSL_TOKEN"  # noqa: S105 - the name of the variable
"""The environment variable that holds the token in a trial's process or pod, unless the user names another one."""


@dataclass(frozen=True)
class TrialHandle:
    """The address of a trial. Flyte shows the handle among a task's inputs, so the token is not in it."""

    address: str  # the server's `host:port`; or `env:NAME`, if the variable NAME holds the URL of the study's storage
    trial: int
    study: str
    token: str = TOKEN_ENV
    search: str = ""  # a unique id of the server, so that no two trials have the same key in Flyte's cache
    shares_secret: bool = False  # whether the variable `token` holds the secret of the search instead of the token
    certificate: str = ""  # the server's certificate, which is public; empty if the connection is not encrypted
    certificate_name: str = ""

    def to_text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> TrialHandle:
        return cls(**json.loads(text))

    def open(self) -> Trial:
        if self.address.startswith("env:"):
            storage = optuna.storages.get_storage(_variable(self.address.removeprefix("env:"), "the storage's URL"))
            study = optuna.load_study(study_name=self.study, storage=storage, pruner=_make_pruner.get()())
            return Trial(study, self.trial)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            token = _variable(self.token, "the token of the trial")
            if self.shares_secret:
                token = token_of_trial(token, self.trial)
            channel = open_channel(self.address, self.certificate.encode(), self.certificate_name)
            client, sampler, pruner = connect(channel, self.address, self.trial, token)
        study = optuna.load_study(study_name=self.study, storage=client, sampler=sampler, pruner=pruner)
        trial = Trial(study, self.trial)
        weakref.finalize(trial, client.close)
        return trial


_make_pruner: ContextVar[Callable[[], BasePruner]] = ContextVar("make_pruner", default=optuna.pruners.MedianPruner)


@contextlib.contextmanager
def using_pruner(make: Callable[[], BasePruner]) -> Iterator[None]:
    """Set the pruner of trials that are opened in this context, and that open their storage themselves."""
    token = _make_pruner.set(make)
    try:
        yield
    finally:
        _make_pruner.reset(token)


def mark_pruned(trial: BaseTrial, execution: str) -> None:
    """Store, from the process that runs a trial's task, that the task has raised `TrialPruned`.

    Args:
        execution: The name of the execution; empty if the attempt before has set the mark, and this attempt removes it.
    """
    if isinstance(trial, Trial):
        trial.storage.set_trial_system_attr(trial_id(trial), PRUNED, execution)


def pruned_in(trial: Trial) -> str:
    """Return, in the searching process, the execution for which `mark_pruned` was called last. The call blocks.

    The text is empty if the task has not raised `TrialPruned`.
    """
    return str(trial.storage.get_trial(trial_id(trial)).system_attrs.get(PRUNED, ""))


def _variable(name: str, what: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise OptunaFlyteError(
            f"The environment variable {name!r} must hold {what}, but it is not set here. Give it to the task, as a "
            "secret or in its environment."
        )
    return value
