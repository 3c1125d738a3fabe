"""Scrambled Sobol points cover space evenly."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc

from optuna_flyte_dsl.sampling.sobol import ScrambledSobol, _direction_numbers

SEEDS = st.integers(0, 2**32)


@given(SEEDS, st.integers(0, 20), st.integers(0, 6), st.integers(0, 5))
def test_each_interval_of_a_dimension_has_one_point(seed, dimension, power, block):
    sequence, count = ScrambledSobol(seed), 2**power
    points = [sequence.coordinate(block * count + index, dimension) for index in range(count)]
    assert sorted(int(point * count) for point in points) == list(range(count))
    assert all(0 < point < 1 for point in points)


@given(SEEDS, st.integers(0, 6))
def test_each_box_of_the_first_two_dimensions_has_one_point(seed, power):
    sequence, count = ScrambledSobol(seed), 2**power
    points = [[sequence.coordinate(index, dimension) for dimension in (0, 1)] for index in range(count)]
    for wide in range(power + 1):
        boxes = {(int(x * 2**wide), int(y * 2 ** (power - wide))) for x, y in points}
        assert boxes == set(itertools.product(range(2**wide), range(2 ** (power - wide))))


@given(SEEDS)
def test_the_sequence_is_that_of_its_seed(seed):
    points = [[ScrambledSobol(each).coordinate(5, dimension) for dimension in range(30)] for each in (seed, seed)]
    assert points[0] == points[1]
    assert len(set(points[0])) == 30
    assert ScrambledSobol(seed + 1).coordinate(5, 3) != points[0][3]


def test_dimensions_are_not_correlated():
    sequence = ScrambledSobol(1)
    points = np.array([[sequence.coordinate(index, dimension) for dimension in range(44)] for index in range(256)])
    correlations = np.corrcoef(points, rowvar=False) - np.eye(44)
    assert abs(correlations).max() < 0.35


def test_the_direction_numbers_are_those_of_joe_and_kuo():
    reference = qmc.Sobol(21, scramble=False, bits=30).random(256)
    for dimension in range(21):
        for index, point in enumerate(reference[:, dimension]):
            digits = 0
            for place in range(9):
                if (index ^ index >> 1) >> place & 1:  # scipy's order is that of the Gray code
                    digits ^= _direction_numbers(dimension)[place]
            assert digits / 2**30 == point
