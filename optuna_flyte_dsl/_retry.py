"""`retry`: repeats a call while its error may pass. `backoff`: the pauses between the attempts."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def backoff(first: float, longest: float, patience: Callable[[], float], *, jitter: float = 0.0) -> Iterator[float]:
    """Yield pauses in seconds that double from `first` to `longest`, until the time of `patience` is over.

    Args:
        patience: A function that returns how many seconds to keep retrying, counted from the first pause.
            `patience` is called before each pause.
        jitter: The fraction of each pause that is random, from 0 to 1: callers that failed together spread out.
    """
    started, pause = time.monotonic(), first
    while (left := patience() - (time.monotonic() - started)) > 0:
        yield min(left, pause * random.uniform(1.0 - jitter, 1.0))  # noqa: S311 - not a secret
        pause = min(2 * pause, longest)


def retry(
    call: Callable[[], T],
    pauses: Iterator[float],
    *,
    may_pass: Callable[[Exception], bool],
    wait: Callable[[float], Any] = time.sleep,
) -> T:
    """Call a function until it returns, or until its error is final or the pauses have run out; then raise the error.

    Args:
        pauses: The seconds to wait after each failure. The iterator is first advanced after the first failure.
        may_pass: Tells whether an error may pass by itself. `may_pass` is called at each failure, so it may also log.
        wait: Waits for a number of seconds. An error that `wait` raises ends the retries.
    """
    while True:
        try:
            return call()
        except Exception as error:
            if not may_pass(error):
                raise
            pause = next(pauses, None)
            if pause is None:
                raise
        wait(pause)
