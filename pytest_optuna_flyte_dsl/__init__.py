"""The pytest plugin of optuna_flyte_dsl. It imports the library only when a test uses it.

- The fixture `small_searches` makes each search of a test small, seeded and in memory.
- The marker `every_engine` runs a test once on each engine that is there.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from optuna_flyte_dsl.testing.small_searches import SmallSearches

pytest.register_assert_rewrite("optuna_flyte_dsl.testing.conformance")

_ENGINES = ("thread", "process")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting that lists the engines."""
    parser.addini(
        "search_engines",
        "the engines on which a test with the marker `every_engine` runs: thread, process, and cluster, for which the "
        "fixture `flyte_remote` returns a FlyteRemote",
        type="args",
        default=list(_ENGINES),
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "every_engine(*engines): run the test once on each engine that the setting `search_engines` lists, or on those "
        "that are given",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a marked test once on each engine."""
    marker = metafunc.definition.get_closest_marker("every_engine")
    if marker is None:
        return
    if "search_engine" not in metafunc.fixturenames:
        metafunc.fixturenames.append("search_engine")
    metafunc.parametrize("search_engine", marker.args or metafunc.config.getini("search_engines"), indirect=True)


@pytest.fixture
def search_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the engine on which the searches of a test with the marker `every_engine` run."""
    from optuna_flyte_dsl.testing.small_searches import on_engine

    name = getattr(request, "param", "thread")
    remote = request.getfixturevalue("flyte_remote") if name == "cluster" else None
    with on_engine(name, remote):
        yield name


@pytest.fixture
def small_searches() -> Iterator["SmallSearches"]:
    """Make each search of the test small, seeded and in memory.

    The value says how small; it is set before the first search.
    """
    from optuna_flyte_dsl.testing.small_searches import SmallSearches

    with SmallSearches() as small:
        yield small
