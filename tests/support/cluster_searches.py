"""Searches on the cluster of the tests: outcomes, states, and ends."""

import asyncio

import grpc
from flyteidl.core import literals_pb2

from optuna_flyte_dsl import Cluster
from tests.support import wait_until
from tests.support.eager_pod import IMAGES
from tests.support.flyteadmin import Succeeded
from tests.support.flyteadmin.executions import PHASES


def outputs(value):
    literals = literals_pb2.LiteralMap()
    literals.literals["o0"].scalar.primitive.float_value = value
    return literals


def echo(seconds=0.0):
    """Let each execution return its `x`."""

    def outcome(execution):
        given = execution.inputs.literals
        value = given["x"].scalar.primitive.float_value if "x" in given else 1.0
        return Succeeded(outputs(value), seconds)

    return outcome


def there(objective, admin):
    return objective.on(admin.remote(), image_config=IMAGES)


def with_options(objective, **options):
    return objective.with_options(cluster=Cluster(**options))


def executions(admin):
    """Return all executions, once those that were told to end have ended."""
    wait_until(lambda: not [each for each in admin.executions.values() if each.phase == PHASES.ABORTING])
    return list(admin.executions.values())


PASSING = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
]


async def ended_there(cluster, search, value=1.0):
    """Run a search, and let all that runs end once the search has had time to adopt it."""
    task = asyncio.ensure_future(search)
    await asyncio.sleep(0.5)
    for execution in cluster.running():
        execution.finish(Succeeded(outputs(value)))
    return await task
