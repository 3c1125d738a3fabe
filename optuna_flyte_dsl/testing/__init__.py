"""Test helpers for users of the library."""

from optuna_flyte_dsl.testing.faults import Fault, Faults
from optuna_flyte_dsl.testing.simulation import simulate
from optuna_flyte_dsl.testing.simulation_result import SimulatedRun, Simulation

__all__ = ["Fault", "Faults", "SimulatedRun", "Simulation", "simulate"]
