"""Worker processes: what is left of them when the process that searches is killed."""

import contextlib
import subprocess
import sys

import psutil
import pytest

from tests.support import wait_until

SEARCH = r"""
import os, sys, time
from optuna_flyte_dsl import Float, optimize
from optuna_flyte_dsl.engines import worker_starter

worker_starter._FORK_IS_SAFE = {fork}

@optimize(n_trials=2, concurrency=2, executor="process", progress=False)
def objective(x: Float(0, 1)) -> float:
    os.write(1, f"{{os.getpid()}}\n".encode())  # a line is written whole: two workers write at once
    {work}

objective.run_sync()
"""


@contextlib.contextmanager
def process_of(program, **options):
    """Run a program in a process of its own, and kill that at the end, or when a test fails before."""
    with subprocess.Popen([sys.executable, "-c", program], **options) as process:
        try:
            yield process
        finally:
            process.kill()


def left_of(pid):
    """Return the processes that a process has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


@pytest.mark.newest
@pytest.mark.parametrize("fork", [True, False], ids=["forked", "alone"])
@pytest.mark.parametrize("work", ["time.sleep(600)", "os.system('sleep 600')"], ids=["waits", "has a child"])
def test_workers_end_with_the_process_that_searches(fork, work):
    program = SEARCH.format(fork=fork, work=work)
    with process_of(program, stdout=subprocess.PIPE) as search:
        workers = [int(search.stdout.readline()) for _ in range(2)]
        all_processes = left_of(search.pid)
        assert set(workers) <= {each.pid for each in all_processes}
    wait_until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in all_processes))


@pytest.mark.newest
def test_a_worker_ends_with_the_process_that_searches_while_it_imports(tmp_path):
    module = tmp_path / "slow_module.py"
    started = tmp_path / "started"
    module.write_text(
        "import os, time, pathlib\n"
        "if 'fork_server' in ' '.join(open(f'/proc/{os.getppid()}/cmdline').read().split('\\0')):\n"
        f"    pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "from optuna_flyte_dsl import Float\n"
        "def objective(x: Float(0, 1)) -> float:\n"
        "    return x\n"
    )
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from slow_module import objective\n"
        "from optuna_flyte_dsl import Optimizer\n"
        "Optimizer(objective, 1, 1, executor='process', progress=False).run_sync()\n"
    )
    with process_of(program):
        wait_until(lambda: started.exists() and started.read_text())
        worker = psutil.Process(int(started.read_text()))
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
