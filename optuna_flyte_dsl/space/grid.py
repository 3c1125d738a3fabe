"""Grid arithmetic: the values from `low` to `high` in whole steps.

Every piece of code that counts the steps of a marker uses this module.

The arithmetic is exact in base ten, as a user writes the numbers. In binary floats, three steps of 0.1 are
0.30000000000000004; on a `Grid`, they are 0.3. `Grid.index` tolerates rounding errors.
"""

import functools
import math
from fractions import Fraction

from optuna_flyte_dsl._record import record

_TOLERANCE = 1e-8
"""How far a float may lie from the grid, in steps. Optuna's distributions have the same tolerance."""


@record
class Grid:
    """The values `low`, `low + step`, `low + 2 * step` and so on, up to `high`.

    >>> Grid(0.1, 0.5, 0.1).value(2), Grid(0.1, 0.5, 0.1).index(0.1 + 2 * 0.1)
    (0.3, 2)
    """

    low: float
    high: float
    step: float

    @functools.cached_property
    def _exact(self) -> tuple[Fraction, Fraction, Fraction]:
        low, high, step = (Fraction(str(number)) for number in (self.low, self.high, self.step))
        return low, high, step

    @functools.cached_property
    def whole_steps(self) -> int:
        """The number of whole steps from `low` to `high`: one less than the number of values."""
        low, high, step = self._exact
        return (high - low) // step

    @property
    def reaches_high(self) -> bool:
        """Whether `high` is itself a value."""
        low, high, step = self._exact
        return low + self.whole_steps * step == high

    def value(self, index: int) -> float:
        """Return the value with an index, of the type of `low`; index 0 is `low`."""
        low, _, step = self._exact
        return type(self.low)(low + index * step)

    def index(self, value: float) -> int | None:
        """Return the index of a value; `None` if the value is not on the grid."""
        if not self.low <= value <= self.high:
            return None
        if isinstance(self.low, int) and isinstance(self.step, int):
            index, rest = divmod(value - self.low, self.step)
            return None if rest else int(index)
        steps = (float(value) - self.low) / self.step
        # If a bound is far greater than the step, the rounding error of a float near it may exceed `_TOLERANCE`, so
        # the rounding error is added to the tolerance.
        rounding = 4 * math.ulp(max(abs(self.low), abs(self.high))) / self.step
        return round(steps) if abs(steps - round(steps)) < _TOLERANCE + rounding else None
