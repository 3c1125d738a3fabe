"""Private names of Optuna's gRPC storage proxy.

This module is separate from `_compat.optuna` because it loads grpc and protobuf, which few searches need.
"""

import grpc
from optuna.storages import BaseStorage, GrpcStorageProxy
from optuna.storages._grpc import client as _client


def serve_storage(storage: BaseStorage, server: grpc.Server) -> None:
    """Add Optuna's gRPC storage service to a server. The server must check the token of each call itself."""
    from optuna.storages._grpc import servicer  # loaded late: few searches serve a storage
    from optuna.storages._grpc.auto_generated import api_pb2_grpc

    api_pb2_grpc.add_StorageServiceServicer_to_server(servicer.OptunaStorageProxyService(storage), server)


class StorageProxyClient(GrpcStorageProxy):
    """Optuna's client of a storage proxy, over a channel that the caller has opened.

    Args:
        interceptor: The interceptor adds a token to each call.
    """

    def __init__(self, channel: grpc.Channel, interceptor: grpc.UnaryUnaryClientInterceptor) -> None:
        self._plain_channel = channel
        self.channel: grpc.Channel = grpc.intercept_channel(channel, interceptor)
        super().__init__()

    def _setup(self) -> None:
        from optuna.storages._grpc.auto_generated import api_pb2_grpc  # loaded late, as above

        self._channel = self.channel
        self._stub = api_pb2_grpc.StorageServiceStub(self._channel)
        self._cache = _client.GrpcClientCache(self._stub)

    def close(self) -> None:
        """Close the channel."""
        self._plain_channel.close()
