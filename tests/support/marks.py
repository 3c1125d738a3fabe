"""Marks of tests. In a module of its own, because the benchmarks use the rest of `tests.support` without pytest."""

import sys

import pytest

needs_pyflyte = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="flytekit 1.16's command `pyflyte run` itself refuses Python 3.13"
)


def newest(value):
    """Return a parameter that is left out on the oldest versions."""
    return pytest.param(value, marks=pytest.mark.newest)
