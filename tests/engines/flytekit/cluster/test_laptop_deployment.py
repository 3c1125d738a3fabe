"""Searches that a laptop starts."""

import pytest
import quick
from flytekit.configuration import ImageConfig

from optuna_flyte_dsl import Cluster, InvalidOptionError, optimize
from tests.support.cluster_searches import there


def test_options_of_another_type_and_a_remote_that_is_none_are_named(cluster):
    with pytest.raises(InvalidOptionError, match=r"`cluster` must be a Cluster.*but got 3"):
        optimize(quick.train, cluster=3)
    with pytest.raises(InvalidOptionError, match="`on` takes a FlyteRemote, but got 'host'"):
        quick.train.on("host")
    with pytest.raises(InvalidOptionError, match="a default project and domain"):
        quick.train.on(cluster.remote(project=None))
    assert repr(Cluster(interruptible=True)) == "Cluster(interruptible=True)"


def test_a_python_without_a_default_image_is_named_with_the_cure(cluster, monkeypatch):
    def refuse():
        raise ValueError("(3, 99) is not a valid PythonVersion")

    monkeypatch.setattr(ImageConfig, "auto_default_image", refuse)
    with pytest.raises(InvalidOptionError, match=r"no default image for this Python.*image_config=ImageConfig.auto"):
        quick.train.on(cluster.remote()).run_sync()


def test_a_task_is_registered_once_and_the_code_is_uploaded_once(cluster):
    objective = there(quick.train, cluster)
    objective.run_sync()
    objective.run_sync()
    assert cluster.counts["CreateTask"] == cluster.counts["CreateUploadLocation"] == 1
    assert len(cluster.executions) == 12
    versions = {version for *_, version in cluster.tasks}
    there(quick.train, cluster).run_sync()  # another process, with the same code
    assert {version for *_, version in cluster.tasks} == versions
