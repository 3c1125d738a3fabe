import asyncio
import logging
import sys
import threading
import time

import optuna
import pytest
from flytekit.core import local_cache
from flytekit.core.context_manager import FlyteContextManager, flyte_context_Var
from hypothesis import HealthCheck, settings

collect_ignore = ["pods"]  # users' files: importing one may start a search

# Tests never depend on wall-clock speed, so hypothesis sets no deadline.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _quiet_optuna():
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture(autouse=True)
def _own_flyte_cache(tmp_path, monkeypatch):
    """Keep Flyte's local cache, which is in the home directory, out of the tests."""
    monkeypatch.setattr(local_cache, "CACHE_LOCATION", str(tmp_path / "flyte-cache"))
    monkeypatch.setattr(local_cache.LocalTaskCache, "_initialized", False)
    yield
    if local_cache.LocalTaskCache._initialized:
        local_cache.LocalTaskCache._cache.close()


@pytest.fixture
def warned(caplog):
    """Return the messages that the library has logged as warnings."""
    caplog.set_level(logging.WARNING, logger="optuna_flyte_dsl")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "optuna_flyte_dsl"]


needs_pyflyte = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="flytekit 1.16's command `pyflyte run` itself refuses Python 3.13"
)


def wait_until(condition, patience=30.0):
    """Wait for a condition that another thread or process brings about."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class MovableTime(asyncio.SelectorEventLoop):
    """An event loop whose time a test moves, so that none has to wait for a deadline, or to be in time for it."""

    skipped = 0.0

    def time(self):
        return super().time() + self.skipped

    def skip(self, seconds):
        """Let so many seconds be over. It may be called in any thread."""

        def move():
            self.skipped += seconds

        self.call_soon_threadsafe(move)


def in_movable_time(main):
    """Run a coroutine function with the loop that it runs in; return what it returns."""
    with asyncio.Runner(loop_factory=MovableTime) as runner:
        return runner.run(main(runner.get_loop()))


def own_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("optuna-flyte")}


@pytest.fixture(autouse=True)
def _flyte_context_is_left_as_it_was():
    FlyteContextManager.current_context()
    before = list(flyte_context_Var.get())
    yield
    assert flyte_context_Var.get() == before
