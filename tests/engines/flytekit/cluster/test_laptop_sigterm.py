"""SIGTERM where no pod handles it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading

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


def test_after_sigterm_no_search_begins_while_others_end(handled):
    refused = []

    async def ends_slowly(tried):
        handled.enter()
        try:
            await asyncio.Event().wait()
        finally:
            await tried.wait()
            handled.leave()

    async def begins_another(tried):
        try:
            await search(handled, [])
        finally:
            try:
                handled.enter()
            except asyncio.CancelledError as error:
                refused.append(str(error))
            tried.set()

    async def main():
        tried = asyncio.Event()
        tasks = [asyncio.ensure_future(begins(tried)) for begins in (ends_slowly, begins_another)]
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait(tasks)

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert refused == ["This process has got SIGTERM: it begins no other search."]


def test_a_search_in_another_thread_ends_the_main_thread_too(handled):
    begun = threading.Event()

    async def main():
        asyncio.get_running_loop().call_soon(begun.set)
        await search(handled, [])

    def run():
        with contextlib.suppress(SystemExit):
            asyncio.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()

    def terminate():  # the thread may end while the signal is still being handled
        os.kill(os.getpid(), signal.SIGTERM)
        thread.join(30)

    with pytest.raises(SystemExit) as error:
        terminate()
    assert error.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "another SIGTERM ends what does not want to end"

    async def another():  # the program has caught the error, and goes on
        handled.enter()
        handled.leave()

    asyncio.run(another())


def test_a_search_that_ends_while_sigterm_is_handled_ends_the_process(handled):
    """The search of another thread ends between the two steps of the handler."""

    class Ending(set):
        def __bool__(self):
            self.clear()
            return False

    handled._searches = Ending({("a loop", "a task")})
    killed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, number: killed.append(number))
        handled._on_sigterm(signal.SIGTERM, None)
    assert killed == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.newest
@pytest.mark.parametrize("forked", [False, True])
def test_without_a_running_search_and_in_a_forked_child_sigterm_ends_the_process(forked):
    code = f"""
import asyncio, os, signal
from optuna_flyte_dsl.engines._flytekit.cluster.laptop_sigterm import LaptopSigterm
handler = LaptopSigterm()
handler.install()
async def main():
    if {forked}:
        handler.enter()
    if {forked} and os.fork():
        os._exit(os.wait()[1])
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(30)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode in (-signal.SIGTERM, int(signal.SIGTERM))


def test_the_error_that_ends_the_process_is_not_replaced_by_another_cancellation(handled):
    async def cleans_up():
        try:
            await search(handled, [])
        finally:
            await asyncio.sleep(0.2)  # meanwhile, the program's other task ends, and asyncio cancels this one

    async def main():
        await asyncio.gather(search(handled, []), cleans_up())

    async def start():
        task = asyncio.ensure_future(main())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await task

    with pytest.raises(SystemExit) as error:
        asyncio.run(start())
    assert error.value.code == 143
