"""Private names of loky."""

import sys

from loky import ProcessPoolExecutor, process_executor


def python_is_exiting() -> bool:
    """Return whether loky has begun to end its workers because Python is exiting.

    Loky's errors do not say that Python is exiting.
    """
    return bool(process_executor._global_shutdown)


def keep_grown_workers() -> None:
    """Keep a worker process alive whatever memory it uses: the next trials may need what the worker has loaded."""
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


def kill_workers_at_exit(pool: ProcessPoolExecutor) -> None:
    """Make Python's exit kill the workers of a pool. By default, loky waits until the workers are idle."""
    pool._flags.kill_workers = True
