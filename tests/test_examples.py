"""Every example, run as its docstring says."""

import os
import sys
from pathlib import Path

import pytest

from tests.support import scripts
from tests.support.marks import needs_pyflyte

ROOT = Path(__file__).parent.parent


def run(*command):
    returncode, output = scripts.run(command, ROOT, dict(os.environ), 300)
    assert returncode == 0, output
    return output


pytestmark = pytest.mark.newest


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
    assert printed in run("pyflyte", "run", *arguments)


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
