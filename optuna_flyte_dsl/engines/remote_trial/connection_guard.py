"""`ConnectionGuard`: a proxy before a gRPC server, which limits the connections that have not shown a token.

gRPC for Python does not limit the number of connections. Without a limit, idle connections use up the process's file
descriptors.
"""

import asyncio
import contextlib
import errno
import itertools
import math
import pathlib
import random
import resource
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable

from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.errors import RefusedError

_MAX_UNAUTHENTICATED = 512
"""The largest number of connections without a token, if the process may open enough files."""
_CONNECTIONS_OF_A_TRIAL = 16
"""The largest number of connections that have shown the token of one trial. A process opens one connection."""
_FILES_OF_A_CONNECTION = 3  # one socket to the client, and two sockets between the guard and gRPC
_BUFFER = 64 * 1024
_BYTES_OF_A_STRANGER = 4 * 1024
"""How many bytes a client may send before it has shown a token: a TLS handshake and the metadata of one call.

The client's further bytes wait until the client has shown a token.
"""
_REFUSAL = 1.0  # the seconds after which a refused client's connection is closed
_SERVER = "server"
_LONGEST_PATH = 80
"""The largest length of the folder's path, in characters. On macOS, a Unix socket's path has at most 103 characters."""


class ConnectionGuard:
    """Passes bytes on between clients and a gRPC server of this process, in a thread of its own.

    If too many connections have not shown a token, a new connection replaces one of them, chosen at random. So
    connections without a token cannot keep a client with a token out for long. If a trial has too many connections, the
    guard closes the oldest one of this trial.

    The gRPC server listens on a Unix socket in a folder that only this user can enter, so no other user's client can
    bypass the guard.

    Args:
        interface: The IPv4 or IPv6 address at which clients connect; an empty text for all interfaces.
        port: The port of that address; 0 for any free port.
        listen: Lets the gRPC server listen at an address, such as "unix:/tmp/folder/server".

    Raises:
        OSError: If the address at which clients connect is taken.
        RefusedError: If no temporary folder can be made.
    """

    def __init__(self, interface: str, port: int, listen: Callable[[str], None]) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = max(16, min(_MAX_UNAUTHENTICATED, files // (4 * _FILES_OF_A_CONNECTION)))
        # The name of the guard's socket on its connection to gRPC -> the pipe.
        self._strangers: dict[str, _Pipe] = {}
        self._numbers = itertools.count()
        self._clients: set[_Pipe] = set()
        self._lock = threading.Lock()
        self._admitted: dict[int, list[_Pipe]] = {}  # trial -> its connections, the oldest one first
        self._listener = _listener(interface, port)
        self.port: int = self._listener.getsockname()[1]
        try:
            self._folder = _short_folder()
        except OSError as error:
            self._listener.close()
            raise RefusedError(
                f"The search needs a folder for the socket of its trial server, but cannot make one: {error}. Set the "
                "environment variable TMPDIR to a folder in which it may write."
            ) from error
        try:
            listen(f"unix:{self._folder / _SERVER}")
        except BaseException:
            self._listener.close()
            shutil.rmtree(self._folder)
            raise
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="optuna-flyte-guard", daemon=True)
        self._thread.start()

    def admit(self, peer: str, trial: int) -> None:
        """Note that a connection has shown the token of a trial.

        Args:
            peer: The address of the guard's socket as gRPC gives it, such as "unix:/tmp/folder/17".
            trial: The trial's id.
        """
        # `dict.pop` is atomic. Later calls of the same connection find no key.
        pipe = self._strangers.pop(_name_in(peer), None)
        if pipe is None:
            return
        with contextlib.suppress(RuntimeError):  # the guard is closed
            self._loop.call_soon_threadsafe(pipe.admit)
        with self._lock:
            admitted = [each for each in self._admitted.get(trial, ()) if not each.is_closed]
            admitted.append(pipe)
            oldest = admitted.pop(0) if len(admitted) > _CONNECTIONS_OF_A_TRIAL else None
            self._admitted[trial] = admitted
        if oldest is not None:
            with contextlib.suppress(RuntimeError):  # the guard is closed
                self._loop.call_soon_threadsafe(oldest.close)

    def refuse(self, peer: str) -> None:
        """Close a connection whose first call has shown no valid token, when the refusal has reached the client.

        Args:
            peer: As for `admit`.
        """
        name = _name_in(peer)
        pipe = self._strangers.get(name)
        if pipe is not None:
            with contextlib.suppress(RuntimeError):  # the guard is closed
                self._loop.call_soon_threadsafe(self._loop.call_later, _REFUSAL, self._end_stranger, name, pipe)

    def forget(self, trial: int) -> None:
        """Note that a trial has ended. gRPC closes a trial's connections when they have been idle for a while."""
        with self._lock:
            self._admitted.pop(trial, None)

    def close(self) -> None:
        """Close all connections, and end the thread."""
        with contextlib.suppress(RuntimeError):  # the guard is closed already
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        with contextlib.closing(self._loop), self._listener:
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._accept)
            self._loop.run_forever()
            self._loop.remove_reader(self._listener)
            for pipe in list(self._clients):
                pipe.close()
            self._loop.run_until_complete(asyncio.sleep(0))  # transports close in the next step

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:  # the client has gone, or there are too many open files
            if error.errno in (errno.EMFILE, errno.ENFILE) and not self._free_files():
                self._pause()
            return
        key = str(next(self._numbers))
        try:
            inner = self._connect(key)
        except OSError as error:
            client.close()
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._free_files()  # for the client's next attempt
            return
        self._make_room(self._limit - 1)
        pipe = _Pipe(self._loop, client, inner, lambda: self._forget(key, pipe))
        self._strangers[key] = pipe
        self._clients.add(pipe)
        self._loop.call_later(pauses.server_stranger, self._end_stranger, key, pipe)

    def _free_files(self) -> bool:
        """Close a connection that has shown no token; return whether there was one."""
        there = bool(self._strangers)
        self._make_room(len(self._strangers) - 1)
        return there

    def _pause(self) -> None:
        """Accept no connection for a moment, because files are used up: else, this thread would not sleep."""
        self._loop.remove_reader(self._listener)
        self._loop.call_later(pauses.server_files, self._loop.add_reader, self._listener, self._accept)

    def _connect(self, name: str) -> socket.socket:
        """Return a socket that is connected to the gRPC server. gRPC reports `name` as the client's address."""
        inner = socket.socket(socket.AF_UNIX)
        try:
            inner.settimeout(1)
            inner.bind(str(self._folder / name))
            (self._folder / name).unlink()  # the socket stays bound to the name
            inner.connect(str(self._folder / _SERVER))
        except OSError:
            inner.close()
            raise
        return inner

    def _make_room(self, most: int) -> None:
        """Close connections that have shown no token, until at most `most` such connections are left."""
        while len(self._strangers) > max(0, most):
            pipe = self._strangers.pop(random.choice(list(self._strangers)), None)  # noqa: S311 - not a secret
            if pipe is not None:
                pipe.close()

    def _end_stranger(self, key: str, pipe: "_Pipe") -> None:
        if self._strangers.get(key) is pipe:
            pipe.close()

    def _forget(self, key: str, pipe: "_Pipe") -> None:
        if self._strangers.get(key) is pipe:
            self._strangers.pop(key, None)
        self._clients.discard(pipe)


def _name_in(peer: str) -> str:
    """Return the name of the guard's socket in a client's address as gRPC gives it."""
    return peer.rpartition("/")[2]


def _listener(interface: str, port: int) -> socket.socket:
    everywhere = not interface and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if everywhere or ":" in interface else socket.AF_INET
    return socket.create_server((interface, port), family=family, backlog=128, dualstack_ipv6=everywhere)


def _short_folder() -> pathlib.Path:
    """Make a folder that only this user can enter, with a path short enough for sockets in it."""
    parent = tempfile.gettempdir()
    return pathlib.Path(tempfile.mkdtemp(prefix="optuna-", dir="/tmp" if len(parent) > _LONGEST_PATH else parent))  # noqa: S108 - the folder is new


class _Pipe:
    """Passes bytes on between two sockets, in both directions. When one socket closes, the pipe closes the other."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, client: socket.socket, inner: socket.socket, ended: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._sockets = (client, inner)
        self._ended = ended
        self._left: float = _BYTES_OF_A_STRANGER  # how many bytes the client may still send
        self._is_paused = False  # whether nothing more is read from the client
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for each, other in ((client, inner), (inner, client)):
            each.setblocking(False)
            loop.add_reader(each, self._pass_on, each, other)

    @property
    def is_closed(self) -> bool:
        return self._sockets[0].fileno() < 0

    def admit(self) -> None:
        """Let the client send as many bytes as it likes: it has shown a token."""
        self._left = math.inf
        if self._is_paused and not self.is_closed:
            self._is_paused = False
            self._loop.add_reader(self._sockets[0], self._pass_on, *self._sockets)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        is_clients = source is self._sockets[0]
        if is_clients and self._left <= 0:
            self._is_paused = True
            self._loop.remove_reader(source)
            return
        try:
            data = source.recv(int(min(_BUFFER, self._left)) if is_clients else _BUFFER)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if is_clients:
            self._left -= len(data)
        self._send(data, source, target)

    def _send(self, data: bytes, source: socket.socket, target: socket.socket) -> None:
        try:
            sent = target.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):  # stop reading from the source until the target has taken all data
            self._loop.remove_reader(source)
            self._loop.add_writer(target, self._go_on, data[sent:], source, target)

    def _go_on(self, data: bytes, source: socket.socket, target: socket.socket) -> None:
        self._loop.remove_writer(target)
        self._loop.add_reader(source, self._pass_on, source, target)
        self._send(data, source, target)

    def close(self) -> None:
        """Close both sockets. A second call changes nothing."""
        for each in self._sockets:
            if each.fileno() >= 0:
                self._loop.remove_reader(each)
                self._loop.remove_writer(each)
                each.close()
        self._ended()
