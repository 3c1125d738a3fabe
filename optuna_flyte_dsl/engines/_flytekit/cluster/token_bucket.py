"""`TokenBucket`: limits how many requests are made in a second."""

import math
import threading
import time


class TokenBucket:
    """A token bucket: it holds a burst of tokens, and fills at a rate. A new bucket is full."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = math.inf  # the number of requests that may begin at once; if negative, of requests that wait
        self._filled = 0.0  # the time at which tokens were last added

    def take(self, rate: float, burst: float) -> float:
        """Reserve a request, and return the seconds to wait before it is made; 0 if it may be made now.

        Args:
            rate: The tokens that are added in a second.
            burst: The number of tokens that the bucket can hold now.
        """
        with self._lock:
            self._fill(rate, burst)
            self._tokens -= 1
            return max(0.0, -self._tokens / rate)

    def take_at_once(self, rate: float, burst: float) -> bool:
        """Take a token if one is available, and return whether a token was taken; see `take`."""
        with self._lock:
            self._fill(rate, burst)
            is_there = self._tokens >= 1
            self._tokens -= is_there
            return is_there

    def _fill(self, rate: float, burst: float) -> None:
        now = time.monotonic()
        self._tokens = min(burst, self._tokens + (now - self._filled) * rate)
        self._filled = now
