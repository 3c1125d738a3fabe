import gc
import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import optuna
import pytest
from flytekit.core.context_manager import FlyteContextManager, flyte_context_Var
from hypothesis import HealthCheck, settings

from optuna_flyte_dsl.engines.engine_choice import load_search
from tests.support import own_pauses
from tests.support._compat import own_local_cache

ROOT = Path(__file__).parent.parent
collect_ignore = ["pods"]  # users' files: importing one may start a search

# Tests never depend on wall-clock speed, so hypothesis sets no deadline.
# On the oldest versions, fewer examples show whether a property depends on a version.
_EXAMPLES = 100 if optuna.__version__ >= "5" else 30
settings.register_profile("suite", deadline=None, max_examples=_EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_collection_finish():
    """Leave what is imported out of all garbage collections, each of which would walk over flytekit's many objects.

    What a search needs is imported first. A test that replaces a name in a module and then decorates a function would
    leave the replacement in the modules that are imported in that moment.
    """
    load_search()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet_optuna():
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture(autouse=True)
def _own_flyte_cache(tmp_path, monkeypatch):
    """Keep Flyte's local cache, which is in the home directory, out of the tests."""
    with own_local_cache(tmp_path / "flyte-cache", monkeypatch):
        yield


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory):
    """Return a folder in which the built wheel is installed, and nothing else."""
    built, installed = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    return installed


@pytest.fixture
def pauses():
    """Return the library's pauses, to be set by the test."""
    with own_pauses() as set_by_test:
        yield set_by_test


@pytest.fixture
def warned(caplog):
    """Return the messages that the library has logged as warnings."""
    caplog.set_level(logging.WARNING, logger="optuna_flyte_dsl")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "optuna_flyte_dsl"]


@pytest.fixture(autouse=True)
def _flyte_context_is_left_as_it_was():
    FlyteContextManager.current_context()
    before = list(flyte_context_Var.get())
    yield
    assert flyte_context_Var.get() == before
