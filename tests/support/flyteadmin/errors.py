"""What flyteadmin refuses, as gRPC statuses."""

import re

import grpc

MAX_NAME = 63
NAME = re.compile(r"[a-z][a-z0-9-]*")


class Refused(Exception):
    """Ends an RPC with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


def invalid(details: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, details)


def missing(kind: str, key: object) -> Refused:
    return Refused(grpc.StatusCode.NOT_FOUND, f"missing entity of type {kind} with identifier {key}")


def check_name(name: str) -> None:
    if len(name) > MAX_NAME:
        raise invalid(f"size of name exceeded length {MAX_NAME} : {name}")
    if not NAME.fullmatch(name):
        raise invalid(f"invalid name format: {name}")
