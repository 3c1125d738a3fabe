"""A process that has imported what worker processes need, and forks one of them at each request.

A worker then starts in milliseconds, and shares the memory of what is imported. Python's own fork server would import
the user's `__main__` in each worker, and would get another environment, folder and output only when it is made anew.

This module runs in the process of the fork server, and in the workers that are forked. `worker_starter` is the other
side.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

LENGTH = struct.Struct("!Q")  # of a message, before it
READ = b"\x06"  # what a worker sends when it has read a request
_LOOK = 1.0  # seconds between two looks whether the parent process is alive


def send_bytes(channel: socket.socket, data: bytes) -> None:
    """Send a message."""
    channel.sendall(LENGTH.pack(len(data)) + data)


def receive_bytes(channel: socket.socket) -> bytes:
    """Receive a message. Raise EOFError if the other side is gone."""
    (length,) = LENGTH.unpack(_received_all(channel, LENGTH.size))
    return _received_all(channel, length)


def _received_all(channel: socket.socket, left: int) -> bytes:
    parts = []
    while left:
        parts.append(_received(channel, left))
        left -= len(parts[-1])
    return b"".join(parts)


def _received(channel: socket.socket, most: int) -> bytes:
    data = channel.recv(min(most, 2**20))
    if not data:
        raise EOFError
    return data


class ForkServer:
    """Forks workers for one parent process, and ends with it.

    Args:
        control: Each byte is a request, with five files: the request itself, the worker's channel, the pipe in which
            the server writes the worker's id and at last its exit status, and the worker's output and error output. The
            request is the environment, the folder, the import path, the arguments, the umask, the cores and the limits
            of the parent, as JSON.
        work: What a worker does with its channel.
        parent: The id of the parent process, which may have died before this process could ask for it.
    """

    def __init__(self, control: socket.socket, work: Callable[[socket.socket], None], parent: int) -> None:
        self._control = control
        self._work = work
        self._parent = parent
        self._statuses: dict[int, int] = {}  # the id of each worker -> its pipe

    def serve(self) -> NoReturn:
        """Fork workers until the parent process is gone. Then kill all workers and end."""
        wakeup, signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        control = self._control.fileno()
        poll = select.poll()  # `select.select` refuses files with high numbers
        for file in (control, wakeup):
            poll.register(file, select.POLLIN)
        with contextlib.suppress(EOFError, OSError):
            while os.getppid() == self._parent:
                ready = [file for file, _ in poll.poll(_LOOK * 1000)]
                if wakeup in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wakeup, 4096)
                self._reap()
                if control in ready:
                    byte, files, _, _ = socket.recv_fds(self._control, 1, 5)
                    if not byte:
                        break
                    self._fork(files, wakeup, signalled)
        for worker in self._statuses:
            kill_group(worker, is_alive=True)
        os._exit(0)

    def _reap(self) -> None:
        for worker in list(self._statuses):
            ended, status = os.waitpid(worker, os.WNOHANG)
            if ended:
                pipe = self._statuses.pop(worker)
                with contextlib.suppress(OSError):  # the parent does not read any more
                    os.write(pipe, b"%d\n" % os.waitstatus_to_exitcode(status))
                os.close(pipe)

    def _fork(self, files: Sequence[int], *own: int) -> None:
        if len(files) < 5:  # this process has too many open files
            for file in files:
                os.close(file)
            return
        with open(files[0], "rb") as file_of_request:
            file_of_request.seek(0)
            request = file_of_request.read()
        files = files[1:]
        channel, pipe, out, err = files
        for file in (channel, pipe):  # what a worker starts must not keep them open
            os.set_inheritable(file, False)
        try:
            worker = os.fork()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.write(pipe, f"{error}\n".encode())
            for file in files:
                os.close(file)
            return
        if worker == 0:
            self._be_worker(json.loads(request), channel, (out, err), (pipe, *own, *self._statuses.values()))
        self._statuses[worker] = pipe  # now, so that it is killed with the others if the parent is gone
        with contextlib.suppress(OSError):  # the parent does not wait any more
            os.write(pipe, b"%d\n" % worker)
        for file in (channel, out, err):
            os.close(file)

    def _be_worker(
        self, request: dict[str, Any], channel: int, output: tuple[int, int], others: Sequence[int]
    ) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setpgid(0, 0)  # the group is killed with what the worker has started
            self._control.close()
            for file in others:
                os.close(file)
            for place, file in enumerate(output, 1):
                os.dup2(file, place)
                os.close(file)
            os.environ.clear()
            os.environ.update(request["environment"])
            sys.path[:], sys.argv[:] = request["path"], request["arguments"]
            with contextlib.suppress(OSError):  # the folder may be gone
                os.chdir(request["folder"])
            _inherit(request)
            if (numpy_random := sys.modules.get("numpy.random")) is not None:
                numpy_random.seed()  # else all workers would draw the same numbers
            self._work(socket.socket(fileno=channel))
            status = 0
        except BaseException:  # noqa: BLE001 - a worker must not go on as a server
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)


def _inherit(request: Mapping[str, Any]) -> None:
    """Take over what a process gets from the one that starts it: the umask, the cores and the limits."""
    if request["umask"] is not None:
        os.umask(request["umask"])
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, request["cores"])
    for kind, limits in request["limits"]:
        with contextlib.suppress(OSError, ValueError):  # only a privileged process may raise a hard limit
            if resource.getrlimit(kind) != tuple(limits):
                resource.setrlimit(kind, limits)


def kill_group(worker: int, *, is_alive: bool) -> None:
    """Kill what a worker has started, and the worker itself.

    Args:
        is_alive: Whether the worker has not ended: only then its id is surely its own.
    """
    # A worker that was just forked may not have its group yet.
    for kill in (os.killpg, os.kill) if is_alive else (os.killpg,):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(worker, signal.SIGKILL)


SERVER = """
import json, sys
control, path, preload, work, parent = json.loads(sys.argv[1])
sys.path[:], sys.argv[:] = path, [""]
from optuna_flyte_dsl.engines.fork_server import main
main(control, preload, work, parent)
"""
"""The program of a fork server."""

_NEVER_FORKED = {"jax", "jaxlib", "polars", "pyspark", "ray", "tensorflow"}  # they must not be imported before a fork


def main(control: int, preload: Sequence[Sequence[str]], work: str, parent: int) -> NoReturn:
    """Import modules, and serve. The imports that fail are left to the workers, whose errors name the cause.

    If a module imports a library that must not be imported before a fork, the server starts anew without the last group
    of modules.

    Args:
        control: The file of the socket to the parent process.
        preload: The names of the modules, in groups.
        work: What a worker does with its channel, as "module:function".
        parent: The id of the parent process.
    """
    for name in [name for group in preload for name in group]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if preload and _NEVER_FORKED & sys.modules.keys():
        os.set_inheritable(control, True)
        arguments = json.dumps([control, sys.path, preload[:-1], work, parent])
        os.execv(sys.executable, [sys.executable, "-P", "-c", SERVER, arguments])  # noqa: S606 - this interpreter
    module, _, function = work.partition(":")
    work_in = getattr(importlib.import_module(module), function)
    ForkServer(socket.socket(fileno=control), work_in, parent).serve()
