"""What the errors of other packages say: whether they may pass, and whether retries are used up."""

import errno
import io
import socket
import urllib.error

import aiohttp
import pytest
import requests
from flytekit.exceptions.system import FlyteDownloadDataException

from optuna_flyte_dsl._foreign_errors import is_blob_store_outage, says_retries_are_used


def http_error(status):
    response = requests.Response()
    response.status_code = status
    response.url = "https://bucket/key"
    with pytest.raises(requests.HTTPError) as error:
        response.raise_for_status()
    return error.value


def wrapped_by_flytekit(cause):
    """Return the error that flytekit raises while it handles a client's error."""
    try:
        try:
            raise cause
        except Exception:
            raise FlyteDownloadDataException("Failed to get data")  # noqa: B904 - as flytekit does
    except FlyteDownloadDataException as error:
        return error


def raised_after(handled):
    try:
        try:
            raise handled
        except Exception:
            raise ValueError("the user's own error")  # noqa: B904
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"),
        TimeoutError("timed out"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EBUSY, "Slow Down"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        urllib.error.URLError(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")),
        requests.exceptions.ChunkedEncodingError("Response ended prematurely"),
        http_error(503),
        requests.ConnectionError("away"),
        urllib.error.URLError(TimeoutError("timed out")),
        aiohttp.ServerDisconnectedError(),
        wrapped_by_flytekit(ConnectionRefusedError()),
    ],
    ids=repr,
)
def test_an_outage_of_a_blob_store_passes(error):
    assert is_blob_store_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError("Unable to open file (file signature not found)"),
        OSError("Connect the device first"),
        io.UnsupportedOperation("not readable"),
        OSError(errno.ENOSPC, "No space left on device"),
        http_error(403),
        http_error(404),
        urllib.error.HTTPError("https://bucket/key", 404, "Not Found", {}, None),
        raised_after(ConnectionResetError("handled by the user's code")),
        wrapped_by_flytekit(FileNotFoundError("gone")),
        ValueError("503"),
    ],
    ids=repr,
)
def test_a_final_error_of_a_file_does_not_pass(error):
    assert not is_blob_store_outage(error)


@pytest.mark.parametrize(
    ("message", "used"),
    [
        ("[2/2] currentAttempt done. Last Error: USER::for this attempt", True),
        ("[1/1] currentAttempt done. Last Error: USER::OOMKilled", False),
        ("[3/3] currentAttempt done. Last Error: SYSTEM::the node was preempted", False),
        ("[1/1] currentAttempt done. Last Error: USER::[4/4] currentAttempt done. Last Error: USER::of a part", True),
        ("RuntimeError: boom", False),
    ],
)
def test_flyte_says_whether_retries_are_used_up(message, used):
    assert says_retries_are_used(message) is used
