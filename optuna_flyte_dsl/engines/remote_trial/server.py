"""`TrialServer`: serves a search's trials, by Optuna's gRPC storage proxy behind a token. Nothing is encrypted."""

import concurrent.futures
import hmac
import json
import secrets
import uuid
from typing import Any

import grpc
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage
from optuna.trial import Trial

from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl._compat.optuna_grpc import serve_storage
from optuna_flyte_dsl._retry import pauses
from optuna_flyte_dsl.engines.remote_trial.client import TOKEN_METADATA, TRIALS_SERVICE
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle
from optuna_flyte_dsl.space import conversion

_STORAGE_SERVICE = "StorageService"
_MAX_WORKERS = 32

# The calls of the storage proxy that a trial needs. None of them creates or ends a trial or a study.
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


class TrialServer:
    """Serves the trials of one search to the processes or pods that run them.

    Besides the storage proxy it answers two calls of our own, by which a trial asks its study's sampler and pruner.

    Args:
        token: The token that callers must show; by default a new one.
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
        self.token: str = token or secrets.token_urlsafe(32)
        self.token_env = token_env
        self._study = study
        self._search = uuid.uuid4().hex
        self._trials: dict[int, Trial] = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(_MAX_WORKERS, thread_name_prefix="optuna-flyte-serve")
        self._server = grpc.server(self._pool, interceptors=[_TokenCheck(self.token)])
        serve_storage(storage, self._server)
        methods = {"Suggest": self._suggest, "Prune": self._prune}
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(TRIALS_SERVICE, handlers),))
        bind = "127.0.0.1" if host in ("127.0.0.1", "localhost") else "0.0.0.0"  # noqa: S104 - pods are elsewhere
        bound = self._server.add_insecure_port(f"{bind}:{port}")
        self.address: str = f"{host}:{bound}"
        self._server.start()

    def serve(self, trial: Trial) -> TrialHandle:
        self._trials[trial_id(trial)] = trial
        return TrialHandle(self.address, trial_id(trial), self._study, self.token_env, self._search)

    def forget(self, trial: Trial) -> None:
        self._trials.pop(trial_id(trial), None)

    def _find(self, request: dict[str, Any], context: grpc.ServicerContext) -> Trial:
        trial = self._trials.get(request["trial"])
        if trial is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "That trial does not run any more.")
        assert trial is not None
        return trial

    def _suggest(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = json.loads(data)
        distribution = json_to_distribution(request["distribution"])
        value = conversion.suggest(self._find(request, context), request["name"], distribution)
        return json.dumps(distribution.to_internal_repr(value)).encode()

    def _prune(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        trial = self._find(json.loads(data), context)
        # `trial.should_prune()` would not do: the trial's reports are in the storage, and not in this object.
        stored = trial.storage.get_trial(trial_id(trial))
        return json.dumps(bool(trial.study.pruner.prune(trial.study, stored))).encode()

    def close(self) -> None:
        self._server.stop(grace=0).wait(pauses.server_close)
        self._pool.shutdown(wait=False)


class _TokenCheck(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without the token, and calls that no trial needs."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._refusal = grpc.unary_unary_rpc_method_handler(self._refuse)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        details = handler_call_details
        shown = str(dict(details.invocation_metadata).get(TOKEN_METADATA, ""))
        service, _, method = details.method.strip("/").rpartition("/")
        known = service == TRIALS_SERVICE or (service.rpartition(".")[2] == _STORAGE_SERVICE and method in _ALLOWED)
        if not hmac.compare_digest(shown.encode(), self._token.encode()) or not known:
            return self._refusal
        return continuation(details)

    @staticmethod
    def _refuse(_: Any, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "This needs the token of the search.")
