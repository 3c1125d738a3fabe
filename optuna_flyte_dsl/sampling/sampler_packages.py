"""The packages that some of Optuna's samplers need, and that are not installed with Optuna."""

import functools
import importlib.util
from typing import Any

from optuna.samplers import CmaEsSampler, GPSampler, QMCSampler

from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.space.annotations import listed

_PACKAGES: dict[type, tuple[str, ...]] = {
    CmaEsSampler: ("cmaes",),
    GPSampler: ("torch", "scipy"),
    QMCSampler: ("scipy",),
}


def missing_packages(sampler: type) -> list[str]:
    """Return the packages that a class of samplers needs and that are not installed. They are not imported."""
    needed = (package for kind, packages in _PACKAGES.items() if issubclass(sampler, kind) for package in packages)
    return [package for package in needed if not _is_installed(package)]


def check_packages(sampler: Any) -> None:
    """Check that the packages of a sampler are installed. Optuna imports them only when it samples by a model.

    Args:
        sampler: A sampler, or what makes one. Of a function, it is not known what it makes.

    Raises:
        InvalidOptionError: If a package is missing.
    """
    while isinstance(sampler, functools.partial):
        sampler = sampler.func
    kind = sampler if isinstance(sampler, type) else type(sampler)
    if missing := missing_packages(kind):
        raise InvalidOptionError(
            f"`sampler`: {kind.__name__} needs {listed(missing)}, which the search's environment lacks. Install it by "
            f'`pip install {" ".join(missing)}`, or write `sampler="auto"`.'
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # something else is in the place of the package
        return False
