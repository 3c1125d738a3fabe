"""Private names of loky."""

import sys

from loky import ProcessPoolExecutor, process_executor


def python_is_exiting() -> bool:
    """Tell whether loky has begun to end its workers because Python is exiting. Its errors do not say so."""
    return bool(process_executor._global_shutdown)


def keep_grown_workers() -> None:
    """Let a worker process live on however much memory it uses: the next trials may need what it has loaded."""
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


def kill_workers_at_exit(pool: ProcessPoolExecutor) -> None:
    """Let Python's exit kill the workers of a pool. By itself, loky waits until what they run has ended."""
    pool._flags.kill_workers = True
