"""Searches from sync code."""

import asyncio
import concurrent.futures
import signal
import threading

import pytest

from optuna_flyte_dsl import _run_sync
from optuna_flyte_dsl._run_sync import wait_for
from tests.support import wait_until
from tests.support._compat import code_that_runs


def test_a_signal_that_another_thread_gets_is_handled_while_a_search_runs_beside_an_event_loop():
    main_thread = threading.get_ident()
    handled = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())

    def deliver_signal():
        # Only the main thread runs handlers, and nothing wakes it here.
        wait_until(lambda: code_that_runs(main_thread) is threading.Condition.wait.__code__)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    async def search():
        async with asyncio.timeout(30):
            while not handled.is_set():
                await asyncio.sleep(0.01)
        return 5

    async def in_a_notebook():
        return wait_for(search())

    thread = threading.Thread(target=deliver_signal)
    thread.start()
    try:
        assert asyncio.run(in_a_notebook()) == 5
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join()


def test_an_interrupt_that_comes_when_the_search_has_just_ended_is_raised(monkeypatch):
    loops = []

    async def search():
        loops.append(asyncio.get_running_loop())

    def interrupt(future):
        concurrent.futures.wait([future])
        wait_until(loops[0].is_closed)
        if len(loops) == 1:
            loops.append(None)
            raise KeyboardInterrupt

    monkeypatch.setattr(_run_sync, "_wait_until_done", interrupt)

    async def in_a_notebook():
        wait_for(search())

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(in_a_notebook())


@pytest.mark.parametrize("inside", [False, True], ids=["script", "notebook"])
def test_an_error_reaches_the_caller(inside):
    async def fail():
        raise LookupError("here")

    async def in_a_notebook():
        wait_for(fail())

    with pytest.raises(LookupError, match="here"):
        asyncio.run(in_a_notebook()) if inside else wait_for(fail())
