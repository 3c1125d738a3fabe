"""SIGTERM where no pod handles it."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from optuna_flyte_dsl.engines._flytekit.cluster.laptop_sigterm import LaptopSigterm


@pytest.fixture
def handled():
    """Return a handler that is installed for the time of the test."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    handler = LaptopSigterm()
    handler.install()
    yield handler
    signal.signal(signal.SIGTERM, before)


async def search(handler, ended):
    handler.enter()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)  # executions are terminated
        ended.append(1)
        handler.leave()


def test_sigterm_cancels_all_searches_and_the_last_one_ends_the_process(handled):
    ended = []

    async def main():
        tasks = [asyncio.ensure_future(search(handled, ended)) for _ in range(3)]
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait(tasks)

    with pytest.raises(SystemExit) as error:
        asyncio.run(main())
    assert error.value.code == 143
    assert len(ended) == 3


def test_a_handler_of_the_program_is_left_alone():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        LaptopSigterm().install()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("forked", ["", "os.fork() and os._exit(-os.wait()[1])"])
def test_without_a_running_search_and_in_a_forked_child_sigterm_ends_the_process(forked):
    code = f"""
import asyncio, os, signal
from optuna_flyte_dsl.engines._flytekit.cluster.laptop_sigterm import LaptopSigterm
handler = LaptopSigterm()
handler.install()
async def main():
    if {bool(forked)}:
        handler.enter()
    if {bool(forked)} and os.fork():
        os._exit(os.wait()[1])
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(30)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode in (-signal.SIGTERM, int(signal.SIGTERM))
