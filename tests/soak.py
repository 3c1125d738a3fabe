"""Kills searches with SIGKILL at random moments, again and again, and looks what is left: `make soak`.

Each campaign is a study on one storage, which one to four searches share. The processes of the searches are killed,
stopped for a while and started again, until the searches have come to their end; also as restarted containers, and as
cloned machines with one host name. Then the study must hold just the trials that were asked for, with the values that
their parameters have, none of those missing that a process has seen told, and none running.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid

import optuna
import psutil
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


AS_ROOT = [] if os.geteuid() == 0 else ["--map-root-user"]
UNSHARE = ["unshare", *AS_ROOT, "--mount", "--fork", "--pid", "--mount-proc"]
NAMESPACES = """
set -e
mount -t tmpfs tmpfs /var/tmp
if [ -n "$BOOT_ID" ]; then mount --bind "$BOOT_ID" /proc/sys/kernel/random/boot_id; fi
exec "$@"
"""
"""Makes the process the first one of a container; with BOOT_ID, of a cloned machine, which has been started anew."""


def can_make_namespaces() -> bool:
    command = [*UNSHARE, "sh", "-c", NAMESPACES, "sh", "true"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, env={**os.environ, "BOOT_ID": ""}).returncode == 0
    return False


class Search:
    """One of the searches of a study: its process is killed, stopped for a while, and started again.

    Args:
        place: "here"; "container", whose restarts have the same host name and the same pid; or "clone", a machine with
            the host name of the others and with another boot.
    """

    def __init__(self, command: list[str], place: str, folder: pathlib.Path) -> None:
        self._command, self._place, self._folder = command, place, folder
        self._starts = 0
        self.is_done = False
        self.start()

    def start(self) -> None:
        command, environment = self._command, dict(os.environ)
        if self._place != "here":
            environment["BOOT_ID"] = ""
            if self._place == "clone":
                self._starts += 1
                boot = self._folder / f"boot-{id(self)}-{self._starts}"
                boot.write_text(f"{uuid.uuid4()}\n")
                environment["BOOT_ID"] = str(boot)
            command = [*UNSHARE, "--kill-child=SIGKILL", "sh", "-c", NAMESPACES, "sh", *command]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
        )
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()

    def kill(self) -> bool:
        """Kill the process. Return whether it was running still."""
        if self.process.poll() is not None:
            return False
        self.process.send_signal(signal.SIGKILL)
        self.end()
        return not self.is_done

    def pause(self, seconds: float) -> None:
        """Stop the process for a while: it is alive, and does nothing."""
        with contextlib.suppress(psutil.NoSuchProcess):
            everything = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
            for each in everything:
                os.kill(each.pid, signal.SIGSTOP)
            time.sleep(seconds)
            for each in everything:
                os.kill(each.pid, signal.SIGCONT)

    def end(self) -> None:
        """Wait for the end of the process. It may have been killed when its search had ended already."""
        out, err = self.process.communicate(timeout=180)
        assert self.process.returncode in (0, -signal.SIGKILL), err
        self.is_done = out == "done\n"
        assert self.is_done or self.process.returncode != 0, out


def campaign(
    kind: str,
    *,
    kills: int,
    rng: random.Random,
    executor: str = "thread",
    n_trials: int,
    searches: int = 1,
    place: str = "here",
) -> dict:
    """Run searches of one study, kill and stop them at random moments, and check what is left.

    Returns:
        How many kills and stops there were, and how many trials were lost and tried again.
    """
    with tempfile.TemporaryDirectory() as name, storage_of(kind, pathlib.Path(name)) as (url, open_storage):
        folder = pathlib.Path(name)
        script, log = folder / "search.py", folder / "told.log"
        script.write_text(SEARCH)
        killed = stopped = 0
        command = [sys.executable, str(script), url, str(log), executor, str(n_trials)]
        running = [Search(command, place, folder) for _ in range(searches)]
        while killed < kills and not all(search.is_done for search in running):
            time.sleep(rng.uniform(0.0, KILL_WITHIN))
            victim = rng.choice([search for search in running if not search.is_done])
            if rng.random() < 0.2:
                victim.pause(rng.uniform(0.0, 2.0))
                stopped += 1
            elif victim.kill():
                killed += 1
            if victim.process.poll() is not None and not victim.is_done:
                if victim.process.returncode == 0:
                    victim.end()
                else:
                    victim.start()
        for search in running:
            if not search.is_done:
                search.end()
                assert search.is_done
        result = check(optuna.load_study(study_name="soak", storage=open_storage()), log, n_trials)
        return {"kills": killed, "stops": stopped, **result}


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
    # Without a lock of the storage, several searches may enqueue them at once; all but one are closed.
    spare = "tries these parameters again already"
    retries = collections.Counter(
        trial.user_attrs["optuna_flyte_dsl:retry_of"]
        for trial in trials
        if "optuna_flyte_dsl:retry_of" in trial.user_attrs
        and spare not in trial.user_attrs.get("optuna_flyte_dsl:error", "")
    )
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
    places = ["here", "container", "clone"]
    if not can_make_namespaces():
        places = ["here"]
        print("This machine makes no namespaces: neither restarted containers nor cloned machines are tried.")
    totals: dict[str, collections.Counter] = {kind: collections.Counter() for kind in options.storages}
    print(f"seed {options.seed}; trials a search: {N_TRIALS}")
    # Each storage meets each place, with one search and with several, before any of them comes again.
    plans = [
        (kind, place, is_shared)
        for kind in options.storages
        for place in (places if kind in ("journal", "sqlite", "postgresql") else ["here"])
        for is_shared in (False, True)
    ]
    rng.shuffle(plans)
    for turn, (kind, place, is_shared) in enumerate(itertools.cycle(plans)):
        if sum(total["kills"] for total in totals.values()) >= options.kills:
            break
        executor = "process" if turn % 3 == 2 else "thread"
        searches = rng.randint(2, 4) if is_shared else 1
        n_trials = N_TRIALS[kind] * (1 if searches == 1 else 2)
        result = campaign(kind, kills=12, rng=rng, executor=executor, n_trials=n_trials, searches=searches, place=place)
        totals[kind].update({"searches": searches, **result})
        print(kind, executor, place, searches, json.dumps(result), flush=True)
    print(f"{'storage':12} {'searches':>8} {'kills':>6} {'stops':>6} {'lost':>5}")
    for kind, total in totals.items():
        print(f"{kind:12} {total['searches']:8} {total['kills']:6} {total['stops']:6} {total['lost']:5}")
    print("Each search ended with just its trials finished, none running, and no told value lost or doubled.")


if __name__ == "__main__":
    main()
