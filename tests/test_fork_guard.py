"""Forks wait for an import in another thread."""

import os
import subprocess
import sys
import threading
import time

from optuna_flyte_dsl import _fork_guard
from optuna_flyte_dsl._fork_guard import no_forks


def exit_code_of_a_child(work=lambda: None):
    child = os.fork()
    if not child:
        work()
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_waits_until_the_body_has_ended():
    events = []
    begun, go_on = threading.Event(), threading.Event()

    def importing():
        with no_forks():
            begun.set()
            go_on.wait(30)
            events.append("imported")

    thread = threading.Thread(target=importing)
    thread.start()
    begun.wait(30)
    threading.Timer(0.1, go_on.set).start()
    assert exit_code_of_a_child() == 7
    events.append("forked")
    thread.join()
    assert events == ["imported", "forked"]


def test_the_thread_itself_may_fork():
    with no_forks():
        assert exit_code_of_a_child() == 7


def test_a_fork_waits_for_its_patience_only_and_its_child_is_free(monkeypatch):
    monkeypatch.setattr(_fork_guard, "_PATIENCE", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    def importing():
        with no_forks():
            begun.set()
            go_on.wait(30)

    def in_child():
        with no_forks():
            pass

    thread = threading.Thread(target=importing)
    thread.start()
    begun.wait(30)
    assert exit_code_of_a_child(in_child) == 7
    go_on.set()
    thread.join()
    with no_forks():
        pass


def test_a_pool_of_forked_processes_works_while_a_package_is_imported(tmp_path):
    (tmp_path / "slow_package.py").write_text("import time\ntime.sleep(1)\nvalue = 3\n")
    program = (
        "import multiprocessing, threading, time\n"
        "from optuna_flyte_dsl._fork_guard import no_forks\n"
        "def work(x):\n"
        "    import slow_package\n"
        "    return x * slow_package.value\n"
        "def importing():\n"
        "    with no_forks():\n"
        "        import slow_package\n"
        "threading.Thread(target=importing).start()\n"
        "time.sleep(0.2)\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    print(sum(pool.map(work, [1, 2])))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout == "9\n", (done.stderr, time.monotonic() - begun)
