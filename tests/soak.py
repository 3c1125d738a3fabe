"""Kills searches with SIGKILL at random moments, again and again, and looks what is left: `make soak`.

Each campaign is one search on one storage. A process runs it, is killed, is started again, until the search has come to
its end. Then the study must hold just the trials that were asked for, with the values that their parameters have, none
of those missing that a process has seen told, and none running.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import optuna
from optuna.trial import TrialState

from tests.support import wait_until_listening
from tests.support.postgres import Postgres, free_port

N_TRIALS = {"journal": 200, "sqlite": 40, "postgresql": 60, "grpc": 60}
STORAGES = tuple(N_TRIALS)
KILL_WITHIN = 1.0
"""Seconds after the start of a search within which it is killed."""

SEARCH = """
import asyncio, os, random, sys, time
import optuna
from optuna_flyte_dsl import Category, Float, Integer, Minimize, optimize

url, log, executor = sys.argv[1:4]
n_trials = int(sys.argv[4])
optuna.logging.set_verbosity(optuna.logging.ERROR)


def storage():
    if url.startswith("grpc:"):
        return optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=int(url.removeprefix("grpc:")))
    return url


def note(study, trial):
    if trial.state is optuna.trial.TrialState.COMPLETE:
        line = f"{trial.number} {trial.value!r}\\n".encode()
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line)
        os.close(file)


@optimize(
    concurrency=4, n_trials=n_trials, storage=storage if url.startswith("grpc:") else url, study_name="soak",
    resume=True, callbacks=[note], progress=False, executor=executor, max_consecutive_failures=None,
    initial_points=[{"x": 0.5}, {"x": -0.5, "kind": "b"}],
)
def objective(x: Float(-1, 1), steps: Integer(1, 5), kind: Category(["a", "b"])) -> Minimize:
    time.sleep(random.uniform(0.0, 0.05))
    if x > 0.9:
        raise ValueError("failed by itself")
    return x * steps + (kind == "a")


print("ready", flush=True)
objective.run_sync()
print("done", flush=True)
"""


class Proxy:
    """Optuna's gRPC proxy before a database, in a process of its own."""

    def __init__(self, url: str) -> None:
        self.port = free_port()
        self._url = url
        self.start()

    def start(self) -> None:
        program = (
            "import sys, optuna\n"
            "optuna.storages.run_grpc_proxy_server(optuna.storages.get_storage(sys.argv[1]), host='127.0.0.1', "
            "port=int(sys.argv[2]))"
        )
        command = [sys.executable, "-W", "ignore", "-c", program, self._url, str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_until_listening(self.port, self.process)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def storage_of(kind: str, folder: pathlib.Path):
    """Yield a storage's name for the searching process, and a function that opens it here."""
    with contextlib.ExitStack() as stack:
        if kind == "journal":
            path = folder / "study.journal"
            yield (
                str(path),
                lambda: optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path))),
            )
        elif kind == "sqlite":
            url = f"sqlite:///{folder}/study.db"
            yield url, lambda: optuna.storages.RDBStorage(url)
        else:
            server = stack.enter_context(contextlib.closing(Postgres()))
            if kind == "postgresql":
                yield server.url, lambda: optuna.storages.RDBStorage(server.url)
            else:
                proxy = stack.enter_context(contextlib.closing(Proxy(server.url)))
                yield f"grpc:{proxy.port}", lambda: optuna.storages.RDBStorage(server.url)


def value(params: dict) -> float:
    return params["x"] * params["steps"] + (params["kind"] == "a")


def campaign(kind: str, *, kills: int, rng: random.Random, executor: str = "thread", n_trials: int) -> dict:
    """Run one search, killing it at most so many times, and check what is left.

    Returns:
        How many kills there were, and how many trials were lost and tried again.
    """
    with tempfile.TemporaryDirectory() as name, storage_of(kind, pathlib.Path(name)) as (url, open_storage):
        folder = pathlib.Path(name)
        script, log = folder / "search.py", folder / "told.log"
        script.write_text(SEARCH)
        killed = 0
        while True:
            process = subprocess.Popen(
                [sys.executable, str(script), url, str(log), executor, str(n_trials)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            if killed < kills:
                time.sleep(rng.uniform(0.0, KILL_WITHIN))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
            out, err = process.communicate(timeout=120)
            if process.returncode == 0:
                assert out == "done\n", out
                break
            assert process.returncode == -signal.SIGKILL, err
            killed += 1
        result = check(optuna.load_study(study_name="soak", storage=open_storage()), log, n_trials)
        return {"kills": killed, **result}


def check(study: optuna.Study, log: pathlib.Path, n_trials: int) -> dict:
    trials = study.get_trials()
    lost = [trial for trial in trials if trial.user_attrs.get("optuna_flyte_dsl:lost")]
    finished = [trial for trial in trials if trial.state.is_finished() and trial not in lost]
    states = collections.Counter(trial.state.name for trial in trials)
    assert states["RUNNING"] == 0, states
    assert len(finished) == n_trials, (len(finished), states, len(lost))
    for trial in finished:
        if trial.state is TrialState.COMPLETE:
            assert trial.value == value(trial.params)
        else:
            assert trial.params["x"] > 0.9
    told = dict(line.split() for line in log.read_text().splitlines())
    by_number = {str(trial.number): trial for trial in trials}
    for number, said in told.items():
        assert by_number[number].value == float(said), (number, said)
    # The parameters of each lost trial are tried again, once.
    retries = collections.Counter(trial.user_attrs.get("optuna_flyte_dsl:retry_of") for trial in trials)
    del retries[None]
    assert set(retries.values()) <= {1}, retries
    for trial in lost:
        if trial.params and "optuna_flyte_dsl:retry_of" not in trial.user_attrs:
            assert trial.number in retries, trial
    # An initial point may be lost twice, and is then given up.
    points = [trial.params.get("x") for trial in (*finished, *lost)]
    assert {0.5, -0.5} <= set(points)
    return {"lost": len(lost), "waiting": states["WAITING"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--storages", nargs="+", default=STORAGES, choices=STORAGES)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    totals: dict[str, collections.Counter] = {kind: collections.Counter() for kind in options.storages}
    print(f"seed {options.seed}; trials a search: {N_TRIALS}")
    turns = 0
    while sum(total["kills"] for total in totals.values()) < options.kills:
        kind = options.storages[turns % len(options.storages)]
        executor = "process" if turns // len(options.storages) % 3 == 2 else "thread"
        result = campaign(kind, kills=12, rng=rng, executor=executor, n_trials=N_TRIALS[kind])
        totals[kind].update({"searches": 1, **result})
        turns += 1
        print(kind, executor, json.dumps(result), flush=True)
    print(f"{'storage':12} {'searches':>8} {'kills':>6} {'lost':>5}")
    for kind, total in totals.items():
        print(f"{kind:12} {total['searches']:8} {total['kills']:6} {total['lost']:5}")
    print("Each search ended with just its trials finished, none running, and no told value lost or doubled.")


if __name__ == "__main__":
    main()
