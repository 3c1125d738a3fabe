"""Nodes and attempts of an eager workflow's execution."""

import asyncio

import quick

from optuna_flyte_dsl import Cluster, Optimizer
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.engines._flytekit.cluster import cluster_site as site_module
from optuna_flyte_dsl.study.attributes import EXECUTIONS
from optuna_flyte_dsl.study.liveness import Life
from tests.support.cluster_searches import echo, executions, there
from tests.support.eager_pod import Pod, killed_after
from tests.support.flyteadmin.nodes import NODE
from tests.support.small_searches import states


def test_the_execution_of_an_eager_workflow_tells_whether_it_lives(cluster, tmp_path):
    cluster.instant = lambda execution: None
    there_too = there(Optimizer(quick.train.task, 1, 1, progress=False), cluster)

    async def main():
        site = site_module.current_site()
        task = asyncio.ensure_future(there_too())
        while not cluster.executions:
            await asyncio.sleep(0.005)
        (running,) = executions(cluster)
        thread = Threads(limit=1)
        async with site.start_search(Cluster(), "key", thread) as search:
            mine = search.evidence
            folder = str(pod.node.folder)
            assert mine == {"execution": ["project", "development", "eager"], "node": folder, "attempt": 2}
            other = {"execution": ["project", "development", running.name], "node": "n0", "attempt": 0}
            gone = {"execution": ["project", "development", "gone"], "node": "n0", "attempt": 0}
            lives = [search.life({**mine, "attempt": 1}), search.life(mine), search.life(other), search.life(gone)]
            task.cancel()
            await asyncio.wait([task])
            await asyncio.to_thread(executions, cluster)  # the execution has ended
            lives += [search.life(other), search.life({})]
            # Another node of the same execution is no attempt of this one.
            beside = {**mine, "node": str(sibling.node.folder), "attempt": 0}
            lives.append(search.life(beside))
            sibling.node.phase = NODE.FAILED
            lives.append(search.life(beside))
        await thread.close()
        return lives

    pod, sibling = Pod(cluster, tmp_path, 2), Pod(cluster, tmp_path, 0, node="n1")
    sibling.controller.stopping_condition.set()
    lives = pod.run(main)
    assert lives == [Life.DEAD, Life.ALIVE, Life.ALIVE, None, Life.DEAD, None, Life.ALIVE, Life.DEAD]


def test_two_nodes_of_one_execution_do_not_take_each_others_executions(cluster, tmp_path):
    """Each node's eager workflow begins with the same points, and is killed and started again."""
    cluster.instant = echo(seconds=0.1)
    found = {}
    for node, launches in (("n0", 3), ("n1", 9)):
        pod = Pod(cluster, tmp_path / node, 0, node=node)
        pod.run(lambda now=launches: killed_after(cluster, now, quick.train()))
        found[node] = Pod(cluster, tmp_path / node, 1, node=node).run(quick.train)
    for study in found.values():
        assert states(study) == ["COMPLETE"] * 6
    first, second = ([trial.params for trial in study.trials[:2]] for study in found.values())
    assert first == second, "they would have the same names and inputs"
    names = [
        {entry["name"] for trial in each.trials for entry in trial.user_attrs[EXECUTIONS]} for each in found.values()
    ]
    assert not names[0] & names[1]
    assert len(cluster.executions) == 12, "nothing was terminated or run twice"
    assert not cluster.counts["TerminateExecution"]
