"""What type checkers say of the public API: see `typing_api.py` for the code that they accept."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
pytestmark = [
    pytest.mark.newest,
    pytest.mark.skipif(not (BIN / "pyright").exists(), reason="the checkers are in the development environment only"),
]
REFUSED = """
import optuna
from optuna_flyte_dsl import Optimizer, optimize


@optimize
def bare(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


optimize(n_trial=3)
optimize(n_trials="3")
optimize(executor="gpu")
optimize(bare, 2, 10, sead=1)
Optimizer(bare, 2)
Optimizer(bare, 2, 3, sead=1)
Optimizer(bare, 2, 3, timeout="1h")
Optimizer(objective=bare, concurrency=2, n_trials=3, retries=None)
bare.task("trial")
bare.n_trials = "3"
bare.with_options(n_trial=3)
bare.with_options(n_trials="3")
"""
LINES = set(range(11, 23))


def run(*command, **env):
    return subprocess.run(
        [BIN / command[0], *command[1:]], capture_output=True, text=True, check=False, env={**os.environ, **env}
    ).stdout


def test_a_misspelt_name_and_a_wrong_type_are_refused_by_mypy(tmp_path):
    (tmp_path / "refused.py").write_text(REFUSED)
    said = run("mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "refused.py"))
    assert {int(line) for line in re.findall(r"refused\.py:(\d+): error", said)} == LINES, said


def test_a_misspelt_name_and_a_wrong_type_are_refused_by_pyright(tmp_path):
    (tmp_path / "refused.py").write_text(REFUSED)
    said = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, str(tmp_path / "refused.py")))
    errors = [each for each in said["generalDiagnostics"] if each["severity"] == "error"]
    assert {each["range"]["start"]["line"] + 1 for each in errors} == LINES, said


def test_the_type_of_each_public_symbol_is_known(installed_wheel, tmp_path):
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    said = subprocess.run(
        [BIN / "pyright", "--verifytypes", "optuna_flyte_dsl", "--ignoreexternal"],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(installed_wheel)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "Type completeness score: 100%" in said, said
