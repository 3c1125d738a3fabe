import asyncio
import contextvars
import os
import threading

import pytest

from optuna_flyte_dsl._threads import Threads, finish
from tests.support import own_threads, wait_until


async def names_of(threads, jobs):
    return [await threads.run(lambda: threading.current_thread().name) for _ in range(jobs)]


def test_an_idle_thread_is_used_again():
    async def main():
        threads = Threads()
        names = await names_of(threads, 50)
        await threads.close()
        return names

    assert len(set(asyncio.run(main()))) == 1


def test_a_name_is_used_again():
    async def main():
        names = set()
        for _ in range(10):
            threads = Threads()
            names |= set(await names_of(threads, 2))
            await threads.close()
        return names

    assert len(asyncio.run(main())) == 1


def test_there_are_as_many_threads_as_jobs_that_wait_for_each_other():
    async def main():
        threads, barrier = Threads(), threading.Barrier(20)
        await asyncio.gather(*(threads.run(barrier.wait, 30) for _ in range(20)))
        await threads.close()

    asyncio.run(main())
    assert own_threads() == set()


def test_with_a_limit_of_one_jobs_run_in_their_order():
    async def main():
        threads, order = Threads(limit=1), []
        await asyncio.gather(*(threads.run(order.append, number) for number in range(100)))
        await threads.close()
        return order

    assert asyncio.run(main()) == list(range(100))


def test_a_job_runs_under_a_copy_of_the_callers_context():
    variable = contextvars.ContextVar("variable", default=0)

    async def main():
        threads = Threads()
        variable.set(1)

        def job():
            before = variable.get()
            variable.set(2)
            return before

        assert await threads.run(job) == 1
        assert variable.get() == 1
        await threads.close()

    asyncio.run(main())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopIteration])
def test_an_error_reaches_the_caller(error):
    async def main():
        threads = Threads()

        def job():
            raise error("mine")

        try:
            await threads.run(job)
        except BaseException as raised:
            return raised
        finally:
            await threads.close()

    raised = asyncio.run(asyncio.wait_for(main(), 30)) if error is not KeyboardInterrupt else error("mine")
    assert "mine" in str(raised)


def test_an_error_whose_class_cannot_be_read_reaches_the_caller():
    class Odd(Exception):
        @property
        def __class__(self):
            raise RuntimeError("no class")

    async def main():
        threads = Threads()

        def job():
            raise Odd

        try:
            await asyncio.wait_for(threads.run(job), 30)
        finally:
            await threads.close()

    with pytest.raises(RuntimeError, match=r"The function raised .*Odd\(\)"):
        asyncio.run(main())


def test_a_child_that_a_job_has_forked_ends_with_the_job():
    async def main():
        threads = Threads()
        child = await threads.run(os.fork)
        await threads.close()
        return child

    child = asyncio.run(main())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_closing_waits_for_no_job_that_hangs():
    release = threading.Event()

    async def main():
        threads, started = Threads(), threading.Event()

        def job():
            started.set()
            release.wait(30)

        future = threads.run(job)
        await asyncio.to_thread(started.wait, 30)
        await threads.close()
        assert not future.done()
        with pytest.raises(RuntimeError, match="closed"):
            threads.run(job)

    asyncio.run(main())
    assert own_threads()
    release.set()
    wait_until(lambda: not own_threads())


def test_a_thread_that_cannot_start_leaves_nothing_behind(monkeypatch):
    async def main():
        threads = Threads(limit=1)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread")))
            with pytest.raises(RuntimeError, match="no thread"):
                threads.run(print)
        assert await threads.run(lambda: 3) == 3
        await threads.close()

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("has_started", [True, False])
def test_an_interrupt_at_a_threads_start_leaves_no_thread_that_takes_part(has_started, monkeypatch):
    start = threading.Thread.start

    def interrupted(self):
        if has_started:
            start(self)
        raise KeyboardInterrupt

    async def main():
        threads = Threads()
        first = threads.run(release.wait, 30)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                threads.run(print)
        release.set()
        await first
        assert await threads.run(lambda: 3) == 3
        await threads.close()

    release = threading.Event()
    asyncio.run(asyncio.wait_for(main(), 30))
    wait_until(lambda: not own_threads())


def test_what_is_closed_ends_if_what_it_waits_for_was_cancelled():
    async def main():
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()

        async def closing():
            await gone

        await finish(closing)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(main(), 10))
