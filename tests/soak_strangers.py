"""Attacks a trial server with connections that show no token: `python -m tests.soak_strangers`.

Processes open hundreds of connections, and send calls without a token on all of them. Meanwhile a trial reports, over
its connection and over new ones. No report may take a second longer than it takes without an attack.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time

import optuna

from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from tests.support.strangers import calls_without_a_token

LIMIT = 1.0
SECONDS = 8.0


def serve() -> None:
    """Serve a trial until standard input ends, and print its handle and token."""
    study = optuna.create_study(study_name="s")
    trial = study.ask()
    server = TrialServer(storage_of(study), "s")
    print(server.serve(trial).to_text(), server.token_of(trial_id(trial)), sep="\t", flush=True)
    sys.stdin.read()
    server.close()


def attack(address: str, connections: int) -> None:
    """Keep so many connections open for a while, and send calls on all of them."""
    host, _, port = address.rpartition(":")
    calls = calls_without_a_token(1_000)
    left: dict[socket.socket, bytes] = {}
    end = time.monotonic() + SECONDS + 2.0
    while time.monotonic() < end:
        while len(left) < connections:
            made = socket.create_connection((host, int(port)), timeout=5)
            made.setblocking(False)
            left[made] = calls
        for connection in list(left):
            try:
                while connection.recv(65_536):
                    pass
                raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                connection.close()
                del left[connection]
                continue
            try:
                left[connection] = left[connection][connection.send(left[connection][:16_384]) :] or calls
            except BlockingIOError:
                pass
            except OSError:
                connection.close()
                del left[connection]


def longest_report(handle: TrialHandle, first: int, *, anew: bool) -> float:
    """Report for a while; return the longest time of a report, in seconds."""
    trial, step, longest = handle.open(), first, 0.0
    end = time.monotonic() + SECONDS / 2
    while time.monotonic() < end:
        began = time.monotonic()
        (handle.open() if anew else trial).report(1.0, step)
        longest, step = max(longest, time.monotonic() - began), step + 1
        time.sleep(0.05)
    return longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("internal", nargs="*", help=argparse.SUPPRESS)
    internal = parser.parse_args().internal
    if internal:
        serve() if internal[0] == "serve" else attack(internal[1], int(internal[2]))
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    command = [sys.executable, "-W", "ignore", "-m", "tests.soak_strangers"]
    with subprocess.Popen(
        [*command, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        text, token = server.stdout.readline().strip().split("\t")
        os.environ[TOKEN_ENV] = token
        handle = TrialHandle.from_text(text)
        idle = longest_report(handle, 0, anew=False)
        for number, (processes, connections) in enumerate([(1, 200), (2, 250), (2, 600)]):
            attackers = [
                subprocess.Popen([*command, "attack", handle.address, str(connections)], stderr=subprocess.DEVNULL)
                for _ in range(processes)
            ]
            time.sleep(2.0)
            first = 10_000 * (number + 1)
            kept = longest_report(handle, first, anew=False)
            new = longest_report(handle, first + 5_000, anew=True)
            for each in attackers:
                each.kill()
                each.wait()
            print(
                f"{processes} x {connections} connections: the longest report took {kept:.2f} s, and {new:.2f} s over "
                f"a new connection ({idle:.2f} s without an attack)",
                flush=True,
            )
            assert max(kept, new) < idle + LIMIT
        server.stdin.close()


if __name__ == "__main__":
    main()
