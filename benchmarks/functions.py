"""Objectives without flytekit: a worker process of a function needs none."""

import time

from optuna_flyte_dsl import Float


def sleeps(x: Float(0, 1)) -> float:
    time.sleep(0.1)
    return x


def waits(x: Float(0, 1), seconds: float) -> float:
    time.sleep(seconds)
    return x


def computes(x: Float(0, 1)) -> float:
    """Use 13 ms of CPU time."""
    end = time.process_time() + 0.013
    while time.process_time() < end:
        pass
    return x
