"""Finds the address at which the pods of trials reach the search, and reads the certificate of that address."""

import contextlib
import pathlib
import socket
import urllib.parse

from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.engines.remote_trial.endpoint import ALL_INTERFACES, Endpoint
from optuna_flyte_dsl.errors import RefusedError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_DOCUMENTATION_ADDRESSES = ("192.0.2.1", "2001:db8::1")
"""Addresses that RFC 5737 and RFC 3849 reserve for examples: the route to such an address is the default route."""


def search_address(options: Cluster, flyte_endpoint: str) -> Endpoint:
    """Return the address at which a search's server listens for the pods of the search's trials.

    Args:
        options: The options with the host, the port and the certificate.
        flyte_endpoint: The address of flyteadmin, in one of the forms `host:port`, `https://host`, `dns:///host:port`.

    Raises:
        RefusedError: If a file of the certificate cannot be read, or if this machine has no route to Flyte.
    """
    host = interface = options.trials_host or _own_address(flyte_endpoint)
    if options.trials_host is not None and host not in _LOOPBACK:
        interface = ALL_INTERFACES  # `trials_host` may be the name of a gateway in front of this machine
    certificate = _read("trials_certificate", options.trials_certificate)
    key = _read("trials_key", options.trials_key)
    return Endpoint(host, options.trials_port, interface, certificate, key, options.trials_certificate_name or "")


def _read(option: str, path: str | None) -> bytes:
    if path is None:
        return b""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise RefusedError(
            f"`{option}` of `Cluster` must be a file that this process can read: {error}. Mount it into the eager "
            "workflow's pod, as a secret."
        ) from error


def _own_address(flyte_endpoint: str) -> str:
    """Return the IPv4 or IPv6 address that this machine has on the route to Flyte."""
    host = urllib.parse.urlsplit(f"//{flyte_endpoint.rpartition('://')[2].lstrip('/')}").hostname
    for target in (host, *_DOCUMENTATION_ADDRESSES):
        with contextlib.suppress(OSError):
            for family, _, _, _, address in socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM):
                with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                    probe.connect(address)  # connecting a UDP socket sends no packet
                    return str(probe.getsockname()[0])
    raise RefusedError(
        f"This machine has no route to Flyte's endpoint {flyte_endpoint!r}, so the address at which pods reach this "
        "search is not known. Give the address: `Cluster(trials_host=...)`."
    )
