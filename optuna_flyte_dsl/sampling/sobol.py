"""Sobol's sequence, scrambled: numbers from 0 to 1 that cover space evenly, in up to 21 dimensions."""

import functools
import random

_BITS = 30
# The primitive polynomials and the first direction numbers of dimensions 2 to 21: new-joe-kuo-6.21201, by S. Joe and
# F. Y. Kuo, "Constructing Sobol sequences with better two-dimensional projections", SIAM J. Sci. Comput. 30 (2008).
_TABLE = (
    (0, (1,)),
    (1, (1, 3)),
    (1, (1, 3, 1)),
    (2, (1, 1, 1)),
    (1, (1, 1, 3, 3)),
    (4, (1, 3, 5, 13)),
    (2, (1, 1, 5, 5, 17)),
    (4, (1, 1, 5, 5, 5)),
    (7, (1, 1, 7, 11, 19)),
    (11, (1, 1, 5, 1, 1)),
    (13, (1, 1, 1, 3, 11)),
    (14, (1, 3, 5, 5, 31)),
    (1, (1, 3, 3, 9, 7, 49)),
    (13, (1, 1, 1, 15, 21, 21)),
    (16, (1, 3, 1, 13, 27, 49)),
    (19, (1, 1, 1, 15, 7, 5)),
    (22, (1, 3, 1, 15, 13, 25)),
    (25, (1, 1, 5, 5, 19, 61)),
    (1, (1, 3, 7, 11, 23, 15, 103)),
    (4, (1, 3, 7, 13, 13, 15, 69)),
)


@functools.cache
def _direction_numbers(dimension: int) -> tuple[int, ...]:
    """Return the direction numbers of a dimension of the table, as integers of `_BITS` bits.

    The recurrence is the one of P. Bratley and B. L. Fox, "Algorithm 659", ACM Trans. Math. Softw. 14 (1988).
    """
    if dimension == 0:
        return tuple(1 << (_BITS - 1 - index) for index in range(_BITS))
    coefficients, first = _TABLE[dimension - 1]
    degree, numbers = len(first), list(first)
    for index in range(degree, _BITS):
        number = numbers[index - degree] ^ (numbers[index - degree] << degree)
        for place in range(1, degree):
            if coefficients >> (degree - 1 - place) & 1:
                number ^= numbers[index - place] << place
        numbers.append(number)
    return tuple(number << (_BITS - 1 - index) for index, number in enumerate(numbers))


class ScrambledSobol:
    """Sobol's sequence with a random linear matrix scramble and a digital shift.

    The scramble is the one of J. Matoušek, "On the L2-discrepancy for anchored boxes", J. Complexity 14 (1998). The
    first `2**k` points have one point in each of `2**k` intervals of the same length, in each dimension.

    Args:
        seed: The seed of the scramble.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._dimensions: dict[int, tuple[int, list[int]]] = {}  # the shift and the scrambled direction numbers

    def coordinate(self, index: int, dimension: int) -> float:
        """Return one coordinate of a point: more than 0 and less than 1.

        From the 22nd dimension on, coordinates are random: there is no table for them.
        """
        if dimension > len(_TABLE):
            return random.Random(f"{self._seed} {dimension} {index}").uniform(1e-9, 1 - 1e-9)  # noqa: S311
        if dimension not in self._dimensions:
            self._dimensions[dimension] = self._scramble(dimension)
        digits, numbers = self._dimensions[dimension]
        for place in range(index.bit_length()):
            if index >> place & 1:
                digits ^= numbers[place % _BITS]
        return float((digits + 0.5) / (1 << _BITS))

    def _scramble(self, dimension: int) -> tuple[int, list[int]]:
        generator = random.Random(f"{self._seed} {dimension}")  # noqa: S311 - no secret is drawn
        # Column `place` of a lower triangular matrix over the two-element field, with ones on the diagonal.
        columns = [(1 << place) | generator.getrandbits(place) for place in range(_BITS)]
        numbers = []
        for number in _direction_numbers(dimension):
            scrambled = 0
            for place in range(_BITS):
                if number >> place & 1:
                    scrambled ^= columns[place]
            numbers.append(scrambled)
        return generator.getrandbits(_BITS), numbers
