"""Calls flyteadmin, and waits out transient errors: an outage, a restart, an overload."""

import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import grpc
import requests
from flyteidl.admin.execution_pb2 import WorkflowExecutionGetRequest
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flytekit.clients.auth.exceptions import AccessTokenNotFoundError, AuthenticationError
from flytekit.exceptions.user import FlyteAuthenticationException
from flytekit.remote import FlyteRemote

from optuna_flyte_dsl._compat.flytekit import admin_method, admin_method_without_login
from optuna_flyte_dsl._foreign_errors import is_too_large, says_login_may_pass
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import backoff, retry
from optuna_flyte_dsl.engines._flytekit.cluster.token_bucket import TokenBucket
from optuna_flyte_dsl.errors import ClusterUnavailableError, RefusedError

P = ParamSpec("P")
T = TypeVar("T")

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
"""Final statuses of flyteadmin: the same request would get the same status again.

All other statuses are transient, unless the message is too large.
"""

_PASSING_HTTP_ERRORS = (requests.ConnectionError, requests.Timeout, requests.JSONDecodeError)

_CURES = {
    grpc.StatusCode.INVALID_ARGUMENT: "Correct what it names: the inputs, a name, or a label.",
    grpc.StatusCode.NOT_FOUND: "Register what is missing in this project and domain, or correct its name and version.",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "Pass what is large as a file (`FlyteFile`): a request holds its address only.",
    grpc.StatusCode.PERMISSION_DENIED: "Give the eager workflow's service account, or your user, the right to do it.",
    grpc.StatusCode.UNAUTHENTICATED: "Log in again, or check the client credentials in the pod's configuration.",
}


_LOGINS_BY_A_PERSON = ("standard", "pkce", "deviceflow")

_REQUESTS_PER_SECOND = 50.0
_BURST = 50.0
"""The largest number of requests that this process sends through one remote at once, before the rate holds."""


_paces: weakref.WeakKeyDictionary[FlyteRemote, TokenBucket] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class AdminError(Exception):
    """Raised when flyteadmin answers with a final status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code

    def refusal(self, what: str) -> RefusedError:
        return RefusedError(f"Flyte has refused to {what}: {self}. {_CURES.get(self.code, '')}".rstrip())


class GivenUpError(Exception):
    """Raised when a request is given up because nobody waits for it any longer."""


@dataclass(frozen=True)
class Admin:
    """flyteadmin, through the client of a remote."""

    remote: FlyteRemote
    patience: float  # the seconds for which an outage is waited out
    _answered: threading.Event = field(default_factory=threading.Event)  # set when a call has succeeded

    def call(
        self,
        rpc: str,
        request: Any,
        *,
        given_up: threading.Event | None = None,
        patience: float | None = None,
        seconds: float | None = None,
        is_paced: bool = True,
    ) -> Any:
        """Call an RPC of flyteidl's AdminService, and return its response.

        Args:
            patience: The seconds for which an outage is waited out; by default the patience of the search.
            seconds: The time limit of one attempt; by default `pauses.rpc`.
            is_paced: Whether the request waits for its turn among all requests of this process.
        """
        send = functools.partial(self.send, rpc, request, seconds=seconds, is_paced=is_paced)
        return self.retry(send, f"call {rpc}", given_up=given_up, patience=patience)

    def pages(self, rpc: str, request: Any, field: str, **limits: Any) -> Iterator[Any]:
        """Yield the items of all pages of a list. Each page is requested when it is needed. The call blocks.

        Args:
            request: The request for the first page, with the size of a page.
            field: The field of the response that holds the items.
            limits: The arguments of `call`.
        """
        while True:
            page = self.call(rpc, request, **limits)
            items = getattr(page, field)
            yield from items
            if not page.token or not items:
                return
            request.token = page.token

    def send(self, rpc: str, request: Any, *, seconds: float | None = None, is_paced: bool = True) -> Any:
        """Send a request once; see `call`. A failed request raises gRPC's own error."""
        if is_paced:
            self.wait_for_turn()
        return admin_method(self.remote.client, rpc)(request, timeout=pauses.rpc if seconds is None else seconds)

    def wait_for_turn(self) -> None:
        """Wait for the turn of a request among all requests of this process through the remote."""
        with _lock:
            pace = _paces.setdefault(self.remote, TokenBucket())
        time.sleep(pace.take(_REQUESTS_PER_SECOND, _BURST))

    def paced(self, method: Callable[P, T]) -> Callable[P, T]:
        """Return a method of the remote that waits for the turn of a request before it sends its requests."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            self.wait_for_turn()
            return method(*args, **kwargs)

        return call

    def check_login(self, execution: WorkflowExecutionIdentifier, given_up: threading.Event) -> None:
        """Raise `RefusedError` if flyteadmin needs a login, and the pod's login waits for a person. The call blocks.

        Args:
            execution: The pod's execution, which a request without a login tries to read.
        """
        platform = self.remote.config.platform
        mode = getattr(platform.auth_mode, "value", platform.auth_mode)  # an enum, or a string
        if str(mode).lower() not in _LOGINS_BY_A_PERSON or platform.proxy_command:
            return
        call = admin_method_without_login(self.remote.client, "GetExecution")

        def read() -> Any:
            self.wait_for_turn()
            return call(WorkflowExecutionGetRequest(id=execution), timeout=pauses.rpc)

        try:
            self.retry(read, "call GetExecution", given_up=given_up)
        except AdminError as error:
            if error.code is grpc.StatusCode.UNAUTHENTICATED:
                raise RefusedError(
                    "flyteadmin asks for a login, and this pod is configured for one in a browser: it would wait for "
                    "ever. Ask the operator of your Flyte to set FLYTE_CREDENTIALS_AUTH_MODE=client_credentials, with "
                    "a client id and a secret, for all pods. docs/how-to/cluster.md shows how."
                ) from None

    def retry(
        self,
        call: Callable[[], T],
        what: str,
        *,
        given_up: threading.Event | None = None,
        patience: float | None = None,
    ) -> T:
        """Call a function that sends requests to flyteadmin, and wait out errors that may pass; see `call`."""
        given_up = given_up or threading.Event()
        waited = self.patience if patience is None else patience
        outage = _Outage(self.remote, waited, self._answered)

        def wait(seconds: float) -> None:
            if given_up.wait(seconds):
                raise GivenUpError(f"Given up: {what}.")

        waits = backoff(pauses.admin_first, pauses.admin_longest, lambda: waited, jitter=0.5)
        try:
            answer = retry(call, waits, may_pass=outage.may_pass, wait=wait)
            self._answered.set()
            return answer
        except Exception as error:
            status = status_of(error)
            if not _is_login_outage(error):
                if _is_refused_login(error):
                    details = repr(error) if status is None else status.details()
                    raise AdminError(grpc.StatusCode.UNAUTHENTICATED, details) from error
                if status is None:
                    raise
                if _is_final(status, self._answered):
                    raise AdminError(status.code(), status.details() or "no details") from error
            raise unavailable(error, what, outage.seconds, waited) from error


@dataclass(eq=False)
class _Outage:
    """Decides which errors may pass, and logs an outage once."""

    remote: FlyteRemote
    patience: float  # the seconds for which the outage is waited out, for the log line
    answered: threading.Event  # set if flyteadmin has answered before
    started: float | None = None
    warned: bool = False

    @property
    def seconds(self) -> float:
        return 0.0 if self.started is None else time.monotonic() - self.started

    def may_pass(self, error: Exception) -> bool:
        status = status_of(error)
        is_login_outage = _is_login_outage(error)
        if not is_login_outage and (status is None or _is_final(status, self.answered) or _is_refused_login(error)):
            return False
        self.started = self.started or time.monotonic()
        if not self.warned and self.seconds > pauses.admin_warning:
            self.warned = True
            logger.warning(
                "flyteadmin at %s does not answer (%s): waiting for up to %.0f seconds.",
                self.remote.config.platform.endpoint,
                _described(error) if is_login_outage else status.code().name,
                self.patience,
            )
        return True


def unavailable(error: BaseException, what: str, seconds: float, patience: float) -> ClusterUnavailableError:
    """Return the error of a caller whose request has not been answered.

    Args:
        error: The last attempt's error.
        what: What the caller wants, as "call ListExecutions".
        seconds: How long the caller has waited.
        patience: How long the caller waits at most.
    """
    status = status_of(error)
    if _is_login_outage(error):
        who, said = "The identity provider", _described(error)
    else:
        who, said = "flyteadmin", f"{status.code().name}: {status.details()}"
    return ClusterUnavailableError(
        f"{who} has not answered for {seconds:.0f} seconds, to {what}: {said}. Look after it, or let the search wait "
        f"longer: `Cluster(patience={patience * 2:g})`."
    )


def _is_final(status: Any, answered: threading.Event) -> bool:
    if status.code() is grpc.StatusCode.UNIMPLEMENTED and answered.is_set():
        return False  # an ingress answers UNIMPLEMENTED while a new release of flyteadmin is rolled out
    return status.code() in _FINAL or is_too_large(status)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _is_login_outage(error: BaseException) -> bool:
    """Return whether flytekit cannot log in, or renew a login, because the identity provider is unavailable.

    A failed HTTP connection to another server, such as a server for uploads, counts too.
    """
    return any(
        isinstance(each, _PASSING_HTTP_ERRORS)
        or (isinstance(each, AuthenticationError | AccessTokenNotFoundError) and says_login_may_pass(str(each)))
        for each in _causes(error)
    )


def _described(error: BaseException) -> str:
    """Return the text of a login error's root cause, which flytekit wraps in errors without a text."""
    return str(list(_causes(error))[-1])[:300]


def _is_refused_login(error: BaseException) -> bool:
    """Return whether flytekit could not log in, or could not renew a login."""
    kinds = (FlyteAuthenticationException, AuthenticationError, AccessTokenNotFoundError)
    return any(isinstance(each, kinds) for each in _causes(error))


def status_of(error: BaseException) -> Any:
    """Return the gRPC status among an error's causes. Flytekit wraps a gRPC error in errors without a status."""
    found = (each for each in _causes(error) if isinstance(each, grpc.RpcError) and isinstance(each, grpc.Call))
    return next(found, None)
