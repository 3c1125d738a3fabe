"""Every example, run as its docstring says."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.marks import needs_pyflyte

ROOT = Path(__file__).parent.parent


def run(*command):
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


pytestmark = pytest.mark.newest
PYFLYTE = "from flytekit.clis.sdk_in_container.pyflyte import main; main()"


@needs_pyflyte
@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["examples/quickstart.py", "search", "--n_trials", "4"], "4 trials, 0 failed. The best is number"),
        (["examples/multi_objective.py", "search", "--n_trials", "4"], "['accuracy', 'microseconds']"),
        (["examples/task_objective.py", "optuna_workflow", "--x_offset", "2.0"], "Running Execution on local"),
    ],
)
def test_an_example_runs_with_pyflyte(arguments, printed):
    assert printed in run(sys.executable, "-c", PYFLYTE, "run", *arguments)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("demo", "30 trials have finished: what was asked for."),
        ("quickstart", "Accuracy with scikit-learn's defaults: "),
        ("callable_objective", "Best parameters: {'x': "),
        ("task_objective", "."),
    ],
)
def test_an_example_runs_with_python(name, printed):
    assert printed in run(sys.executable, f"examples/{name}.py")


def test_the_example_of_property_tests_passes():
    assert "passed" in run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/test_space.py")
