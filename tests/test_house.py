"""The rules of the house, which the code must keep: names, sizes, and who may touch what."""

import ast
import collections
import functools
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.newest  # the rules depend on no version of a package
ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "optuna_flyte_dsl"
SOURCES = sorted(PACKAGE.rglob("*.py"))
OTHERS = [path for folder in ("tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
ALL = [*SOURCES, *sorted(OTHERS)]
ROOMS = {"_compat", "_compat.py", "test_compat.py"}
"""The only places that may touch a private name of another package: the library's, the tests', and their tests."""
ALLOWED = {
    "_getframe",
    "_exit",
    "_shutdown",
    "_run_exitfuncs",
    "_fields",
    "_self_",
    "_run_once",
    "_flytecheckpoints",
    "_F_",
    "_F_EE_ROOT",
    "__optuna",
}
"""Names of the standard library, the prefix that wrapt's documentation gives to a proxy's own attributes, and texts
that Flyte and Optuna write into folders, environments and attributes."""


WHOLES = ["docs", "examples", "house", "migration", "package", "pods", "sweeps", "typing"]
"""What is tested and is no single module: pages, examples, rules, whole searches in pods."""


def is_private(name):
    is_dunder = name.startswith("__") and name.endswith("__")
    return name.isidentifier() and name.startswith("_") and name != "_" and not is_dunder


def may_touch_private_names(path):
    return bool(ROOMS & {path.name, path.parent.name})


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


@functools.cache
def own_names():
    """Return the private names that this project itself defines."""
    names = set()
    for path in ALL:
        if may_touch_private_names(path):
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name | ast.arg):
                names.add(node.id if isinstance(node, ast.Name) else node.arg)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                names |= {node.attr} if owner in ("self", "moved") else set()
        names |= {part for part in path.relative_to(ROOT).with_suffix("").parts if part.startswith("_")}
    return {*names, "_compat"}


def foreign_names():
    """Return the private names of other packages that the rooms for them touch."""
    paths = [path for path in ALL if may_touch_private_names(path) and path.name != "test_compat.py"]
    return {name for path in paths for _, name in private_uses(path) if is_private(name)} - {"_compat"}


def private_uses(path):
    """Yield each private name that a file's code takes from an object or a module, or writes as a string.

    What is taken from `self` is not yielded where this project defines or sets it anywhere.
    """
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if name in own_names():
                continue
            case ast.Attribute():
                yield node.lineno, node.attr
            case ast.Constant(value=str(text)):
                yield node.lineno, text
            case ast.keyword(arg=str(name)):
                yield node.lineno, name
            case ast.Import(names=names):
                for alias in names:
                    yield from ((node.lineno, name) for name in alias.name.split("."))
            case ast.ImportFrom(module=str(module)):
                for name in [*module.split("."), *(alias.name for alias in node.names)]:
                    yield node.lineno, name


def test_private_names_of_other_packages_are_touched_in_their_rooms_only():
    allowed = (own_names() - foreign_names()) | ALLOWED
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in ALL
        if not may_touch_private_names(path) and path != Path(__file__)
        for line, name in private_uses(path)
        if is_private(name) and name not in allowed
    ]
    assert found == []


OTHERS_PRIVATE_ATTRIBUTES = {
    "auto_sampler.py": {"other._points", "other._start"},
    "conditions.py": {"other._key"},
    "conformance.py": {"search._session"},
    "_options_base.py": {"type(self)._checks"},
    "optimizer.py": {
        "moved._own_session",
        "other._own_session",
        "other._source",
        "optimizer._own_session",
        "optimizer._source",
    },
    "progress.py": {"Bar._taken"},
    "sandbox.py": {"current._sandbox", "parameters._own_decks", "parameters._sandbox"},
    "declared_space.py": {
        "objective._bound",
        "objective._signature",
        "old._tree",
        "other._tree",
        "space._check_conditions",
        "space._tree",
    },
    "references.py": {"others._conditions", "others._objects"},
    "session_attributes.py": {"instance._assigned_session", "instance._session"},
    "simulation.py": {"changed._session", "search._separate"},
}
"""The private attributes of another instance of a class of this project that the library takes, by module."""


def test_private_attributes_are_taken_from_objects_of_this_project_only():
    """A name that this project uses too, such as `_suggest`, could hide an attribute of Optuna's."""
    found = collections.defaultdict(set)
    for path in SOURCES:
        for node in () if path.parent.name == "_compat" else ast.walk(parsed(path)):
            match node:
                case ast.Attribute(value=ast.Name(id="self" | "cls")):
                    continue
                case ast.Attribute(attr=name) if is_private(name) and name not in ALLOWED:
                    found[path.name].add(ast.unparse(node))
    assert found == OTHERS_PRIVATE_ATTRIBUTES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_long(path):
    assert len(path.read_text().splitlines()) <= 400


def test_no_two_modules_and_no_two_classes_share_a_name():
    # A module of `_compat` has the name of the package that it touches.
    modules = [path.stem for path in SOURCES if path.stem != "__init__" and path.parent.name != "_compat"]
    classes = [node.name for path in SOURCES for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]
    for names in (modules, classes):
        assert [name for name, count in collections.Counter(names).items() if count > 1] == []


def run(program):
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=300)


def modules_named_by(path):
    """Return the names that the module of a test file may have: `test_loop_cancellation.py` tests `loop.py`."""
    words = path.stem.removeprefix("test_").split("_")
    names = {"_".join(words[:count]) for count in range(1, len(words) + 1)}
    return {*names, *(f"_{name}" for name in names)}


def test_tests_lie_where_the_modules_that_they_test_lie():
    wrong = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = PACKAGE / Path(str(path.relative_to(ROOT / "tests").parent).replace("flytekit", "_flytekit"))
        modules = {each.stem for each in folder.iterdir()}
        if not modules_named_by(path) & modules and path.stem.removeprefix("test_") not in WHOLES:
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong


def test_importing_the_library_imports_no_flytekit():
    run("import sys, optuna_flyte_dsl; assert 'flytekit' not in sys.modules")


def test_a_search_over_a_function_imports_no_flytekit():
    run(
        "import asyncio, sys\n"
        "from optuna_flyte_dsl import Float, Optimizer, optimize\n"
        "@optimize(n_trials=3, concurrency=2, progress=False)\n"
        "async def f(x: Float(0, 1)) -> float:\n"
        "    return x\n"
        "assert len(asyncio.run(f()).trials) == 3\n"
        "assert len(Optimizer(lambda trial: trial.suggest_float('x', 0, 1), 2, 3).run_sync().trials) == 3\n"
        "assert 'flytekit' not in sys.modules"
    )


def test_a_worker_process_of_a_function_imports_no_flytekit():
    run(
        "import sys\n"
        "from optuna_flyte_dsl import Float, optimize\n"
        "@optimize(n_trials=2, executor='process', progress=False)\n"
        "def f(x: Float(0, 1)) -> float:\n"
        "    import sys\n"
        "    return float('flytekit' in sys.modules)\n"
        "assert [trial.value for trial in f.run_sync().trials] == [0.0, 0.0]\n"
        "assert 'flytekit' not in sys.modules"
    )


def test_a_search_may_run_while_another_thread_imports_flytekit():
    run(
        "import threading\n"
        "from optuna_flyte_dsl import Float, optimize\n"
        "@optimize(n_trials=2, progress=False)\n"
        "def f(x: Float(0, 1)) -> float:\n"
        "    return x\n"
        "errors = []\n"
        "def load():\n"
        "    try:\n"
        "        import flytekit\n"
        "    except BaseException as error:\n"
        "        errors.append(error)\n"
        "thread = threading.Thread(target=load)\n"
        "thread.start()\n"
        "while thread.is_alive():\n"
        "    assert len(f.run_sync().trials) == 2\n"
        "assert errors == [] and len(f.run_sync().trials) == 2"
    )


def test_flytekit_may_be_blocked_for_a_search_over_a_function():
    run(
        "import sys\n"
        "from optuna_flyte_dsl import Optimizer\n"
        "sys.modules['flytekit'] = None\n"
        "assert len(Optimizer(lambda trial: trial.suggest_float('x', 0, 1), 1, 2).run_sync().trials) == 2"
    )


def test_markers_are_flyte_types_in_whatever_order_the_packages_are_imported():
    for first, second in (("flytekit", "optuna_flyte_dsl"), ("optuna_flyte_dsl", "flytekit")):
        run(
            f"import {first}, {second}\n"
            "from flytekit.core.type_engine import TypeEngine\n"
            "from flytekit.models.types import SimpleType\n"
            "from optuna_flyte_dsl import Float\n"
            "assert TypeEngine.to_literal_type(Float(0, 1)).simple == SimpleType.FLOAT"
        )
