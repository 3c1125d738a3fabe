"""Carries a trial to where its objective runs: as itself in this process, and else as an address and a trial's id.

The process that asks for the trials serves them: over Optuna's gRPC storage proxy, with two calls more, by which a
trial elsewhere asks its study's sampler and pruner here. It answers to the search's token only. Nothing is encrypted.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hmac
import json
import os
import secrets
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import optuna
from flytekit.core.context_manager import FlyteContext
from flytekit.core.type_engine import AsyncTypeTransformer, TypeEngine
from flytekit.models.literals import Literal, Primitive, Scalar
from flytekit.models.types import LiteralType, SimpleType
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, GrpcStorageProxy
from optuna.storages._grpc import client as optuna_client
from optuna.storages._grpc import servicer
from optuna.storages._grpc.auto_generated import api_pb2_grpc
from optuna.trial import BaseTrial, FrozenTrial, Trial

from optuna_flyte_dsl.errors import OptunaFlyteError

TOKEN_ENV = "OPTUNA_FLYTE_DSL_TOKEN"  # noqa: S105 - the name of the variable
"""The environment variable in which a trial's pod or process finds the token, where the user names no other."""

PRUNED_ATTRIBUTE = "optuna_flyte_dsl:pruned"
"""The system attribute of a trial whose task has raised `TrialPruned` where only its outputs come back."""

_TOKEN_KEY = "x-optuna-flyte-dsl-token"  # noqa: S105 - the name of the metadata
_TRIALS = "optuna_flyte_dsl.Trials"
_STORAGE = "StorageService"
_MAX_WORKERS = 32
_CLOSE_SECONDS = 2.0

# What a trial needs of the storage. It makes and ends no trial and no study.
_ALLOWED = frozenset(
    {
        "GetStudyIdFromName",
        "GetStudyNameFromId",
        "GetStudyDirections",
        "GetStudyUserAttributes",
        "GetStudySystemAttributes",
        "SetTrialParameter",
        "GetTrialIdFromStudyIdTrialNumber",
        "SetTrialIntermediateValue",
        "SetTrialUserAttribute",
        "SetTrialSystemAttribute",
        "GetTrial",
        "GetTrials",
    }
)


@dataclass(frozen=True)
class Handle:
    """What goes to a trial's pod or process: no secret is in it, for Flyte shows what tasks are given.

    Args:
        address: Where the trial's study is: `host:port` of who serves it, or `env:NAME` of the variable that holds a
            storage's URL.
        trial: The trial's id there.
        study: The study's name.
        token: The environment variable that holds the token.
        search: Of who serves it, a name that no other has: in the key of Flyte's cache, no two trials are the same.
    """

    address: str
    trial: int
    study: str
    token: str = TOKEN_ENV
    search: str = ""

    def text(self) -> str:
        """Return it as what Flyte carries."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, text: str) -> Handle:
        """Read what `text` has written."""
        return cls(**json.loads(text))

    def open(self) -> Trial:
        """Return the trial, to report to and to ask.

        Raises:
            OptunaFlyteError: If the environment does not say how to reach it.
        """
        if self.address.startswith("env:"):
            storage = optuna.storages.get_storage(_variable(self.address.removeprefix("env:"), "the storage's URL"))
            study = optuna.load_study(study_name=self.study, storage=storage, pruner=_pruner.get()())
            return Trial(study, self.trial)
        host, _, port = self.address.rpartition(":")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            client = _Client(host, int(port), _variable(self.token, "the token of the search"))
        there = _Elsewhere(client)
        study = optuna.load_study(
            study_name=self.study, storage=client, sampler=_SamplerThere(there), pruner=_PrunerThere(there)
        )
        trial = Trial(study, self.trial)
        weakref.finalize(trial, client.close)
        return trial


_pruner: ContextVar[Callable[[], BasePruner]] = ContextVar("pruner", default=optuna.pruners.MedianPruner)


@contextlib.contextmanager
def pruner_here(make: Callable[[], BasePruner]) -> Iterator[None]:
    """Let trials that reach their storage by themselves be pruned so."""
    token = _pruner.set(make)
    try:
        yield
    finally:
        _pruner.reset(token)


def _variable(name: str, what: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise OptunaFlyteError(
            f"The environment variable {name!r} must hold {what}, but it is not set here. Give it to the task, as a "
            "secret or in its environment."
        )
    return value


class TrialServer:
    """Serves the trials of one search to the pods and processes that run them.

    Args:
        storage: Where the study is.
        study: The study's name.
        host: What they reach this process by.
        port: The port; 0 for a free one.
        token: What they show; by default a new one.
        token_env: The environment variable in which they find it.
    """

    def __init__(
        self,
        storage: BaseStorage,
        study: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        token_env: str = TOKEN_ENV,
    ) -> None:
        self.token = token or secrets.token_urlsafe(32)
        self.token_env = token_env
        self._study = study
        self._search = uuid.uuid4().hex
        self._trials: dict[int, Trial] = {}
        self._lock = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(_MAX_WORKERS, thread_name_prefix="optuna-flyte-serve")
        self._server = grpc.server(self._pool, interceptors=[_Guard(self.token)])
        api_pb2_grpc.add_StorageServiceServicer_to_server(servicer.OptunaStorageProxyService(storage), self._server)
        methods = {"Suggest": self._suggest, "Prune": self._prune}
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_TRIALS, handlers),))
        bind = "127.0.0.1" if host in ("127.0.0.1", "localhost") else "0.0.0.0"  # noqa: S104 - pods are elsewhere
        bound = self._server.add_insecure_port(f"{bind}:{port}")
        self.address = f"{host}:{bound}"
        self._server.start()

    def handle(self, trial: Trial) -> Handle:
        """Return what stands for a trial elsewhere, from now on."""
        with self._lock:
            self._trials[trial._trial_id] = trial
        return Handle(self.address, trial._trial_id, self._study, self.token_env, self._search)

    def forget(self, trial: Trial) -> None:
        """Answer to a trial no more."""
        with self._lock:
            self._trials.pop(trial._trial_id, None)

    def _find(self, request: dict[str, Any], context: grpc.ServicerContext) -> Trial:
        with self._lock:
            trial = self._trials.get(request["trial"])
        if trial is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "That trial does not run any more.")
        assert trial is not None
        return trial

    def _suggest(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = json.loads(data)
        distribution = json_to_distribution(request["distribution"])
        value = self._find(request, context)._suggest(request["name"], distribution)
        return json.dumps(distribution.to_internal_repr(value)).encode()

    def _prune(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        trial = self._find(json.loads(data), context)
        # Not `trial.should_prune()`: it was reported elsewhere, and is not in the trial here.
        there = trial.storage.get_trial(trial._trial_id)
        return json.dumps(bool(trial.study.pruner.prune(trial.study, there))).encode()

    def close(self) -> None:
        """Stop. It blocks for a moment."""
        self._server.stop(grace=0).wait(_CLOSE_SECONDS)
        self._pool.shutdown(wait=False)


def refresh(trial: Trial) -> None:
    """Let a trial show here what was reported and set elsewhere. It blocks."""
    trial._cached_frozen_trial = trial.storage.get_trial(trial._trial_id)


def mark_pruned(trial: BaseTrial) -> None:
    """Note on a trial, from where its task runs, that the task has raised `TrialPruned`."""
    if isinstance(trial, Trial):
        trial.storage.set_trial_system_attr(trial._trial_id, PRUNED_ATTRIBUTE, True)


def is_pruned(trial: Trial) -> bool:
    """Tell whether `mark_pruned` was called. It blocks."""
    return bool(trial.storage.get_trial(trial._trial_id).system_attrs.get(PRUNED_ATTRIBUTE))


class _Guard(grpc.ServerInterceptor):  # type: ignore[misc]
    """Answers to nobody without the token, and to nothing that a trial does not need.

    Args:
        token: The token.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._refusal = grpc.unary_unary_rpc_method_handler(self._refuse)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Let a call pass, or refuse it."""
        details = handler_call_details
        shown = str(dict(details.invocation_metadata).get(_TOKEN_KEY, ""))
        service, _, method = details.method.strip("/").rpartition("/")
        known = service == _TRIALS or (service.rpartition(".")[2] == _STORAGE and method in _ALLOWED)
        if not hmac.compare_digest(shown.encode(), self._token.encode()) or not known:
            return self._refusal
        return continuation(details)

    @staticmethod
    def _refuse(_: Any, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "This needs the token of the search.")


class _WithToken(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        metadata = [*(client_call_details.metadata or ()), (_TOKEN_KEY, self._token)]
        return continuation(client_call_details._replace(metadata=metadata), request)


class _Client(GrpcStorageProxy):
    """Optuna's client, with the token.

    Args:
        host: Of who serves the trials.
        port: Its port.
        token: The token.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        self._token = token
        super().__init__(host=host, port=port)

    def _setup(self) -> None:
        self._plain = optuna_client.create_insecure_channel(self._host, self._port)
        self.channel = self._channel = grpc.intercept_channel(self._plain, _WithToken(self._token))
        self._stub = api_pb2_grpc.StorageServiceStub(self._channel)
        self._cache = optuna_client.GrpcClientCache(self._stub)

    def close(self) -> None:
        self._plain.close()


class _Elsewhere:
    """Asks who serves a trial."""

    def __init__(self, client: _Client) -> None:
        self._suggest = client.channel.unary_unary(f"/{_TRIALS}/Suggest")
        self._prune = client.channel.unary_unary(f"/{_TRIALS}/Prune")

    def suggest(self, trial: int, name: str, distribution: BaseDistribution) -> Any:
        request = {"trial": trial, "name": name, "distribution": distribution_to_json(distribution)}
        return distribution.to_external_repr(json.loads(self._suggest(json.dumps(request).encode())))

    def prune(self, trial: int) -> bool:
        return bool(json.loads(self._prune(json.dumps({"trial": trial}).encode())))


class _SamplerThere(BaseSampler):
    """The sampler of the process that serves the trial."""

    def __init__(self, there: _Elsewhere) -> None:
        self._there = there

    # The arguments' names are Optuna's.

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return {}

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._there.suggest(trial._trial_id, param_name, param_distribution)


class _PrunerThere(BasePruner):
    """The pruner of the process that serves the trial."""

    def __init__(self, there: _Elsewhere) -> None:
        self._there = there

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        return self._there.prune(trial._trial_id)


_LOCAL = "local:"
_here: weakref.WeakValueDictionary[str, BaseTrial] = weakref.WeakValueDictionary()


class TrialTransformer(AsyncTypeTransformer[Any]):
    """Carries a trial as a string: a name of it in this process, or a `Handle`."""

    def __init__(self, kind: type[BaseTrial]) -> None:
        super().__init__(f"optuna_flyte_dsl {kind.__name__}", kind, enable_type_assertions=False)

    def get_literal_type(self, t: Any) -> LiteralType:  # noqa: ARG002
        """Return the literal type of a string."""
        return LiteralType(simple=SimpleType.STRING)

    async def async_to_literal(
        self,
        ctx: FlyteContext,  # noqa: ARG002
        python_val: Any,
        python_type: Any,  # noqa: ARG002
        expected: LiteralType,  # noqa: ARG002
    ) -> Literal:
        """Convert a trial of this process, or the handle of one elsewhere."""
        if isinstance(python_val, Handle):
            text = python_val.text()
        elif isinstance(python_val, BaseTrial):
            text = f"{_LOCAL}{uuid.uuid4().hex}"
            _here[text] = python_val
        else:
            raise TypeError(f"An `optuna.Trial` is needed, but got {python_val!r}.")
        return Literal(scalar=Scalar(primitive=Primitive(string_value=text)))

    async def async_to_python_value(self, ctx: FlyteContext, lv: Literal, expected_python_type: Any) -> Any:  # noqa: ARG002
        """Return the trial of this process, or connect to that of another."""
        assert lv.scalar is not None
        assert lv.scalar.primitive is not None
        text = str(lv.scalar.primitive.string_value)
        if not text.startswith(_LOCAL):
            return Handle.of(text).open()
        trial = _here.get(text)
        if trial is None:
            raise OptunaFlyteError(f"The trial {text} belongs to another process.")
        return trial


def register() -> None:
    """Make trials known to flytekit; a second call changes nothing."""
    for kind in (Trial, BaseTrial, optuna.trial.FixedTrial, FrozenTrial):
        TypeEngine.register_additional_type(TrialTransformer(kind), kind)
