"""The package as it is shipped: its public names, its docstrings, its wheel."""

import importlib.metadata
import inspect
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

import optuna_flyte_dsl
from optuna_flyte_dsl import Optimizer, errors

ROOT = Path(__file__).parent.parent


def test_the_public_names_are_those_of_all():
    public = {name for name in dir(optuna_flyte_dsl) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(optuna_flyte_dsl, name))}
    assert public - modules == set(optuna_flyte_dsl.__all__)
    assert sorted(optuna_flyte_dsl.__all__) == optuna_flyte_dsl.__all__


@pytest.mark.parametrize("name", optuna_flyte_dsl.__all__)
def test_every_public_name_is_documented(name):
    thing = getattr(optuna_flyte_dsl, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__doc__
        assert thing.__doc__.split("\n")[0].endswith(".") or name == "suggest"


def test_every_error_has_one_root_and_is_public():
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, Exception):
            assert issubclass(error, errors.OptunaFlyteError)
            assert name in optuna_flyte_dsl.__all__


LATE = ("search", "sampling", "search_assembly", "search_plan", "optimizer", "engines._flytekit.cluster")
"""The modules that only a search needs."""


def loaded(tmp_path, program, **environment):
    """Return the modules of a new interpreter behind a program."""
    file = tmp_path / "program.py"  # flytekit reads the source code of a task
    file.write_text(f"{program}\nimport sys\nprint(*sys.modules)\n")
    environment = {**os.environ, **environment}
    told = subprocess.run([sys.executable, file], env=environment, check=True, capture_output=True, text=True)
    return set(told.stdout.split())


def test_an_import_loads_nothing_that_only_a_search_needs(tmp_path):
    modules = loaded(tmp_path, "from optuna_flyte_dsl import Float, optimize")
    assert "optuna_flyte_dsl.decorator" in modules
    assert not {"flytekit", *(f"optuna_flyte_dsl.{each}" for each in LATE)} & modules


TASK = """
import flytekit as fl
from optuna_flyte_dsl import Float, optimize

@optimize(n_trials=3)
@fl.task
def train(x: Float(0, 1)) -> float:
    return x
"""


def test_a_pod_of_a_trial_loads_nothing_that_only_a_search_needs(tmp_path):
    modules = loaded(tmp_path, TASK, FLYTE_INTERNAL_EXECUTION_ID="e")
    assert "optuna_flyte_dsl.engines._flytekit.flytekit_engine" in modules
    assert not {f"optuna_flyte_dsl.{each}" for each in LATE} & modules


def test_a_decoration_elsewhere_loads_all_that_a_search_needs(tmp_path):
    before = loaded(tmp_path, TASK)
    after = loaded(tmp_path, f"{TASK}\ntrain.run_sync()")
    assert "optuna_flyte_dsl.engines._flytekit.flytekit_runner" in before
    assert {each for each in after - before if each.startswith("optuna_flyte_dsl")} == set()


def test_the_version_is_the_packages():
    assert optuna_flyte_dsl.__version__ == importlib.metadata.version("optuna-flyte-dsl")


def test_each_environment_has_what_the_tests_import():
    def names(file):
        lines = (ROOT / "requirements" / file).read_text().splitlines()
        return {re.split(r"[=<>\[]", line)[0] for line in lines if line and not line.startswith("#")}

    measuring = {"pytest-cov"}  # for `make coverage` only
    assert names("oldest.in") - measuring <= names("next.in")
    assert names("next.in") - {"cloudpickle", "flyteidl", "grpcio", "psutil"} <= names("dev.in")


def test_the_wheel_holds_the_package_and_its_type_marker(installed_wheel):
    names = {str(path.relative_to(installed_wheel)) for path in installed_wheel.rglob("*") if path.is_file()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "optuna_flyte_dsl").rglob("*.py")}
    assert {name for name in names if not name.split("/")[0].endswith(".dist-info")} == {
        *sources,
        "optuna_flyte_dsl/py.typed",
        "pytest_optuna_flyte_dsl/__init__.py",
    }


@pytest.mark.newest
def test_the_installed_wheel_searches_with_the_sources_out_of_the_way(installed_wheel, tmp_path):
    (tmp_path / "user.py").write_text(
        "import flytekit as fl, optuna_flyte_dsl\n"
        "from optuna_flyte_dsl import Float, Minimize, optimize\n"
        f"assert optuna_flyte_dsl.__file__.startswith({str(installed_wheel)!r}), optuna_flyte_dsl.__file__\n"
        "@optimize(concurrency=2, n_trials=3, storage='s.journal', resume=True, progress=False)\n"
        "@fl.task\n"
        "def train(x: Float(0, 1)) -> Minimize:\n"
        "    return x\n"
        "for executor in ('thread', 'process'):\n"
        "    study = optimize(train.task, n_trials=2, executor=executor, progress=False).run_sync()\n"
        "    assert len(study.trials) == 2\n"
        "assert len(train.run_sync().trials) == 3\n"
    )
    env = {**os.environ, "PYTHONPATH": str(installed_wheel)}
    subprocess.run([sys.executable, "user.py"], cwd=tmp_path, env=env, check=True, timeout=300)


@pytest.mark.newest
def test_importing_it_neither_prints_nor_configures_logging():
    program = (
        "import logging; import flytekit, optuna; before = list(logging.getLogger().handlers); "
        "import optuna_flyte_dsl; assert logging.getLogger().handlers == before; "
        "assert not logging.getLogger('optuna_flyte_dsl').handlers"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == ""


def test_optunas_verbosity_is_respected(caplog):
    caplog.set_level(logging.DEBUG, logger="optuna_flyte_dsl")

    def failing(trial):
        raise RuntimeError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    Optimizer(failing, 1, 2).run_sync()
    assert not [record for record in caplog.records if record.name == "optuna_flyte_dsl"]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Optimizer(failing, 1, 2).run_sync()
    levels = {record.levelno for record in caplog.records if record.name == "optuna_flyte_dsl"}
    assert levels == {logging.WARNING}
