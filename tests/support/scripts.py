"""Starts scripts of flytekit, as `pyflyte` and those of pods.

Such a script takes seconds to import flytekit. So each is a fork of a process that has imported it: `warm.py`.
"""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

from tests.support import warm


def start(command, folder, environment, output):
    """Start a process in a session of its own, whose standard output and error go to a file.

    Args:
        command: A command and its arguments. A script of flytekit, and a file for this Python, start warm, everything
            else from nothing.
        folder: The working directory.
        environment: All environment variables.
        output: The path of the file.

    Returns:
        What `subprocess.Popen` would return: `pid`, `returncode`, `poll`, `wait` and `send_signal`.
    """
    if warm.is_script(command):
        return _warm().start(command, folder, environment, output)
    with open(output, "wb") as file:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def run(command, folder, environment, timeout=240):
    """Run a process to its end; return its exit code and its output."""
    with tempfile.NamedTemporaryFile("r") as output:
        process = start(command, folder, environment, output.name)
        try:
            process.wait(timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, output.read()


class _Process:
    def __init__(self, command):
        self.pid = None
        self.returncode = None
        self.started = threading.Event()
        self._command = command
        self._ended = threading.Event()

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(self._command, timeout)
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def has_started(self, pid):
        self.pid = pid
        self.started.set()

    def has_ended(self, returncode):
        self.returncode = returncode
        self.started.set()
        self._ended.set()


class _Warm:
    """Gives orders to the warm process, and reads what it tells, as lines of JSON."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, pathlib.Path(warm.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            start_new_session=True,
        )
        self._lock = threading.Lock()
        self._started = []
        threading.Thread(target=self._read, name="warm-scripts", daemon=True).start()

    def start(self, command, folder, environment, output):
        process = _Process(command)
        with self._lock:
            order = {"number": len(self._started), "command": [str(each) for each in command]}
            order |= {"folder": str(folder), "environment": environment, "output": str(output)}
            self._started.append(process)
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        process.started.wait()
        assert process.pid is not None, f"it could not be started: {command}"
        return process

    def _read(self):
        for line in self._process.stdout:
            told = json.loads(line)
            process = self._started[told["number"]]
            process.has_started(told["started"]) if "started" in told else process.has_ended(told["ended"])
        for process in self._started:  # the warm process has died, and nobody knows how they end
            if process.returncode is None:
                process.has_ended(-1)


@functools.cache
def _warm():
    return _Warm()
