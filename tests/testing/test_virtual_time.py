"""An event loop on a virtual clock."""

import asyncio
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_flyte_dsl.testing.virtual_time import EndlessWaitError, InlineThreads, VirtualTimeLoop

pytestmark = pytest.mark.newest


def run(coroutine):
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


@given(st.lists(st.floats(0, 1e6) | st.sampled_from([1e7, 2**23, 1e8]), max_size=10))
def test_a_wait_ends_at_its_time_and_takes_none(seconds):
    async def sleeps(duration):
        await asyncio.sleep(duration)
        return asyncio.get_running_loop().time()

    async def main():
        return await asyncio.gather(*map(sleeps, seconds))

    assert run(main()) == pytest.approx(seconds, abs=1e-6, rel=1e-12)


def test_other_threads_are_waited_for_while_the_time_is_held():
    async def main():
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def work():
            time.sleep(0.05)
            loop.call_soon_threadsafe(done.set_result, "done")

        waiting = asyncio.ensure_future(asyncio.sleep(3600))
        with loop.held():
            threading.Thread(target=work).start()
            assert await done == "done"
        assert loop.time() == 0
        await waiting
        return loop.time()

    assert run(main()) == 3600


def test_a_wait_without_end_is_an_error():
    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(EndlessWaitError, match="waits for what never happens on a virtual clock"):
        run(main())


def test_inline_threads_run_at_once():
    async def main():
        threads = InlineThreads()
        future = threads.run(threading.get_ident)
        assert future.done()
        failed = threads.run(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            await failed
        await threads.close()
        return await future

    assert run(main()) == threading.get_ident()
