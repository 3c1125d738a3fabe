"""`TrialServer`: serves a search's trials, by Optuna's gRPC storage proxy. Each trial has a token of its own.

The server judges a call by its metadata before it reads the message, so a caller without a token delays no other
caller. A token gives access to the parameters, reports and attributes of its own trial. Sampling and pruning need the
study's other trials, so the server samples and prunes. The connection is encrypted if the endpoint has a certificate.
"""

import collections
import concurrent.futures
import contextlib
import hmac
import json
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage
from optuna.trial import Trial

from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl._compat.optuna_grpc import serve_storage
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.engines.remote_trial.client import CALL_METADATA, TOKEN_METADATA, TRIALS_SERVICE, token_of_trial
from optuna_flyte_dsl.engines.remote_trial.endpoint import PING, Endpoint
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle
from optuna_flyte_dsl.space import conversion
from optuna_flyte_dsl.study.attributes import PREFIX, PRUNED

_STORAGE_SERVICE = "StorageService"
_MAX_WORKERS = 128
_CALLS_OF_A_TRIAL = 8
"""The largest number of calls of one trial that are served at the same time. The client repeats further calls."""
_REFUSALS_AT_ONCE = 8
"""The largest number of calls that are refused with a reason at the same time.

gRPC refuses further calls without a reason, as UNIMPLEMENTED.
"""
_WRITABLE = ("artifacts:", "constraints:", "terminator:cv_scores")
"""The prefixes of the system attributes that Optuna sets in the process of an objective.

Optuna sets other system attributes, such as a sampler's state, in the process that calls `ask` and `tell`. A trial's
process may not set a sampler's state, because the searching process trusts that state: `CmaEsSampler` unpickles it.
"""
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 2 * _CALLS_OF_A_TRIAL),  # gRPC's limit for each connection
    ("grpc.max_receive_message_length", 4 * 2**20),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 60_000),  # a trial connects again for its next call
    ("grpc.http2.min_ping_interval_without_data_ms", PING * 500),  # a trial pings during a long call
)

# The calls of the storage proxy that a trial needs. None of these calls creates or ends a trial or a study.
_ALLOWED = frozenset(
    {
        "GetStudyIdFromName",
        "GetStudyNameFromId",
        "GetStudyDirections",
        "GetStudyUserAttributes",
        "GetStudySystemAttributes",
        "SetTrialParameter",
        "SetTrialIntermediateValue",
        "SetTrialUserAttribute",
        "SetTrialSystemAttribute",
        "GetTrial",
    }
)


class TrialServer:
    """Serves the trials of one search to the processes or pods that run them.

    Besides the storage proxy, the server has the two methods by which a trial asks its study's sampler and pruner.

    Args:
        endpoint: The server's address; by default on this machine alone.
        secret: The secret from which the token of each trial is made; by default a new one.
        token_env: The environment variable in which a trial's process finds its token.
        shares_secret: Whether the variable `token_env` holds the secret, which the user has set, instead of a token.
    """

    def __init__(
        self,
        storage: BaseStorage,
        study: str,
        *,
        endpoint: Endpoint | None = None,
        secret: str | None = None,
        token_env: str = TOKEN_ENV,
        shares_secret: bool = False,
    ) -> None:
        self._secret = secret or secrets.token_urlsafe(32)
        self._token_env = token_env
        self._shares_secret = shares_secret
        self._study = study
        self._search = uuid.uuid4().hex
        self._trials: dict[int, Trial] = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(_MAX_WORKERS, thread_name_prefix="optuna-flyte-serve")
        self._gate = gate = _Gate(
            self._trials, self.token_of, self._admit, self._refuse, storage.get_study_id_from_name(study), study
        )
        self._server = grpc.server(self._pool, interceptors=[gate], options=_OPTIONS)
        serve_storage(storage, self._server)
        methods = {"Suggest": self._suggest, "Prune": self._prune}
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(TRIALS_SERVICE, handlers),))
        self.endpoint: Endpoint = endpoint or Endpoint()
        self._guard = self.endpoint.guard(self._server)
        self.address: str = self.endpoint.address(self._guard.port)
        self._server.start()
        self._closed = threading.Event()
        threading.Thread(
            target=gate.end_silent_calls, args=(self._closed,), name="optuna-flyte-gate", daemon=True
        ).start()

    def token_of(self, trial: int) -> str:
        """Return the token of the trial with an id. The token is good for this trial alone."""
        return token_of_trial(self._secret, trial)

    def serve(self, trial: Trial) -> TrialHandle:
        self._trials[trial_id(trial)] = trial
        return TrialHandle(
            self.address,
            trial_id(trial),
            self._study,
            self._token_env,
            self._search,
            self._shares_secret,
            self.endpoint.certificate.decode(),
            self.endpoint.certificate_name,
        )

    def forget(self, trial: Trial) -> None:
        self._trials.pop(trial_id(trial), None)
        self._guard.forget(trial_id(trial))

    def _admit(self, peer: str, trial: int) -> None:
        self._guard.admit(peer, trial)

    def _refuse(self, peer: str) -> None:
        self._guard.refuse(peer)

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
        # `trial.should_prune()` would miss the trial's reports: they are in the storage, and not in the local trial
        # object.
        stored = trial.storage.get_trial(trial_id(trial))
        return json.dumps(bool(trial.study.pruner.prune(trial.study, stored))).encode()

    def close(self) -> None:
        self._closed.set()
        self._guard.close()
        self._server.stop(grace=0).wait(pauses.server_close)
        self._pool.shutdown(wait=False)


class _Gate(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets a call pass if it is about the trial whose token it has shown, and refuses all other calls.

    Args:
        admit: Called with the address of each client that has shown a token, and with the token's trial.
        refuse: Called with the address of a client that has shown no valid token.
    """

    def __init__(
        self,
        trials: dict[int, Trial],
        token_of: Callable[[int], str],
        admit: Callable[[str, int], None],
        refuse: Callable[[str], None],
        study_id: int,
        study_name: str,
    ) -> None:
        self._trials = trials
        self._token_of = token_of
        self._admit = admit
        self._refuse = refuse
        self._study = {"study_id": study_id, "study_name": study_name}
        self._refusals = threading.BoundedSemaphore(_REFUSALS_AT_ONCE)
        self._lock = threading.Lock()
        self._calls: collections.Counter[int] = collections.Counter()  # trial -> its calls that are being served
        # The trial, the method and the id of each call that is being served -> its response.
        self._running: dict[tuple[int, str, str], concurrent.futures.Future[Any]] = {}
        self._silent: dict[grpc.ServicerContext, float] = {}  # call without a message yet -> its start time

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        details = handler_call_details
        metadata = dict(details.invocation_metadata)
        text, _, token = str(metadata.get(TOKEN_METADATA, "")).partition(":")
        trial = int(text) if text.isdecimal() else -1
        service, _, method = details.method.strip("/").rpartition("/")
        is_needed = service == TRIALS_SERVICE or (service.rpartition(".")[2] == _STORAGE_SERVICE and method in _ALLOWED)
        if not hmac.compare_digest(token.encode(), self._token_of(trial).encode()):
            return self._refusal(grpc.StatusCode.UNAUTHENTICATED, "This needs the token of the trial.")
        if not is_needed:
            return self._refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "In another process, a trial cannot read or change its study, nor end itself. Pass what it needs as an "
                "argument, and return its value.",
            )
        if trial not in self._trials:
            return self._refusal(grpc.StatusCode.NOT_FOUND, "That trial does not run any more.")
        handler = continuation(details)
        call = str(metadata.get(CALL_METADATA) or uuid.uuid4())
        return None if handler is None else self._checked(handler, method, trial, call)

    def _refusal(self, code: grpc.StatusCode, reason: str) -> Any:
        """Return a handler that refuses a call before its message arrives; `None` while too many calls are refused."""
        if not self._refusals.acquire(blocking=False):
            return None  # grpc refuses the call in the thread that reads the network

        def refuse(_: Iterator[Any], context: grpc.ServicerContext) -> None:
            self._refusals.release()
            if code is grpc.StatusCode.UNAUTHENTICATED:
                self._refuse(context.peer())
            context.abort(code, reason)

        return grpc.stream_unary_rpc_method_handler(refuse)

    def _checked(self, handler: Any, method: str, trial: int, call: str) -> Any:
        """Return a handler that serves a call if its message is about the trial.

        A trial repeats a call whose connection was lost. If the first call is still under way, the repeated call waits
        for its response: applied twice, a call could overwrite what the trial has written since.

        The handler takes a stream, so that it runs before the message arrives, and can give up waiting for the
        message.
        """

        def serve(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            self._admit(context.peer(), trial)
            with self._counted(trial, context):
                self._silent[context] = time.monotonic()
                try:
                    message = next(messages)
                finally:
                    del self._silent[context]
                refusal = self._refusal_of(message, method, trial)
                if refusal:
                    context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal)
                return self._run_once((trial, method, call), lambda: handler.unary_unary(message, context))

        return grpc.stream_unary_rpc_method_handler(serve, handler.request_deserializer, handler.response_serializer)

    def _run_once(self, call: tuple[int, str, str], serve: Callable[[], Any]) -> Any:
        """Serve a call; if the same call is being served already, wait for that call's response."""
        own: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            first = self._running.setdefault(call, own)
        if first is not own and first.exception() is None:
            return first.result()
        try:
            response = serve()
            own.set_result(response)
            return response
        except BaseException as error:
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                if self._running.get(call) is own:
                    del self._running[call]

    @contextlib.contextmanager
    def _counted(self, trial: int, context: grpc.ServicerContext) -> Iterator[None]:
        with self._lock:
            self._calls[trial] += 1
            many = self._calls[trial] > _CALLS_OF_A_TRIAL
        try:
            if many:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"A trial has {_CALLS_OF_A_TRIAL} calls at most.")
            yield
        finally:
            with self._lock:
                self._calls[trial] -= 1

    def _refusal_of(self, message: Any, method: str, trial: int) -> str:
        """Return the reason why a message is refused; an empty text if the message is allowed."""
        foreign = "A trial may read and change only what is its own."
        if isinstance(message, bytes):  # a message of `TRIALS_SERVICE`
            return "" if json.loads(message)["trial"] == trial else foreign
        fields = message.DESCRIPTOR.fields_by_name
        expected = {**self._study, "trial_id": trial}
        if any(name in fields and getattr(message, name) != value for name, value in expected.items()):
            return foreign
        if method == "SetTrialUserAttribute" and message.key.startswith(PREFIX):
            return f"The attributes whose names begin with {PREFIX!r} are the library's."
        if method == "SetTrialSystemAttribute" and not (message.key == PRUNED or message.key.startswith(_WRITABLE)):
            return f"A trial's process may not write the system attribute {message.key!r}. Use `trial.set_user_attr`."
        return ""

    def end_silent_calls(self, closed: threading.Event) -> None:
        """Cancel calls whose message does not come, until the server is closed."""
        while not closed.wait(pauses.server_check):
            for context, since in list(self._silent.items()):
                if time.monotonic() - since > pauses.server_silence:
                    context.cancel()
