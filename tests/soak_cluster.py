"""Kills the pod of a large search on the stand-in cluster at random moments: `python -m tests.soak_cluster`.

The eager workflow's pod is a real process. Its trials' outputs are made by the control plane, after a random time. In
the end each trial must have exactly one execution, and the launches must have kept their pace.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from flyteidl.core import literals_pb2

from tests.support import wait_until
from tests.support.flyteadmin import FlyteAdmin, Succeeded
from tests.support.flyteadmin.executions import PHASES

ROOT = pathlib.Path(__file__).parent.parent


def run(trials: int, concurrency: int, kills: int, rng: random.Random) -> dict[str, float]:
    """Run one search, kill its pod, and check what is left. Return what was measured."""

    def outcome(execution):
        if execution.name == "eager":
            admin.propeller.start(execution)
            return None
        outputs = literals_pb2.LiteralMap()
        outputs.literals["o0"].CopyFrom(execution.inputs.literals["x"])
        return Succeeded(outputs, rng.uniform(5, 40))

    environment = {"N_TRIALS": str(trials), "CONCURRENCY": str(concurrency)}
    with (
        tempfile.TemporaryDirectory() as folder,
        FlyteAdmin(f"{folder}/flyte", python_path=[ROOT], environment=environment, instant=outcome) as admin,
    ):
        started = time.monotonic()
        where = ["-p", "project", "-d", "development", "--name", "eager"]
        subprocess.run(
            [pathlib.Path(sys.executable).parent / "pyflyte", "run", "--remote", *where, "many.py", "search"],
            cwd=ROOT / "tests" / "pods",
            env={**os.environ, **admin.client_environment, "FLYTE_LOCAL_SANDBOX_PATH": f"{folder}/sandbox"},
            check=True,
            capture_output=True,
        )
        eager = admin.executions["project", "development", "eager"]
        moments = sorted(rng.uniform(0.02, 0.95) for _ in range(kills))
        for moment in moments:  # a part of all launches, and then a random time
            wait_until(lambda part=moment: len(admin.executions) > part * trials or not eager.running, 600)
            time.sleep(rng.uniform(0, 2))
            for process in admin.propeller.processes(eager):
                os.killpg(process.pid, signal.SIGKILL)
        assert eager.done.wait(900), "it has not ended"
        assert eager.phase == PHASES.SUCCEEDED, eager.outcome
        seconds = time.monotonic() - started
        found = [each.split(":") for each in eager.outcome.outputs.literals["o0"].scalar.primitive.string_value.split()]
        executions = [each for each in admin.executions.values() if each.name != "eager"]
        assert collections.Counter(state for state, *_ in found) == {"COMPLETE": trials}
        assert all(float(x) == float(value) for _, x, value in found)
        assert len(executions) == trials, (len(executions), "executions for", trials)
        assert sorted(float(x) for _, x, _ in found) == sorted(
            each.inputs.literals["x"].scalar.primitive.float_value for each in executions
        )
        assert not admin.running()
        launches = [at for rpc, at in admin.times if rpc == "CreateExecution"][1:]
        starts = [at - time.time() + time.monotonic() for at in _starts_of_eager_pods(admin)]
        most = max(sum(first <= at < first + 10 for at in launches) for first in launches)
        for begin in launches:
            # A burst, ten seconds of the pace, and the burst of each pod that was started just before or meanwhile.
            fresh = sum(begin - 10 <= at < begin + 10 for at in starts)
            assert sum(begin <= at < begin + 10 for at in launches) <= 50 + 100 + 50 * fresh
        for begin, end in zip(starts, [*starts[1:], math.inf], strict=True):
            own = [at for at in launches if begin <= at < end]
            if len(own) > 150:  # launches are what it waits for, so they come as fast as their pace allows
                rate = (len(own) - 50) / (own[-1] - own[0])
                assert rate > 7, f"{rate:.1f} launches a second"
        return {
            "trials": trials,
            "kills at": [round(moment, 2) for moment in moments],
            "attempts": len(starts),
            "seconds": round(seconds),
            "ideal of the pace": round((trials - 50) / 10),
            "launches in the fullest 10 s": most,
            "requests a trial": round(sum(admin.counts.values()) / trials, 1),
        }


def _starts_of_eager_pods(admin: FlyteAdmin) -> list[float]:
    """Return when each attempt of the eager pod was started, in the time of `time.time`."""
    return [at for node, each in admin.propeller.attempts.items() if node.startswith("eager/") for at in each]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=500)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    print(run(options.trials, options.concurrency, options.kills, random.Random(options.seed)))


if __name__ == "__main__":
    main()
