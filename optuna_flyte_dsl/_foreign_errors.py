"""Recognizes errors of Optuna, gRPC, databases and Python whose class alone does not tell what happened."""

import errno
import re
import socket
import sys
from typing import Any

from optuna.exceptions import StorageInternalError

from optuna_flyte_dsl._text import text_of

_PASSING_STATUSES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL")
_PASSING_DATABASE_ERRORS = ("OperationalError", "InterfaceError", "InternalError")
_PASSING_TEXTS = ("OperationalError", "InterfaceError", "An exception is raised during the commit")
_SHUTDOWN_TEXTS = ("after interpreter shutdown", "at interpreter shutdown", "register atexit after shutdown")
# The patterns are texts, because Python compiles them at their first use, and most programs use none.
_REFUSED_REPORT = r"(?m)^\s*Trial\.(report|should_prune)"
_PASSING_LOGIN = r"(?:Status Code \(|token endpoint )(?:5\d\d|429)\b"
"""Flytekit's text if the identity provider answers that it is overloaded or broken."""

_REFUSED_BY_KUBERNETES = "failed to create workflow in propeller"
"""flyteadmin's text if it could not give an execution to Kubernetes, for whatever reason."""

_PASSING_REFUSAL = (
    r"(?i)time(d )?out|deadline exceeded|unavailable|unable to handle|too many requests|connection (refused|reset)|EOF|"
    r"leader changed|no leader|TLS handshake|throttl|no route to host|InternalError|Internal error occurred"
)
"""Matches a refusal that may pass: the API server of Kubernetes, or its database, is away or overloaded."""

_USER_ATTEMPTS = r"\[\d+/(\d+)\] currentAttempt done\. Last Error: USER::"
"""Matches Propeller's message that the last attempt of a task has failed with a user error.

Propeller counts attempts that failed with a system error, such as a lost machine, separately.
"""


_FINAL_FILE_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)

_PASSING_ERRNOS = (
    socket.EAI_AGAIN,
    errno.EIO,
    errno.EBUSY,
    errno.EAGAIN,
    errno.ESTALE,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
)

_STORE_CLIENTS = ("aiohttp", "azure", "botocore", "gcsfs", "google", "obstore", "requests", "s3fs", "urllib", "urllib3")
"""The packages that access blob stores for fsspec and flytekit."""

_WRAPPERS = ("flytekit", "fsspec")
"""The packages whose errors replace those of the clients, without naming them as the cause."""

_PASSING_STORE_ERRORS = (
    r"Connect|Timeout|timed out|Unavailable|SlowDown|TooManyRequests|Server(Error|Disconnected)|InternalError|"
    r"\b(429|500|502|503|504)\b|error sending request|retr(y|ies)|name resolution|ended prematurely|IncompleteRead"
)
"""The classes and texts of their errors that may pass."""


def is_no_database(error: BaseException) -> bool:
    """Return whether SQLite has refused a file that is not a database."""
    return type(error).__name__ == "DatabaseError" and "file is not a database" in str(error)


def is_storage_outage(error: BaseException) -> bool:
    """Return whether a storage's error may pass by itself: a lock, a full disk, a server that does not answer."""
    grpc = sys.modules.get("grpc")  # the package takes long to import; without it, no error is one of gRPC's
    if grpc is not None and isinstance(error, grpc.RpcError):
        code: Any = getattr(error, "code", None)
        status = getattr(code(), "name", None) if callable(code) else None
        # Optuna's gRPC storage proxy passes on the text of the error of the storage behind it, but not the class.
        if is_too_large(error):
            return False
        behind = status == "UNKNOWN" and any(text in str(error) for text in _PASSING_TEXTS)
        return status in _PASSING_STATUSES or behind
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return is_storage_outage(error.__cause__)
    if isinstance(error, StorageInternalError | OSError):
        return not isinstance(error, FileNotFoundError)
    # Imported late, because only a database needs SQLAlchemy.
    from sqlalchemy.exc import DBAPIError, PendingRollbackError
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    is_passing = isinstance(error, DBAPIError) and type(error).__name__ in _PASSING_DATABASE_ERRORS
    # A PendingRollbackError follows an outage: Optuna uses the broken transaction once more before it closes it.
    return is_passing or isinstance(error, PoolTimeout | PendingRollbackError)


def is_opening_outage(error: BaseException) -> bool:
    """Return whether a storage's error may pass by itself, while the storage is opened.

    A storage path that is wrong, or that lacks permission, stays wrong, so its error does not pass by itself.
    """
    is_wrong = isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError | FileExistsError)
    return is_storage_outage(error) and not is_wrong


def is_wrong_url(error: BaseException) -> bool:
    """Return whether Optuna or SQLAlchemy cannot use a storage's URL, or lacks its driver."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    # Optuna has removed its Redis storage: the class that is left raises a plain ValueError.
    return isinstance(error, ArgumentError | NoSuchModuleError | ImportError | ValueError)


def is_too_large(error: BaseException) -> bool:
    """Return whether gRPC has refused a message for its size. The error's text has the size and the limit."""
    return "message larger than max" in str(error)


def is_race_for_tables(error: BaseException) -> bool:
    """Return whether two processes have created the tables of a new database at the same time."""
    known = {type(each).__name__ for each in (error, error.__cause__)}
    return bool(known & {"IntegrityError", "ProgrammingError"}) or "already exists" in str(error)


def is_blob_store_outage(error: BaseException) -> bool:
    """Return whether an access of the blob store has failed for a reason that may pass.

    Flytekit and fsspec wrap the error of the store's own client, which is among the causes. An error that was handled
    before counts only if flytekit or a client of a blob store has raised the error after it.
    """
    cause: BaseException | None = error
    while cause is not None:
        package = type(cause).__module__.partition(".")[0]
        if isinstance(cause, _FINAL_FILE_ERRORS):
            return False
        is_clients = package in _STORE_CLIENTS
        if is_clients:
            if re.search(_PASSING_STORE_ERRORS, f"{type(cause).__name__} {text_of(cause)}"):
                return True
        elif isinstance(cause, ConnectionError | TimeoutError):
            return True
        if isinstance(cause, OSError) and cause.errno in _PASSING_ERRNOS:
            return True
        cause = cause.__cause__ or (cause.__context__ if is_clients or package in _WRAPPERS else None)
    return False


def is_report_of_several_objectives(error: BaseException) -> bool:
    """Return whether Optuna has refused `trial.report` or `trial.should_prune` because there are several objectives."""
    # flytekit puts the name of the task in front of the text.
    return isinstance(error, NotImplementedError) and re.search(_REFUSED_REPORT, text_of(error)) is not None


def is_interpreter_shutdown(error: BaseException) -> bool:
    """Return whether Python has refused to start a thread or a process because it is exiting.

    At exit, Python 3.12 and newer refuse more operations than Python 3.11 does, and with other error texts.
    """
    return isinstance(error, RuntimeError) and any(text in text_of(error) for text in _SHUTDOWN_TEXTS)


def says_retries_are_used(message: str) -> bool:
    """Return whether Flyte's message of a failed execution says that the task used up several attempts of its own."""
    return any(int(attempts) > 1 for attempts in re.findall(_USER_ATTEMPTS, message))


def says_login_may_pass(message: str) -> bool:
    """Return whether flytekit's message of a failed login says that the identity provider is overloaded or broken."""
    return re.search(_PASSING_LOGIN, message) is not None


def says_kubernetes_is_away(message: str) -> bool:
    """Return whether flyteadmin's message of a failed execution says that Kubernetes was briefly unavailable."""
    return _REFUSED_BY_KUBERNETES in message and re.search(_PASSING_REFUSAL, message) is not None


def says_too_large_for_kubernetes(message: str) -> bool:
    """Return whether flyteadmin's message of a failed execution says that its inputs are too large for Kubernetes."""
    return _REFUSED_BY_KUBERNETES in message and "too large" in message


def says_other_structure(message: str) -> bool:
    """Return whether flyteadmin's refusal of a registration says that the name and version belong to another entity."""
    return "with different structure already exists" in message


def says_launch_plan_is_full(message: str) -> bool:
    """Return whether flyteadmin has refused a launch because its launch plan limits how many executions may run."""
    return "concurrency limit" in message and "skipping execution" in message
