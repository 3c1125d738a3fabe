"""`Endpoint`: where a trial server listens, with TLS if it has a certificate. The channel by which trials reach it."""

from dataclasses import dataclass

import grpc

from optuna_flyte_dsl.errors import RefusedError


@dataclass(frozen=True)
class Endpoint:
    """The address of a trial server."""

    host: str = "127.0.0.1"  # the name or address by which trials reach the server
    port: int = 0  # 0 for any free port
    interface: str = "127.0.0.1"  # the address of the network interface on which the server listens; 0.0.0.0 for all
    certificate: bytes = b""  # PEM, with its chain; empty without TLS
    key: bytes = b""  # PEM, the private key of the certificate
    certificate_name: str = ""  # the name for which the certificate is valid, if it is not `host`

    def listen(self, server: grpc.Server) -> str:
        """Let a server listen, and return the address by which trials reach it, as `host:port`.

        Raises:
            RefusedError: If the address is taken, or gRPC cannot use the certificate.
        """
        at = f"{self.interface}:{self.port}"
        try:
            if self.certificate:
                credentials = grpc.ssl_server_credentials([(self.key, self.certificate)])
                port = server.add_secure_port(at, credentials)
            else:
                port = server.add_insecure_port(at)
        except RuntimeError as error:
            raise RefusedError(
                f"The search cannot listen at {at} for its trials: {error}. Choose another `Cluster(trials_port=...)`; "
                "with TLS, check that `trials_key` is the key of `trials_certificate`."
            ) from error
        return f"{self.host}:{port}"


def open_channel(address: str, certificate: bytes, certificate_name: str) -> grpc.Channel:
    """Return a channel to a trial server. With a certificate it is encrypted, and trusts this certificate alone."""
    options: list[tuple[str, int | str]] = [("grpc.max_receive_message_length", -1)]
    if not certificate:
        return grpc.insecure_channel(address, options)
    if certificate_name:
        options.append(("grpc.ssl_target_name_override", certificate_name))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), options)
