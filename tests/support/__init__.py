"""What several test files use: waiting for conditions, a movable clock, a stand-in cluster, a PostgreSQL server."""

import asyncio
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import socket
import threading
import time

import psutil

from optuna_flyte_dsl._pauses import pauses


@contextlib.contextmanager
def own_pauses():
    """Give the library's pauses, to be set. They are as before at the end."""
    before = dict(vars(pauses))
    try:
        yield pauses
    finally:
        vars(pauses).clear()
        vars(pauses).update(before)


def wait_until(condition, patience=30.0):
    """Wait for a condition that another thread or process brings about."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def wait_until_listening(port, process):
    """Wait until a server that a process starts accepts connections on a port of this machine."""

    def listens():
        assert process.poll() is None, "the server has ended"
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, patience=120.0)


def in_new_process(function, *arguments):
    """Return what a function returns in a process where no other test has left anything behind, or ends it yet."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def fail_at_call(monkeypatch, owner, method, error, *, number=20, is_done=False):
    """Let a method raise an error at its call of this number, before or after it has done its work."""
    original, calls = getattr(owner, method), itertools.count(1)

    def failing(self, *args, **kwargs):
        is_last = next(calls) == number
        if is_last and not is_done:
            raise error
        returned = original(self, *args, **kwargs)
        if is_last:
            raise error
        return returned

    monkeypatch.setattr(owner, method, failing)


class MovableTime(asyncio.SelectorEventLoop):
    """An event loop whose time a test moves, so that none has to wait for a deadline, or to be in time for it."""

    skipped = 0.0

    def time(self):
        return super().time() + self.skipped

    def skip(self, seconds):
        """Let so many seconds be over. It may be called in any thread."""

        def move():
            self.skipped += seconds

        self.call_soon_threadsafe(move)


def in_movable_time(main):
    """Run a coroutine function with the loop that it runs in; return what it returns."""
    with asyncio.Runner(loop_factory=MovableTime) as runner:
        return runner.run(main(runner.get_loop()))


def own_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("optuna-flyte")}


def worker_processes():
    """Return the worker processes of this process that are alive."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
            is_forked = process.parent() != psutil.Process() and "fork_server" in " ".join(process.parent().cmdline())
            is_alone = "worker_process import work" in " ".join(process.cmdline())
            if (is_forked or is_alone) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
