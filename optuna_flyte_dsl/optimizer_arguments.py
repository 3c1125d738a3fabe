"""`OptimizerArguments`: the parameters of `Optimizer`, checked as those of `optimize`."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from optuna_flyte_dsl import _option_checks as check
from optuna_flyte_dsl.options import Options


@dataclass(frozen=True, eq=False, repr=False)
class _ObjectiveArgument:
    objective: Any


@dataclass(frozen=True, repr=False, eq=False)
class OptimizerArguments(Options, _ObjectiveArgument):
    """The parameters of `Optimizer`: the objective, `concurrency` and `n_trials`, then the options with defaults."""

    concurrency: Annotated[int, check.count] = field()
    n_trials: Annotated[int, check.count] = field()


OptimizerArguments.__init__.__qualname__ = "Optimizer"  # Python's errors about arguments show it
