"""Starts worker processes: by a fork server where processes can be forked safely, else as new interpreters."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.machinery
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from typing import Any

from optuna_flyte_dsl.engines.fork_server import LENGTH, READ, SERVER, kill_group
from optuna_flyte_dsl.errors import WorkerDiedError

_WORK = "optuna_flyte_dsl.engines.worker_process:work"
_FORK_IS_SAFE = sys.platform == "linux"  # the frameworks of macOS do not bear a fork
_SIGNALS: dict[int, str] = {
    signal.SIGSEGV: "a segmentation fault (SIGSEGV)",
    signal.SIGKILL: "it was killed, perhaps for want of memory (SIGKILL)",
}
_STATUS_PATIENCE = 5.0  # seconds that the status of a worker that has ended is waited for
_END_PATIENCE = 1.0  # seconds that the end of a fork server is waited for, when it has closed a pipe
_LOOK = 0.1  # seconds between two looks whether a start is given up
_ALONE = """
import json, os, socket, sys, threading, time
channel, path, arguments, parent = json.loads(sys.argv[1])

def watch():  # the imports take seconds, in which the parent may be killed
    while not any(thread.name == "optuna-flyte-parent" for thread in threading.enumerate()):
        if os.getppid() != parent:
            os._exit(1)
        time.sleep(0.1)

threading.Thread(target=watch, daemon=True).start()
os.setpgid(0, 0)
sys.path[:], sys.argv[:] = path, arguments
from optuna_flyte_dsl.engines.worker_process import work
work(socket.socket(fileno=channel))
"""


class RequestNotReadError(Exception):
    """A worker process has ended before it has read a request."""


class StartGivenUpError(Exception):
    """A worker process is not waited for any longer."""


class WorkerProcess:
    """A running worker process, and the channel to it. The group of the process has the same id."""

    def __init__(self, pid: int, channel: socket.socket, status: int) -> None:
        self.pid = pid
        self._channel = channel
        self._channel.setblocking(False)
        self._status = status  # the pipe that tells the exit code
        self._code: int | None = None
        self._is_orphan = False

    async def call(self, request: bytes) -> bytes:
        """Send a request, and return its answer.

        Raises:
            RequestNotReadError: If the process ends before it has read the request.
            EOFError: If the process ends before it has answered.
            ConnectionError: So too.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._status, self._close_channel, loop)
        try:
            try:
                await loop.sock_sendall(self._channel, LENGTH.pack(len(request)) + request)
                received = bytearray(await self._receive(loop))
            except (EOFError, ConnectionError):
                raise RequestNotReadError from None
            head = len(READ) + LENGTH.size
            while len(received) < head:
                received += await self._receive(loop)
            (length,) = LENGTH.unpack(received[len(READ) : head])
            while len(received) < head + length:
                received += await self._receive(loop)
            return bytes(memoryview(received)[head:])
        finally:
            loop.remove_reader(self._status)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, as far as the system tells it by now. An idle worker sends nothing."""
        return _is_readable(0.0, self._channel.fileno(), self._status)

    def _close_channel(self, loop: asyncio.AbstractEventLoop) -> None:
        """Notice that the worker has ended. Processes that it has forked may keep its end of the channel open."""
        loop.remove_reader(self._status)
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)  # what the worker has answered can still be read

    async def _receive(self, loop: asyncio.AbstractEventLoop) -> bytes:
        """Receive what is there of an answer. A worker sends no other answer before the next request."""
        part = await loop.sock_recv(self._channel, 2**20)
        if not part:
            raise EOFError
        return part

    def cause_of_death(self) -> str:
        """Return why the process has ended, in words. The call blocks."""
        code = self._wait()
        if code is None:
            return "its fork server was killed" if self._is_orphan else "it has closed its connection"
        return f"exit code {code}" if code >= 0 else _SIGNALS.get(-code, f"signal {-code}")

    def _wait(self) -> int | None:
        """Wait for the end of the process. Return its exit code, or minus the number of a signal."""
        if self._code is not None:
            return self._code
        if _is_readable(_STATUS_PATIENCE, self._status):
            text = _read_line(self._status)
            while os.read(self._status, 1):  # the other side has closed the pipe when this ends
                pass
            self._code = int(text) if text else None
            self._is_orphan = not text  # the pipe has ended with the server
        return self._code

    def kill(self) -> None:
        """Kill the process and what it has started, and wait for its end."""
        kill_group(self.pid, is_alive=not _is_readable(0.0, self._status))
        self._wait()
        kill_group(self.pid, is_alive=False)  # what it has started while it was killed
        self._channel.close()
        os.close(self._status)


class WorkerStarter:
    """Starts worker processes with modules that are imported once.

    Args:
        preload: The names of the modules, in groups. See `fork_server.main`.
    """

    def __init__(self, preload: Sequence[Sequence[str]]) -> None:
        self._preload = tuple(map(tuple, preload))
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._has_served = False  # whether the server has answered, and may have workers

    def begin(self) -> None:
        """Start the fork server, which imports its modules while the caller goes on."""
        if _FORK_IS_SAFE and self._lock.acquire(blocking=False):  # who has the lock is starting the server
            try:
                self._running_server()
            finally:
                self._lock.release()

    def start(self, environment: dict[str, str], given_up: threading.Event) -> WorkerProcess:
        """Start a worker process. The call blocks: the fork server may still import.

        Args:
            environment: What the worker's environment has besides that of this process.
            given_up: Set if the worker is not waited for any longer.

        Raises:
            WorkerDiedError: If no process can be started.
            StartGivenUpError: If `given_up` is set before the worker is there.
        """
        try:
            ours, its = socket.socketpair()
            try:
                with its, self._locked(given_up):
                    start = self._fork if _FORK_IS_SAFE else self._start_alone
                    return start({**os.environ, **environment}, ours, its, given_up)
            except BaseException:
                ours.close()  # a worker that is forked later finds its channel closed, and ends
                raise
        except OSError as error:  # too many open files, for example
            raise WorkerDiedError(f"The system starts no worker process: {error}.") from error

    @contextlib.contextmanager
    def _locked(self, given_up: threading.Event) -> Iterator[None]:
        while not self._lock.acquire(timeout=_LOOK):
            if given_up.is_set():
                raise StartGivenUpError
        try:
            yield
        finally:
            self._lock.release()

    def _fork(
        self, environment: dict[str, str], ours: socket.socket, its: socket.socket, given_up: threading.Event
    ) -> WorkerProcess:
        state = {"environment": environment, "folder": _folder(), "path": _import_path(), "arguments": sys.argv}
        request = json.dumps({**state, **_inherited()}).encode()
        for _ in range(2):  # the server may have been killed
            status, its_status = os.pipe()
            try:
                answer = self._ask_server(request, its, its_status, status, given_up)
            except ConnectionError:
                answer = ""
            except BaseException:
                os.close(status)
                raise
            if answer.isdecimal():
                self._has_served = True
                return WorkerProcess(int(answer), ours, status)
            os.close(status)
            if not answer and self._server_runs():  # other workers run, which would end with their server
                answer = "the fork server has too many open files"
            if answer:
                raise WorkerDiedError(f"The system starts no worker process: {answer}.")
            self._stop()
        raise WorkerDiedError("The process that starts worker processes has died twice. See what it has printed.")

    def _ask_server(
        self, request: bytes, its: socket.socket, its_status: int, status: int, given_up: threading.Event
    ) -> str:
        """Ask the fork server for a worker. Return its answer: the worker's id, an error, or nothing."""
        try:
            # The request is a file, because a server that imports reads nothing yet: many bytes would wait for it.
            with open(os.memfd_create("request"), "w+b", buffering=0) as file:
                file.write(request)
                socket.send_fds(self._running_server(), [b"\0"], (file.fileno(), its.fileno(), its_status, 1, 2))
        finally:
            os.close(its_status)
        while not _is_readable(_LOOK, status):
            if given_up.is_set():
                raise StartGivenUpError
        return _read_line(status)

    def _server_runs(self) -> bool:
        """Return whether the fork server runs. One that was killed ends at once."""
        assert self._server is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(_END_PATIENCE)
        return self._server.returncode is None

    def _start_alone(
        self, environment: dict[str, str], ours: socket.socket, its: socket.socket, _given_up: threading.Event
    ) -> WorkerProcess:
        arguments = json.dumps([its.fileno(), _import_path(), sys.argv, os.getpid()])
        process = subprocess.Popen(  # noqa: S603 - this interpreter
            [sys.executable, "-P", "-c", _ALONE, arguments],
            env=environment,
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
        )
        status, its_status = os.pipe()
        threading.Thread(target=_tell_status, args=(process, its_status), daemon=True).start()
        return WorkerProcess(process.pid, ours, status)

    def _running_server(self) -> socket.socket:
        """Return the connection to the fork server of this process, which is started if need be."""
        if self._owner != os.getpid():  # a forked child has a server of its own
            self._server = self._control = None
            self._owner = os.getpid()
        if self._server is None or self._control is None or self._server.poll() is not None:
            self._stop()
            self._control, its = socket.socketpair()
            self._has_served = False
            with its:
                arguments = json.dumps([its.fileno(), _import_path(), self._preload, _WORK, os.getpid()])
                self._server = subprocess.Popen(  # noqa: S603 - this interpreter
                    [sys.executable, "-P", "-c", SERVER, arguments],
                    pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the searching process
                )
        return self._control

    def _stop(self) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                # The server kills its workers, and ends. A forked child of this process may have a copy of the socket.
                self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
        if self._server is not None:
            try:
                self._server.wait(_STATUS_PATIENCE if self._has_served else 0)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._server = self._control = None

    def close(self) -> None:
        """End the fork server and its workers."""
        if self._owner == os.getpid():
            has_lock = self._lock.acquire(timeout=_STATUS_PATIENCE)
            try:
                self._stop()
            finally:
                if has_lock:
                    self._lock.release()


def _tell_status(process: subprocess.Popen[bytes], pipe: int) -> None:
    with contextlib.suppress(OSError):
        os.write(pipe, b"%d\n" % process.wait())
    os.close(pipe)


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _inherited() -> dict[str, Any]:
    """Return what a process gets from the one that starts it, and that may have changed since the server's start."""
    kinds = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
    limits = {kind: resource.getrlimit(kind) for kind in kinds}
    umask = None
    with contextlib.suppress(OSError), open("/proc/self/status") as status:  # to ask for it otherwise is to change it
        umask = next((int(line.split()[1], 8) for line in status if line.startswith("Umask:")), None)
    return {"umask": umask, "cores": sorted(os.sched_getaffinity(0)), "limits": list(limits.items())}


def _import_path() -> list[str]:
    """Return where workers find modules: the path of this process, and the folders of modules from elsewhere.

    `pyflyte run file.py` has the file's folder on the path only while it imports the file.
    """
    path = list(map(str, sys.path))
    known = {os.path.abspath(folder) for folder in path}
    for name, module in list(sys.modules.items()):
        # Each start of a worker looks at all modules, of which there are thousands.
        looked = _folders.get(name)
        if looked is None or looked[0] != id(module):
            looked = _folders[name] = (id(module), _folder_of_loaded(name, module))
        folder = looked[1]
        if folder is not None and folder not in known:
            known.add(folder)
            # If another module of the name is found first, the folder was at the front when the module was imported.
            is_hidden = importlib.machinery.PathFinder.find_spec(name.partition(".")[0], path) is not None
            path.insert(0 if is_hidden else len(path), folder)
    return path


_folders: dict[str, tuple[int, str | None]] = {}  # by the name of a module: its id, and its folder


def _folder_of_loaded(name: str, module: Any) -> str | None:
    # `isinstance` would believe an object that claims to be a module, as those of cffi do.
    if not issubclass(type(module), types.ModuleType) or name in ("__main__", "__mp_main__"):
        return None
    file = object.__getattribute__(module, "__dict__").get("__file__")  # a lazy module would be loaded
    return folder_of(name, file) if isinstance(file, str) else None


def folder_of(module: str, file: str) -> str | None:
    """Return the folder in which Python finds a module; `None` if the module is not found by its name."""
    place = os.path.splitext(os.path.abspath(file))[0].removesuffix(f"{os.sep}__init__")
    relative = os.path.join("", *module.split("."))
    return os.path.dirname(place[: -len(relative)]) or os.sep if place.endswith(f"{os.sep}{relative}") else None


def _is_readable(patience: float, *files: int) -> bool:
    """Return whether one of some files has something to read, or has ended. Wait for that, but only some seconds."""
    poll = select.poll()  # `select.select` refuses files with high numbers
    for file in files:
        poll.register(file, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def _read_line(pipe: int) -> str:
    """Read a line, and no byte more: what follows is read later."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(pipe, 1)):
        line += byte
    return line.decode().strip()


_starters: dict[tuple[tuple[str, ...], ...], WorkerStarter] = {}
# A forked child begins anew: another thread of its parent may have held the lock of a starter.
os.register_at_fork(after_in_child=_starters.clear)


def starter_of(preload: Sequence[Sequence[str]]) -> WorkerStarter:
    """Return the starter of workers with these modules. All searches of this process share it."""
    return _starters.setdefault(tuple(map(tuple, preload)), WorkerStarter(preload))


@atexit.register
def _close_starters() -> None:
    for starter in _starters.values():
        starter.close()
