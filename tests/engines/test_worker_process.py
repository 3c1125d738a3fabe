"""Worker processes: what is left of them when their parent is killed."""

import pickle
import subprocess
import sys
import time

import pytest

from optuna_flyte_dsl.engines.worker_process import WatchedInitializer, start_worker


class TakesAMinute:
    """Takes a minute to be unpickled, as imports may."""

    def __reduce__(self):
        return time.sleep, (60,)


def test_a_worker_ends_with_its_parent_while_it_imports():
    gone = 2**22 + 1  # no process has this id
    data = pickle.dumps((WatchedInitializer(gone), TakesAMinute()))
    program = "import pickle, sys; pickle.load(sys.stdin.buffer)"
    done = subprocess.run([sys.executable, "-c", program], input=data, timeout=45)
    assert done.returncode == 1


@pytest.mark.newest
def test_the_initializer_is_that_of_a_worker_once_it_is_unpickled():
    initializer = WatchedInitializer(0)
    with pytest.raises(NotImplementedError):
        initializer()
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).__name__)"
    data = pickle.dumps(initializer).replace(b"os.getppid() == 0", b"os.getppid() != 0")  # its parent is alive
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, timeout=45)
    assert done.stdout.decode().strip() == start_worker.__name__, done.stderr
