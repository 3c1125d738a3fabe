"""The warning of an async objective that blocks the event loop."""

import asyncio
import time

import pytest

from optuna_flyte_dsl import Float, optimize


@pytest.fixture(autouse=True)
def _quick(pauses):
    pauses.loop_check, pauses.loop_block = 0.05, 0.2


async def blocks(x: Float(0, 1)) -> float:
    await asyncio.sleep(0)
    time.sleep(0.6)
    return x


def test_an_async_function_that_blocks_is_warned_of_once(warned):
    optimize(blocks, n_trials=3, concurrency=2, progress=False).run_sync()
    (line,) = warned()
    assert line.startswith("`blocks` is an async function, and the event loop was blocked for ")
    assert "Write `def` instead of `async def`" in line


def test_without_others_to_hold_up_nothing_is_said(warned):
    optimize(blocks, n_trials=2, concurrency=1, progress=False).run_sync()
    assert warned() == []


def test_a_sync_function_blocks_nothing(warned):
    @optimize(n_trials=2, concurrency=2, progress=False)
    def sleeps(x: Float(0, 1)) -> float:
        time.sleep(0.6)
        return x

    sleeps.run_sync()
    assert warned() == []
