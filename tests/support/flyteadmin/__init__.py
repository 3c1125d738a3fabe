"""A stand-in for a Flyte cluster: a control plane on loopback, and executions that are real processes."""

from tests.support.flyteadmin.admin import Fault, FlyteAdmin
from tests.support.flyteadmin.executions import Execution, Failed, Succeeded

__all__ = ["Execution", "Failed", "Fault", "FlyteAdmin", "Succeeded"]
