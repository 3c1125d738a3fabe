"""What a client that has no token sends to a trial server."""

import struct

from optuna_flyte_dsl.engines.remote_trial.client import TRIALS_SERVICE


def calls_without_a_token(count):
    """Return the bytes of a client of gRPC that begins so many calls on one connection."""

    def frame(kind, flags, stream, payload):
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    def header(name, value):
        return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    path = header(":path", f"/{TRIALS_SERVICE}/Suggest")
    headers = header(":method", "POST") + header(":scheme", "http") + path + header(":authority", "x")
    headers += header("content-type", "application/grpc") + header("te", "trailers")
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    return greeting + b"".join(frame(1, 4, 1 + 2 * number, headers) for number in range(count))
