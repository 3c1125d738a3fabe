"""A stand-in for a Flyte cluster: a control plane on loopback, and executions that are real processes."""

from tests.flyteadmin.admin import Fault, FlyteAdmin
from tests.flyteadmin.executions import Execution, Failed, Succeeded

__all__ = ["Execution", "Failed", "Fault", "FlyteAdmin", "Succeeded"]
