"""Optuna-distributed with the threads of a local Dask cluster."""

import functools

from _command_line import print_seconds
from dask.distributed import Client
from optuna_distributed_processes import search

if __name__ == "__main__":
    client = Client(n_workers=1, threads_per_worker=64, dashboard_address=None)
    print_seconds(functools.partial(search, client=client))
    client.close()
