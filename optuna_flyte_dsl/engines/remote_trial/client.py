"""The client in a trial's process or pod: an Optuna storage, sampler and pruner that call the trial server."""

import hmac
import json
import types
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl._compat.optuna_grpc import StorageProxyClient
from optuna_flyte_dsl._foreign_errors import is_too_large
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import backoff, retry
from optuna_flyte_dsl.errors import OptunaFlyteError

TOKEN_METADATA = "x-optuna-flyte-dsl-token"  # noqa: S105 - the key in the metadata of a call
CALL_METADATA = "x-optuna-flyte-dsl-call"
"""The key in the metadata of a call for the call's id."""
TRIALS_SERVICE = "optuna_flyte_dsl.Trials"
"""The gRPC service by which a trial asks the sampler and the pruner of its study."""


def token_of_trial(secret: str, trial: int) -> str:
    """Return the token of a trial: an HMAC of its id. A trial's token does not help to make another trial's token."""
    return hmac.new(secret.encode(), str(trial).encode(), "sha256").hexdigest()


def connect(
    channel: grpc.Channel, address: str, trial: int, token: str
) -> tuple[StorageProxyClient, BaseSampler, BasePruner]:
    """Connect to a trial server.

    Returns:
        The storage, sampler and pruner of a study that is used by one trial.
    """
    try:
        grpc.channel_ready_future(channel).result(pauses.server_reach)
    except grpc.FutureTimeoutError as error:
        channel.close()
        raise OptunaFlyteError(
            f"This trial cannot reach its search at {address}. Let a network policy allow it, or give an address that "
            "pods reach, by `Cluster(trials_host=..., trials_port=...)`. With TLS, the certificate must be valid for "
            "that address, or for `Cluster(trials_certificate_name=...)`."
        ) from error
    client = StorageProxyClient(channel, _TokenSender(f"{trial}:{token}"))
    return client, _RemoteSampler(client.channel), _RemotePruner(client.channel)


class _TokenSender(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Adds the token to the metadata of each call, and repeats a call that was lost, or that was one of too many.

    Each call has an id, by which the server recognizes a repeated call while the first one is still under way.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        own = ((TOKEN_METADATA, self._token), (CALL_METADATA, uuid.uuid4().hex))
        metadata = (*(client_call_details.metadata or ()), *own)
        details = types.SimpleNamespace(metadata=metadata, timeout=client_call_details.timeout or pauses.server_call)

        def call() -> Any:
            called = continuation(details, request)  # grpc keeps all details of the call but `metadata` and `timeout`
            if called.exception() is not None:
                raise called.exception()
            return called

        def call_connected() -> Any:
            return _retry(call, grpc.StatusCode.UNAVAILABLE, pauses.server_reach)

        try:
            # The trial's earlier calls may wait as long as a call may last.
            return _retry(call_connected, grpc.StatusCode.RESOURCE_EXHAUSTED, pauses.server_call)
        except grpc.RpcError as error:
            if not is_too_large(error):
                raise
            raise OptunaFlyteError(
                f"A trial's attribute or value is too large to be sent to its search: {error.details()}. Write it to a "
                "file, and store the file's path."
            ) from error


def _retry(call: Callable[[], Any], status: grpc.StatusCode, patience: float) -> Any:
    """Call a function again and again while it fails with a status, for some seconds."""

    def may_pass(error: Exception) -> bool:
        return isinstance(error, grpc.RpcError) and error.code() is status and not is_too_large(error)

    waits = backoff(pauses.storage_first, pauses.server_pause, lambda: patience, jitter=0.5)
    return retry(call, waits, may_pass=may_pass)


class _RemoteSampler(BaseSampler):
    """Asks the sampler of the searching process. Optuna prescribes the names of the arguments."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._suggest = channel.unary_unary(f"/{TRIALS_SERVICE}/Suggest")

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
        distribution = distribution_to_json(param_distribution)
        request = {"trial": trial_id(trial), "name": param_name, "distribution": distribution}
        return param_distribution.to_external_repr(json.loads(self._suggest(json.dumps(request).encode())))


class _RemotePruner(BasePruner):
    """Asks the pruner of the searching process. Optuna prescribes the names of the arguments."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._prune = channel.unary_unary(f"/{TRIALS_SERVICE}/Prune")

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        return bool(json.loads(self._prune(json.dumps({"trial": trial_id(trial)}).encode())))
