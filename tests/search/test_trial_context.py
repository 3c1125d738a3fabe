"""A coroutine in a context of its own: it is awaited as a task of its own would be, for any ways that it goes."""

import asyncio
import contextvars

import pytest

from optuna_flyte_dsl.search.trial_context import InContext

variable = contextvars.ContextVar("variable", default=0)


async def count_up(*pauses):
    for pause in pauses:
        variable.set(variable.get() + 1)
        await pause()
    return variable.get()


async def pause():
    await asyncio.sleep(0)


async def no_pause():
    pass


def test_what_the_coroutine_sets_stays_in_its_context():
    async def main():
        variable.set(10)
        context = contextvars.copy_context()
        returned = await InContext(count_up(pause, pause), context)
        return returned, context[variable], variable.get()

    assert asyncio.run(main()) == (12, 12, 10)


@pytest.mark.parametrize("pauses", [(), (no_pause,), (pause,), (no_pause, pause)])
def test_it_tells_whether_the_coroutine_has_waited(pauses):
    async def main():
        awaited = InContext(count_up(*pauses), contextvars.copy_context())
        await awaited
        return awaited.has_waited

    assert asyncio.run(main()) is (pause in pauses)


def test_an_error_goes_out_and_a_cancellation_goes_in():
    seen = []

    async def waits_for_ever():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append(variable.get())
            raise LookupError from None

    async def main():
        task = asyncio.create_task(wrapped(waits_for_ever()))
        await asyncio.sleep(0)
        variable.set(1)
        task.cancel()
        with pytest.raises(LookupError):
            await task

    async def wrapped(coroutine):
        context = contextvars.copy_context()
        context.run(variable.set, 5)
        return await InContext(coroutine, context)

    asyncio.run(main())
    assert seen == [5]


def test_timeouts_and_the_current_task_are_those_of_the_task_that_awaits():
    async def sleeps():
        async with asyncio.timeout(0):
            await asyncio.sleep(600)

    async def main():
        with pytest.raises(TimeoutError):
            await InContext(sleeps(), contextvars.copy_context())
        current = asyncio.current_task()
        assert await InContext(_current(), contextvars.copy_context()) is current
        assert not current.cancelling()

    async def _current():
        await pause()
        return asyncio.current_task()

    asyncio.run(main())


def test_a_coroutine_that_is_given_up_is_closed():
    closed = []

    async def waits():
        try:
            await asyncio.get_running_loop().create_future()
        except GeneratorExit:
            closed.append(variable.get())
            raise

    async def wrapped():
        await InContext(waits(), contextvars.copy_context())

    async def main():
        coroutine = wrapped()
        coroutine.send(None)
        coroutine.close()

    asyncio.run(main())
    assert closed == [0]
