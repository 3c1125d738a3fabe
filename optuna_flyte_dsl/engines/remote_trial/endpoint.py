"""`Endpoint`: the address of a trial server, with TLS if the endpoint has a certificate.

`open_channel` opens the channel by which a trial reaches the server.
"""

from dataclasses import dataclass

import grpc

from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.engines.remote_trial.connection_guard import ConnectionGuard
from optuna_flyte_dsl.errors import RefusedError

PING = 20
"""The seconds after which a trial whose call gets no answer checks that its connection lives."""
ALL_INTERFACES = ""
"""The value of `Endpoint.interface` for all interfaces: IPv4, and also IPv6 if the machine supports IPv6."""


@dataclass(frozen=True)
class Endpoint:
    """The address of a trial server."""

    host: str = "127.0.0.1"  # the name or address by which trials reach the server
    port: int = 0  # 0 for any free port
    interface: str = "127.0.0.1"  # the address of the network interface on which the server listens
    certificate: bytes = b""  # PEM, with its chain; empty without TLS
    key: bytes = b""  # PEM, the private key of the certificate
    certificate_name: str = ""  # the name for which the certificate is valid, if it is not `host`

    def address(self, port: int) -> str:
        """Return the address by which trials reach a port of the server."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def guard(self, server: grpc.Server) -> ConnectionGuard:
        """Let clients connect to a server, through a guard.

        Raises:
            RefusedError: If the endpoint's own address is taken, or if gRPC cannot use the certificate.
        """
        try:
            return ConnectionGuard(self.interface, self.port, lambda address: self._listen(server, address))
        except OSError as error:
            where = f"port {self.port} of {self.interface or 'this machine'}"
            raise RefusedError(
                f"The search cannot listen at {where} for its trials: {error}. Choose another "
                "`Cluster(trials_port=...)`."
            ) from error

    def _listen(self, server: grpc.Server, address: str) -> None:
        if not self.certificate:
            server.add_insecure_port(address)
            return
        try:
            server.add_secure_port(address, grpc.ssl_server_credentials([(self.key, self.certificate)]))
        except RuntimeError as error:
            raise RefusedError(
                "The search cannot use its certificate. Check that `trials_key` is the key of "
                "`trials_certificate`, and that both files are in PEM format."
            ) from error


def open_channel(address: str, certificate: bytes, certificate_name: str) -> grpc.Channel:
    """Return a channel to a trial server.

    With a certificate, the channel is encrypted and trusts this certificate alone.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", PING * 1000),
        ("grpc.keepalive_timeout_ms", PING * 1000),
        ("grpc.http2.ping_timeout_ms", PING * 1000),  # newer versions of gRPC read this option instead
        # A trial that repeats its call finds a search that can be reached again at once.
        ("grpc.min_reconnect_backoff_ms", 5_000),  # the time limit of one attempt to connect
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", int(pauses.server_pause * 1000)),
        ("grpc.http2.max_pings_without_data", 0),  # a call that waits sends no data
    ]
    if not certificate:
        return grpc.insecure_channel(address, options)
    if certificate_name:
        options.append(("grpc.ssl_target_name_override", certificate_name))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), options)
