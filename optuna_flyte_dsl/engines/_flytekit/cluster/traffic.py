"""`Traffic`: the pace and the poller that all searches of a caller share."""

import asyncio
import threading

from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin, GivenUpError
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_connection import Connection
from optuna_flyte_dsl.engines._flytekit.cluster.poller import Poller
from optuna_flyte_dsl.engines._flytekit.cluster.token_bucket import TokenBucket


class Traffic:
    """The shared poller, and the pace of launches.

    Args:
        patience: The seconds for which an outage is waited out.
    """

    def __init__(self, connection: Connection, patience: float) -> None:
        self._connection = connection
        self._admin = Admin(connection.remote, patience)
        self._lock = threading.Lock()
        self._launches = TokenBucket()
        self._users = 0
        self._poller: Poller | None = None

    def enter(self) -> Poller:
        """Return the poller of executions. Each user of the poller calls `leave` once."""
        with self._lock:
            self._users += 1
            if self._poller is None:
                where = (self._connection.project, self._connection.domain)
                deck = self._connection.deck
                self._poller = Poller(self._admin, *where, deck.publish if deck is not None else lambda: None)
            return self._poller

    async def leave(self) -> None:
        with self._lock:
            self._users -= 1
            poller = self._poller if self._users == 0 else None
            if poller is not None:
                self._poller = None
        if poller is not None:
            await poller.close()
            if self._connection.deck is not None:
                await asyncio.to_thread(self._connection.deck.finish)

    def wait_to_launch(self, options: Cluster, given_up: threading.Event) -> None:
        """Wait until the token bucket allows a launch.

        While `launch_burst` or more executions are queued in Flyte, launches follow the rate without a burst.
        """
        poller = self._poller
        queued = poller.queued if poller is not None else 0
        burst = options.launch_burst if queued < options.launch_burst else 1
        if given_up.wait(self._launches.take(options.launches_per_second, burst)):
            raise GivenUpError("Given up: a launch.")
