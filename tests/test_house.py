"""The rules of the house, which the code must keep: names, sizes, and who may touch what."""

import ast
import collections
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "optuna_flyte_dsl"
SOURCES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
ALLOWED = {"_getframe", "_exit", "_fields", "_self_"}  # the standard library's, and wrapt's documented prefix


def is_private(name):
    is_dunder = name.startswith("__") and name.endswith("__")
    return name.isidentifier() and name.startswith("_") and name != "_" and not is_dunder


def own_names():
    """Return the private names that the package itself defines."""
    names = set()
    for path, tree in SOURCES.items():
        if path.parent.name == "_compat":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name | ast.arg):
                names.add(node.id if isinstance(node, ast.Name) else node.arg)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                names |= {node.attr} if owner in ("self", "moved") else set()
    return names


def foreign_names():
    """Return the private names that `_compat` touches."""
    compat = [tree for path, tree in SOURCES.items() if path.parent.name == "_compat"]
    return {name for tree in compat for _, name in private_uses(tree) if is_private(name)}


def private_uses(tree):
    """Yield each private name that some code takes from an object or a module, or writes as a string."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute():
                yield node.lineno, node.attr
            case ast.Constant(value=str(text)):
                yield node.lineno, text
            case ast.keyword(arg=str(name)):
                yield node.lineno, name
            case ast.ImportFrom(module=str(module)) if not module.startswith("optuna_flyte_dsl"):
                for name in [*module.split("."), *(alias.name for alias in node.names)]:
                    yield node.lineno, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_other_packages_are_touched_in_compat_only(path):
    if path.parent.name == "_compat":
        return
    allowed = (own_names() - foreign_names()) | ALLOWED
    found = [(line, name) for line, name in private_uses(SOURCES[path]) if is_private(name)]
    assert [use for use in found if use[1] not in allowed] == []


def test_this_test_would_find_a_private_name():
    code = "x._trial_id; getattr(x, '_storage'); f(_thread_local=1)\nfrom optuna.storages._grpc import client"
    assert {name for _, name in private_uses(ast.parse(code)) if is_private(name)} == {
        "_trial_id",
        "_storage",
        "_thread_local",
        "_grpc",
    }
    assert {"_trial_id", "_storage", "_thread_local", "_grpc"} <= foreign_names()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_long(path):
    assert len(path.read_text().splitlines()) <= 400


def test_no_two_modules_and_no_two_classes_share_a_name():
    # A module of `_compat` has the name of the package that it touches.
    modules = [path.stem for path in SOURCES if path.stem != "__init__" and path.parent.name != "_compat"]
    classes = [node.name for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for names in (modules, classes):
        assert [name for name, count in collections.Counter(names).items() if count > 1] == []


def run(program):
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=300)


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
