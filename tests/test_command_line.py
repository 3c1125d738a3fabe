"""The command `optuna-flyte-dsl`."""

import json
import pathlib
import subprocess
import sys

import pytest

from optuna_flyte_dsl import SearchSpace
from optuna_flyte_dsl.command_line import main

pytestmark = pytest.mark.newest

FILE = """
import flytekit as fl
from typing import Annotated
from optuna_flyte_dsl import Float, Integer, Minimize, Optimizer, optimize

@optimize(n_trials=20)
@fl.task
def train(lr: Annotated[float, Float(1e-5, 1e-1)], name: str, depth: Annotated[int, Integer(1, 9)] = 3) -> Minimize:
    print("a trial has run")
    return 0.0

def own(trial, center: float):
    raise AssertionError

search = Optimizer(own, concurrency=2, n_trials=10)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / f"searches_{tmp_path.name}.py"
    path.write_text(FILE)
    return str(path)


def test_the_plan_is_shown(file, capsys):
    assert main(["plan", file, "train", "name=no", "depth=4", "n_trials=9"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("train: 9 trials, 1 at once\n├── space of train: 1 parameter")
    assert "name = 'no' (fixed)" in shown
    assert "depth = 4 (fixed)" in shown
    assert main(["plan", file, "search", "center=0.5"]) == 0
    assert capsys.readouterr().out.startswith("own: 10 trials, 2 at once")


def test_what_a_file_prints_is_no_part_of_the_output(file, capsys):
    path = pathlib.Path(file)
    path.write_text(f"{FILE}\nprint('a file prints')\n")
    assert main(["space", file, "train"]) == 0
    printed = capsys.readouterr()
    assert "a file prints" not in printed.out
    assert "a file prints" in printed.err


def test_a_space_needs_no_value_for_each_argument(file, capsys):
    assert main(["space", file, "train"]) == 0
    assert "  name: {type: str}\n" in capsys.readouterr().out


def test_a_strict_plan_fails_if_something_looks_wrong(file):
    assert main(["plan", file, "train", "name=x", "--strict"]) == 1
    assert main(["plan", file, "train", "name=x", "lr=0.1", "n_trials=5", "--strict"]) == 0


def test_the_space_is_written_in_each_form(file, capsys, tmp_path):
    def written(form):
        assert main(["space", file, "train", "--form", form]) == 0
        return capsys.readouterr().out

    space = SearchSpace.from_yaml(written("yaml"))
    assert space == SearchSpace.from_json(written("json"))
    assert written("text") == f"{space}\n"
    assert json.loads(written("schema")) == space.json_schema()
    changed = tmp_path / "space.yaml"
    space.replace(depth=7).save(changed)
    assert main(["plan", file, "train", "name=x", "--space", str(changed)]) == 0
    assert "depth = 7 (fixed)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "name=x"], "has no search called `trian`; it has `train`, `search`. Did you mean `train`?"),
        (["own"], "has no search called `own`; it has"),
        (["train"], "ArgumentError: `train` needs a value for `name`"),
        (["train", "name={a"], "The value of `name` must be YAML, but got '{a'"),
        (["train", "name"], "An argument must be written as `name=value`, but got 'name'"),
        (["train", "name=x", "name=y"], "`name` was given twice. Give it once."),
        (["train", "name=x", "lr=7"], "OutOfRangeError: `train`: `lr` must lie within"),
        (["train", "name=x", "--space", "none.yaml"], "InvalidSpaceError: The file of a space, 'none.yaml'"),
    ],
)
def test_a_wrong_argument_gets_its_error(file, capsys, arguments, message):
    assert main(["plan", file, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_imported_gets_its_error(tmp_path, capsys):
    assert main(["plan", str(tmp_path / "none.py"), "train"]) == 2
    assert "does not exist. Give the path of a Python file" in capsys.readouterr().err
    broken = tmp_path / "broken_file.py"
    broken.write_text("import no_such_module")
    assert main(["plan", str(broken), "train"]) == 2
    assert "broken_file" not in sys.modules
    assert "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'" in capsys.readouterr().err


def test_the_command_is_installed(file):
    command = [f"{sys.prefix}/bin/optuna-flyte-dsl", "plan", file, "train", "name=x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.partition("\n")[0]) == (0, "train: 20 trials, 1 at once"), done.stderr
