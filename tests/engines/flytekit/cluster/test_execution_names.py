"""Names of executions, and links to them."""

import re

import quick

from optuna_flyte_dsl.study.attributes import EXECUTIONS
from tests.support.cluster_searches import executions, there, with_options
from tests.support.flyteadmin.errors import NAME
from tests.support.small_searches import states


def test_each_trial_is_an_execution_whose_name_stands_in_its_attributes(cluster):
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 6
    assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]
    named = [entry for trial in study.trials for entry in trial.user_attrs[EXECUTIONS]]
    assert sorted(entry["name"] for entry in named) == sorted(each.name for each in executions(cluster))
    for entry in named:
        assert NAME.fullmatch(entry["name"])
        assert len(entry["name"]) <= 63
        assert entry["url"].endswith(f"/console/projects/project/domains/development/executions/{entry['name']}")


def test_links_open_in_the_console_whose_address_the_pod_knows(cluster, monkeypatch):
    own = "https://flyte.example.com/console/projects/project/domains/development/executions/eager/nodeId/n0-0/nodes"
    monkeypatch.setenv("FLYTE_EXECUTION_URL", own)
    study = there(quick.train, cluster).run_sync()
    (entry,) = study.trials[0].user_attrs[EXECUTIONS]
    assert entry["url"] == (
        f"https://flyte.example.com/console/projects/project/domains/development/executions/{entry['name']}"
    )


def test_links_open_in_the_console_that_the_user_names(cluster, monkeypatch):
    monkeypatch.setenv("FLYTE_EXECUTION_URL", "https://inner.example.com/projects/project/domains/development")
    study = there(with_options(quick.train, console_url="https://flyte.example.com/console/"), cluster).run_sync()
    (entry,) = study.trials[0].user_attrs[EXECUTIONS]
    start = "https://flyte.example.com/console/projects/project/domains/development/executions/"
    assert entry["url"] == f"{start}{entry['name']}"


def test_a_name_says_which_task_and_which_trial_an_execution_runs(cluster):
    study = there(quick.train, cluster).run_sync()
    for trial in study.trials:
        (entry,) = trial.user_attrs[EXECUTIONS]
        assert re.fullmatch(rf"o-train-{trial.number}-[0-9a-f]{{20}}", entry["name"])
