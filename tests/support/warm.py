"""A process that has imported flytekit, and waits: each order that it reads becomes a process, which is a fork of it.

Such a process runs a script as `python <script>` would: as `__main__`, to the end of the interpreter. It has imported
nothing of the user's and nothing of the library under test.
"""

import atexit
import contextlib
import gc
import json
import os
import pathlib
import runpy
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback

BASE = sys.path[1:]  # what a script finds without PYTHONPATH
SCRIPTS = ("pyflyte", "pyflyte-execute", "pyflyte-fast-execute", "pyflyte-map-execute")


def is_script(command):
    """Return whether a command runs a script of flytekit, or a user's file by this Python."""
    is_file = command[0] == sys.executable and str(command[1]).endswith(".py")
    return is_file or pathlib.Path(command[0]).name in SCRIPTS


def wait_for_order():
    """Fork a process for each order. Return the order in the new process; the waiting one ends with its input."""
    wakeup, wake = os.pipe()
    os.set_blocking(wakeup, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wakeup, selectors.EVENT_READ)
    numbers, text = {}, b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if wakeup in ready:
            os.read(wakeup, 4096)
            report_ends(numbers)
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                for pid in numbers:
                    os.killpg(pid, signal.SIGKILL)
                sys.exit()
            *lines, text = (text + read).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    os.close(wakeup)
                    os.close(wake)
                    return order
                numbers[pid] = order["number"]


def report_ends(numbers):
    """Tell how the processes that have ended did so: an exit code, or a signal as a negative number."""
    while numbers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        tell({"number": numbers.pop(pid), "ended": os.waitstatus_to_exitcode(status)})


def tell(what):
    os.write(1, json.dumps(what).encode() + b"\n")


def run(order):
    """Be the new process: in a session, with files, in a folder of its own."""
    os.setsid()
    tell({"number": order["number"], "started": os.getpid()})  # from now on it can be signalled
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, file in ((0, null), (1, output), (2, output)):
        os.dup2(file, number)
    os.close(null)
    os.close(output)
    os.chdir(order["folder"])
    run_script(order["command"], order["environment"])


def run_script(command, environment):
    os.environ.clear()
    os.environ.update(environment)
    on_path = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    script = str(pathlib.Path(sys.executable).with_name(pathlib.Path(command[0]).name))
    arguments = command[1:]
    if command[0] == sys.executable:
        script, arguments = os.path.abspath(command[1]), command[2:]
    sys.path[:] = [os.path.dirname(script), *on_path, *BASE]
    sys.argv[:] = [script, *arguments]
    if script.endswith("pyflyte-fast-execute"):
        subprocess.Popen = Popen
    if script.endswith("pyflyte-execute"):
        run_pod(script)
    else:
        runpy.run_path(script, run_name="__main__")


def run_pod(script):
    """Run a script of a pod, and end the process without taking the interpreter apart.

    That would copy most of the memory that the process shares with the one that it is a fork of.
    """
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        code = 1 if isinstance(end.code, str) else end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Popen(subprocess.Popen):
    """Starts the script that `pyflyte-fast-execute` runs in a process of its own, as a fork of this process."""

    def __new__(cls, command, *arguments, env=None, **others):
        return _Fork(command, env) if is_script(command) else super().__new__(cls)


class _Fork:
    def __init__(self, command, environment):
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            run_script(command, dict(environment or os.environ))
            sys.exit()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self):
        try:
            _, status = os.waitpid(self.pid, 0)
        except KeyboardInterrupt:  # `subprocess.Popen` gives the child a quarter of a second too
            time.sleep(0.25)
            raise
        return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    import flytekit.bin.entrypoint
    import joblib.hashing  # noqa: F401
    import mashumaro.jsonschema  # noqa: F401  # what flytekit imports for a dataclass
    import optuna
    import psutil  # noqa: F401

    with contextlib.suppress(ValueError):  # on Python 3.13, this module of flytekit cannot be imported
        import flytekit.clis.sdk_in_container.pyflyte  # noqa: F401

    optuna.storages.RDBStorage("sqlite:///:memory:").engine.dispose()  # imports SQLAlchemy and Alembic
    with contextlib.suppress(ImportError):  # on the oldest versions, no test runs an example
        import sklearn.ensemble
        import sklearn.model_selection  # noqa: F401

    gc.collect()
    gc.freeze()  # no process that is forked collects the garbage of what is imported
    run(wait_for_order())
