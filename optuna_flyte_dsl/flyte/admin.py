"""Calls flyteadmin, and waits out what passes: an outage, a restart, an overload."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from flytekit.clients.auth.exceptions import AccessTokenNotFoundError, AuthenticationError
from flytekit.exceptions.user import FlyteAuthenticationException
from flytekit.remote import FlyteRemote

from optuna_flyte_dsl.errors import ClusterUnavailableError, RefusedError
from optuna_flyte_dsl.log import logger

T = TypeVar("T")

_RPC_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 15.0
_WARN_AFTER = 5.0
"""Seconds of an outage after which it is worth a line in the log."""

_FINAL = {
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""Statuses that would not change if the same were asked again. All others pass."""

_CURES = {
    grpc.StatusCode.INVALID_ARGUMENT: "Correct what it names: the inputs, a name, or a label.",
    grpc.StatusCode.NOT_FOUND: "Register what is missing in this project and domain, or correct its name and version.",
    grpc.StatusCode.PERMISSION_DENIED: "Give the eager workflow's service account, or your user, the right to do it.",
    grpc.StatusCode.UNAUTHENTICATED: "Log in again, or check the client credentials in the pod's configuration.",
}


class AdminError(Exception):
    """Says that flyteadmin has answered with a status that is final.

    Args:
        code: The status.
        details: Its words.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code

    def refusal(self, what: str) -> RefusedError:
        """Return the error that ends the search, with what to do.

        Args:
            what: What was asked for.
        """
        return RefusedError(f"Flyte has refused to {what}: {self}. {_CURES.get(self.code, '')}".rstrip())


class GivenUpError(Exception):
    """Says that a call was given up: nobody waits for it any more."""


class Admin:
    """flyteadmin, by the client of a remote.

    Args:
        remote: The remote.
        patience: Seconds that an outage is waited out.
    """

    def __init__(self, remote: FlyteRemote, patience: float) -> None:
        self.remote = remote
        self._patience = patience

    def call(
        self,
        rpc: str,
        request: Any,
        *,
        given_up: threading.Event | None = None,
        patience: float | None = None,
        seconds: float = _RPC_SECONDS,
    ) -> Any:
        """Call an RPC and return its answer.

        Args:
            rpc: Its name in flyteidl's AdminService.
            request: The message.
            given_up: Ends the waiting when it is set.
            patience: Seconds that an outage is waited out; by default the search's.
            seconds: How long one call may take.

        Raises:
            AdminError: If the answer is a status that is final.
            ClusterUnavailableError: If an outage has lasted too long.
            GivenUpError: If it was given up.
        """
        client = self.remote.client
        method = getattr(client._stub, rpc)
        return self.patiently(
            functools.partial(method, request, metadata=client._metadata, timeout=seconds),
            f"call {rpc}",
            given_up=given_up,
            patience=patience,
        )

    def patiently(
        self,
        function: Callable[[], T],
        what: str,
        *,
        given_up: threading.Event | None = None,
        patience: float | None = None,
    ) -> T:
        """Call a function that calls flyteadmin, again and again while what fails may pass; see `call`."""
        given_up = given_up or threading.Event()
        patience = self._patience if patience is None else patience
        started: float | None = None
        pause = _FIRST_PAUSE
        warned = False
        while True:
            try:
                return function()
            except Exception as error:
                status = _status(error)
                if _is_refused_login(error):
                    said = repr(error) if status is None else status.details()
                    raise AdminError(grpc.StatusCode.UNAUTHENTICATED, said) from error
                if status is None:
                    raise
                if status.code() in _FINAL:
                    raise AdminError(status.code(), status.details() or "no details") from error
                now = time.monotonic()
                started = now if started is None else started
                left = patience - (now - started)
                if left <= 0:
                    raise ClusterUnavailableError(
                        f"flyteadmin has not answered for {now - started:.0f} seconds, to {what}: "
                        f"{status.code().name}: {status.details()}. Look after it, or let the search wait longer: "
                        f"`Cluster(patience={patience * 2:g})`."
                    ) from error
                if not warned and now - started > _WARN_AFTER:
                    warned = True
                    endpoint = self.remote.config.platform.endpoint
                    logger.warning(
                        "flyteadmin at %s does not answer (%s): waiting for up to %.0f seconds.",
                        endpoint,
                        status.code().name,
                        patience,
                    )
            if given_up.wait(min(left, pause * random.uniform(0.5, 1.0))):  # noqa: S311 - jitter
                raise GivenUpError(f"Given up: {what}.")
            pause = min(pause * 2, _LONGEST_PAUSE)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _is_refused_login(error: BaseException) -> bool:
    """Tell whether flytekit could not log in, or could not renew a login."""
    kinds = (FlyteAuthenticationException, AuthenticationError, AccessTokenNotFoundError)
    return any(isinstance(each, kinds) for each in _chain(error))


def _status(error: BaseException) -> Any:
    """Return the gRPC status in an error's chain of causes: flytekit wraps it in errors that have lost the code."""
    found = (each for each in _chain(error) if isinstance(each, grpc.RpcError) and isinstance(each, grpc.Call))
    return next(found, None)
