"""A TCP proxy of PostgreSQL that cuts one connection before or after one statement: of its protocol, not of SQL."""

import contextlib
import socket
import struct
import threading

BATCH_ENDS = (b"Q", b"S")  # messages of the client that ask for an answer: Query and Sync
READY = b"Z"  # the message of the server that ends an answer: ReadyForQuery


class CuttingProxy:
    """Counts statements, and cuts the connection at one of them; later connections work.

    Attributes:
        statements: The number of statements that clients have sent.

    Args:
        port: The server's.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self.statements = 0
        self.cuts = 0
        self._cut_at = 0
        self._after = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, statement: int, *, after: bool) -> None:
        """Cut at a statement, counted from 1, from now on.

        Args:
            after: Whether the server executes the statement, and only its answer is lost.
        """
        with self._lock:
            self.statements = self.cuts = 0
            self._cut_at, self._after = statement, after

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link = _Link(self, client, server)
                threading.Thread(target=link.run, args=(link.pass_requests,), daemon=True).start()
                threading.Thread(target=link.run, args=(link.pass_answers,), daemon=True).start()

    def counts(self) -> str | None:
        """Count a statement. Return "before" or "after" if the connection is to be cut there."""
        with self._lock:
            self.statements += 1
            if self.statements != self._cut_at:
                return None
            self.cuts += 1
            return "after" if self._after else "before"

    def close(self) -> None:
        self._listener.close()


class _Link:
    def __init__(self, proxy: CuttingProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._swallows = False

    def run(self, function) -> None:
        with contextlib.suppress(OSError, EOFError):
            function()
        for each in (self._client, self._server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def pass_requests(self) -> None:
        while True:  # the beginning: messages without a kind
            size, code = struct.unpack("!II", header := _read(self._client, 8))
            self._server.sendall(header + _read(self._client, size - 8))
            if code >> 16 == 3:  # the start of the session; before it may be a request for encryption
                break
        batch = b""
        while True:
            kind, message = _message(self._client)
            batch += message
            if kind in BATCH_ENDS:
                cut = self._proxy.counts()
                if cut == "before":
                    raise EOFError
                self._swallows = cut == "after"
            if kind not in (b"P", b"B", b"D", b"E", b"C"):  # a batch ends; or it is a password, or a farewell
                self._server.sendall(batch)
                batch = b""

    def pass_answers(self) -> None:
        first = True
        while True:
            if first:
                answer = _read(self._server, 1)
                if answer == b"N":  # no encryption
                    self._client.sendall(answer)
                    continue
                first = False
                kind, message = _message(self._server, answer)
            else:
                kind, message = _message(self._server)
            if not self._swallows:
                self._client.sendall(message)
            elif kind == READY:
                raise EOFError


def _message(source: socket.socket, kind: bytes = b"") -> tuple[bytes, bytes]:
    kind = kind or _read(source, 1)
    size = _read(source, 4)
    return kind, kind + size + _read(source, struct.unpack("!I", size)[0] - 4)


def _read(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = source.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
