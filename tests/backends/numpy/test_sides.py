"""Plain iterations that nobody looks at: how many stay in range, and that they do."""

import math

import numpy as np
import pytest

from cusink.backends.numpy.forms.kernel import DenseKernel
from cusink.backends.numpy.forms.shared import SharedKernel
from cusink.backends.numpy.forms.sides import unwatched
from cusink.backends.numpy.iteration import Iteration

rng = np.random.default_rng(11)


def under_way(dtype, eps, iterations=3, n=12, m=9, problems=6):
    """Return a form with problems after some plain iterations."""
    C = (rng.random((n, 1)) - rng.random(m)) ** 2
    a, b = rng.dirichlet(np.ones(n), problems).astype(dtype), rng.dirichlet(np.ones(m), problems).astype(dtype)
    form = SharedKernel(DenseKernel(C.astype(dtype), dtype, eps))
    form.append(a, b, np.zeros_like(a), np.zeros_like(b))
    assert not form.advance(np.ones(problems), iterations).any()
    return form


@pytest.mark.parametrize("eps", [0.5, 0.02, 0.004])
def test_no_later_plain_iteration_drifts_more_than_one_before(eps):
    """What `unwatched` builds on, held to the iteration itself, in float64."""
    form, drifts = under_way(np.float64, eps, 1), []
    for _ in range(12):
        before = form.U / 2.0**-form.eu
        form.advance(np.ones(6), 1)
        drifts.append(np.abs(np.log(form.U / 2.0**-form.eu / before)).max())
    assert all(later <= sooner + 1e-12 for sooner, later in zip(drifts, drifts[1:], strict=False)), drifts


@pytest.mark.parametrize(("dtype", "eps"), [(np.float32, 0.5), (np.float32, 0.02), (np.float64, 0.02)])
def test_the_range_holds_for_as_many_iterations_as_are_promised(dtype, eps):
    form = under_way(dtype, eps)
    sides = form._sides(form._workspace())
    work = form.work
    work.U[...], work.V[...] = form.U, form.V
    form._own_numerators(work)

    def iterate():
        lowest = []
        for side in sides:
            sums = form.kernel.product(side.factor, side.axis)
            lowest.append(float(sums.min()))
            before = side.scaling.copy()
            side.scaling[...] = side.gamma / sums
        return lowest, float(np.abs(np.log(side.scaling / before)).max())

    lowest, drift = iterate()
    limit = 50 * max(float(side.scaling.max()) for side in sides)  # near, so that the promise ends
    drift = max(drift, 1e-3)
    count, most = unwatched(sides, lowest, limit, drift)
    assert 0 < count < 10000 and float(sides[1].scaling.max()) < most <= limit * (1 + 1e-6)
    for _ in range(min(count, 200)):
        lowest, _ = iterate()
        assert all(low >= side.floor for low, side in zip(lowest, sides, strict=True))
        assert all(float(side.scaling.max()) <= limit for side in sides) and float(sides[1].scaling.max()) <= most


def test_nothing_is_promised_without_room_or_without_a_drift():
    sides = (form := under_way(np.float32, 0.1))._sides(form._workspace())
    for side in sides:
        side.scaling[...] = 1.0
    assert unwatched(sides, [1e30, 1e30], form.limit, 0.01)[0] > 100
    assert unwatched(sides, [1e30, 1e30], form.limit, math.inf) == (0, 1.0)
    for lowest in ([1e30, sides[1].floor / 2], [sides[0].floor / 2, 1e30], [1e30, 0.0]):
        assert unwatched(sides, lowest, form.limit, 0.01) == (0, 1.0)
    for side in sides:
        side.scaling[1, 2] = 2 * form.limit
        assert unwatched(sides, [1e30, 1e30], form.limit, 0.01) == (0, sides[1].scaling.max())
        side.scaling[1, 2] = 1.0


def test_drift_is_that_of_the_entry_that_moves_most():
    form = under_way(np.float64, 0.1)
    side = form._sides(form._workspace())[1]
    side.scaling[...] = 2.0
    following = side.scaling.copy()
    following[1, 2], following[2, 1] = 3.0, 1.0
    assert side.drift(following) == pytest.approx(math.log(2))
    following[1, 2] = 6.0
    assert side.drift(following) == pytest.approx(math.log(3))
    for odd in (0.0, math.inf, math.nan):
        following[0, 0] = odd
        assert side.drift(following) == math.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("empty", [False, True])
def test_iterations_without_looks_are_those_with_looks(dtype, empty, monkeypatch):
    """The same bytes, and hardly any look; an empty bin in b is no obstacle."""
    C = (rng.random((12, 1)) - rng.random(9)) ** 2
    a, b = rng.dirichlet(np.ones(12), 6).astype(dtype), rng.dirichlet(np.ones(9), 6).astype(dtype)
    if empty:
        b[:3, 4] = 0
    promised, found = [], []

    def promise(*args):
        promised.append(unwatched(*args))
        return promised[-1]

    for rule in (promise, lambda sides, *_: (0, float(sides[1].scaling.max()))):
        monkeypatch.setattr("cusink.backends.numpy.forms.shared.unwatched", rule)
        form = SharedKernel(DenseKernel(C.astype(dtype), dtype, 0.1))
        form.append(a, b, np.zeros_like(a), np.zeros_like(b))
        form.advance(np.ones(6), 25)
        found.append((form.U.copy(), form.V.copy(), *form.finish(np.arange(6))))
    assert sum(count for count, _ in promised) > 20 and len(promised) < 6
    for x, y in zip(*found, strict=True):
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_iterations_that_need_no_look_are_taken_at_once(dtype, monkeypatch):
    """The same bytes as in pieces of 25; and over-relaxed iterations, or fewer problems, end what is known."""
    C = ((rng.random((12, 1)) - rng.random(9)) ** 2).astype(dtype)
    a, b = rng.dirichlet(np.ones(12), 6).astype(dtype), rng.dirichlet(np.ones(9), 6).astype(dtype)
    counts, found, advance = [], [], SharedKernel.advance

    def counted(form, omega, count):
        counts.append(count)
        return advance(form, omega, count)

    monkeypatch.setattr(SharedKernel, "advance", counted)
    for known in (True, False):
        if not known:
            monkeypatch.setattr(SharedKernel, "unwatched", 0)
        counts.clear()
        iteration = Iteration(C, a, b, 0.1, np.zeros_like(a), np.zeros_like(b), "auto")
        bound = iteration.advance(np.ones(6), 160)
        assert sum(counts) == 160 and counts[0] == 25 and (max(counts) > 25) == known
        found.append((bound, *iteration.finish(np.arange(6))))
    for x, y in zip(*found, strict=True):
        assert x.tobytes() == y.tobytes()
    monkeypatch.undo()
    form = under_way(dtype, 0.1, 25)
    assert form.unwatched > 0
    form.keep(np.arange(3))
    assert form.unwatched == 0
    form.advance(np.ones(3), 25)
    assert form.unwatched > 0
    form.advance(np.full(3, 1.5), 1)
    assert form.unwatched == 0
