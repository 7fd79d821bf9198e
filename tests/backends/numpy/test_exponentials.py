"""Exponentials of exponents many of which underflow."""

import math

import numpy as np
import pytest

from cusink.costs import exponentials
from cusink.costs.exponentials import FEW, NEARLY_ALL, exp_from

LEAST = -330.0


@pytest.mark.parametrize("share", [0.0, FEW - 0.05, FEW + 0.05, NEARLY_ALL - 0.03, NEARLY_ALL + 0.03, 1.0])
def test_those_that_count_are_right_and_the_others_what_was_asked_for(share):
    rng = np.random.default_rng(0)
    given = rng.uniform(LEAST, 5, (40, 50))
    given[rng.random(given.shape) >= share] = -1e4
    wanted = np.vectorize(math.exp)(np.maximum(given, LEAST))
    np.testing.assert_allclose(exp_from(np, given.copy(), LEAST), wanted, rtol=1e-15)
    whole = exp_from(np, given.copy(), LEAST, zero=True)
    np.testing.assert_allclose(whole, np.where(given < LEAST, 0, wanted), rtol=1e-15)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("count", [3, 60, 97, 100])
def test_nan_and_infinities_stay_what_they_are(zero, count):
    given = np.full((1, 100), -1e4)
    given[0, :count] = 1.0
    given[0, :3] = np.nan, np.inf, LEAST
    found = exp_from(np, given, LEAST, zero=zero)[0]
    assert np.isnan(found[0]) and found[1] == np.inf and found[2] == math.exp(LEAST)
    assert np.isfinite(found[2:]).all()
    np.testing.assert_array_equal(found[count:], 0 if zero else math.exp(LEAST))


def test_few_that_count_are_all_that_is_taken(monkeypatch):
    """Of a plan at a small eps, most of which underflows: that takes the time."""
    taken, exp = [], np.exp

    class Counting:
        def __getattr__(self, name):
            return counted if name == "exp" else getattr(np, name)

    def counted(exponents, **options):
        taken.append(exponents.size)
        return exp(exponents, **options)

    monkeypatch.setattr(exponentials, "np", Counting())
    given = np.full((100, 100), -1e4)
    given[:, :2] = -1.0
    for zero in (False, True):
        exp_from(exponentials.np, given.copy(), LEAST, zero=zero)
    assert taken == [200, 200]


def test_what_overwrites_is_the_array_that_was_given():
    for value in (-1.0, -500.0):
        given = np.full((3, 4), value)
        assert exp_from(np, given, LEAST) is given
