"""What must hold of every problem, looked for by hypothesis among small ones with zeros, ties and single bins."""

import dataclasses

import numpy as np
import problems
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import cusink

settings.register_profile("cusink", max_examples=60, deadline=None, derandomize=True)
EXAMPLES = settings.get_profile("cusink")
COUNT = 15
# Numbers of size 1 are compared with themselves: what may differ is a few roundings in each of the iterations.
CLOSE = {"rtol": 0, "atol": 1e-12}


@st.composite
def weights(draw, bins):
    """Integer weights, so that zeros and ties are frequent; at least one positive."""
    counts = draw(st.lists(st.integers(0, 6), min_size=bins, max_size=bins).filter(any))
    return np.array(counts, dtype=float) / sum(counts)


@st.composite
def batches(draw, max_problems=4, shared=None):
    B, n, m = (draw(st.integers(1, top)) for top in (max_problems, 6, 6))
    a, b = (np.array([draw(weights(bins)) for _ in range(B)]) for bins in (n, m))
    shared = draw(st.booleans()) if shared is None else shared
    entries = n * m if shared else B * n * m
    C = np.array(draw(st.lists(st.integers(0, 16), min_size=entries, max_size=entries)), dtype=float) / 16
    eps = draw(st.sampled_from([1.0, 0.3, 0.05]))
    return problems.Problem("", a, b, C.reshape((n, m) if shared else (B, n, m)), eps)


methods = st.sampled_from(["auto", "log", "scaling"])


def fixed(p, method="auto", **change):
    """Run a fixed count of plain iterations, which has every property exactly; converged results have them to tol."""
    p = dataclasses.replace(p, **change)
    return cusink.sinkhorn(p.a, p.b, p.C, eps=p.eps, tol=None, max_iter=COUNT, method=method)


def additive(result):
    """Return f + g for each pair of bins, which no constant between the potentials changes."""
    return result.f[..., :, None] + result.g[..., None, :]


def assert_same(found, want, f=None, g=None, factor=1.0):
    np.testing.assert_allclose(found.f, want.f if f is None else f, **CLOSE)
    np.testing.assert_allclose(found.g, want.g if g is None else g, **CLOSE)
    np.testing.assert_allclose(found.cost, factor * want.cost, **CLOSE)
    np.testing.assert_allclose(found.error, want.error, **CLOSE)


@EXAMPLES
@given(batches(), methods)
def test_it_is_what_the_oracle_says(p, method):
    want = reference.each(reference.iterated, p.a, p.b, p.C, p.eps, COUNT)
    result = fixed(p, method)
    np.testing.assert_allclose(result.f, [s.f for s in want], **CLOSE)
    used = p.b > 0  # the g of an empty bin is that of the last f, not of the one before
    np.testing.assert_allclose(result.g[used], np.array([s.g for s in want])[used], **CLOSE)
    np.testing.assert_allclose(result.error, [s.error for s in want], **CLOSE)


@EXAMPLES
@given(batches(), methods)
def test_a_batch_is_a_loop(p, method):
    batch = fixed(p, method)
    for k in range(len(p.a)):
        one = fixed(p, method, a=p.a[k], b=p.b[k], C=p.C if p.C.ndim == 2 else p.C[k])
        np.testing.assert_allclose(one.f, batch.f[k], **CLOSE)
        np.testing.assert_allclose(one.g, batch.g[k], **CLOSE)
        np.testing.assert_allclose(one.cost, batch.cost[k], **CLOSE)


@EXAMPLES
@given(batches(), methods, st.randoms(use_true_random=False))
def test_permuting_bins_permutes_potentials(p, method, random):
    rows, columns = (np.array(random.sample(range(k), k)) for k in p.C.shape[-2:])
    want = fixed(p, method)
    found = fixed(p, method, a=p.a[:, rows], b=p.b[:, columns], C=p.C[..., rows, :][..., columns])
    assert_same(found, want, f=want.f[:, rows], g=want.g[:, columns])


@EXAMPLES
@given(batches(), methods, st.integers(-40, 40))
def test_scaling_cost_and_eps_together_scales_everything(p, method, exponent):
    """By powers of two, so that nothing but the scale differs."""
    want = fixed(p, method)
    found = fixed(p, method, C=2.0**exponent * p.C, eps=2.0**exponent * p.eps)
    for name in ("f", "g", "cost", "reg_cost", "entropic_cost"):
        np.testing.assert_allclose(getattr(found, name) / 2.0**exponent, getattr(want, name), **CLOSE)
    np.testing.assert_allclose(found.error, want.error, **CLOSE)


@EXAMPLES
@given(batches(), methods, st.integers(-64, 64))
def test_a_constant_added_to_the_cost_is_added_to_the_potentials(p, method, constant):
    want, found = fixed(p, method), fixed(p, method, C=p.C + constant)
    tolerance = {"rtol": 0, "atol": 1e-12 * (1 + abs(constant) / p.eps)}
    np.testing.assert_allclose(additive(found), additive(want) + constant, **tolerance)
    # A plan after an f-update has all its mass, converged or not.
    np.testing.assert_allclose(found.cost, want.cost + constant, **tolerance)


@EXAMPLES
@given(batches(), methods, st.integers(-20, 20))
def test_scaling_the_mass_scales_the_cost(p, method, exponent):
    mass = 2.0**exponent
    want, found = fixed(p, method), fixed(p, method, a=mass * p.a, b=mass * p.b)
    np.testing.assert_allclose(additive(found), additive(want) - p.eps * np.log(mass), **CLOSE)
    np.testing.assert_allclose(found.cost / mass, want.cost, **CLOSE)
    np.testing.assert_allclose(found.reg_cost / mass, want.reg_cost - p.eps * np.log(mass), **CLOSE)
    np.testing.assert_allclose(found.error, want.error, **CLOSE)


@EXAMPLES
@given(batches(), methods, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans())
def test_splitting_a_bin_changes_nothing(p, method, share, rows):
    """The last bin of one side becomes two at the same place, with shares of its weight (possibly none)."""
    side, axis = ("a", -2) if rows else ("b", -1)
    old = getattr(p, side)
    split = np.concatenate([old[:, :-1], share * old[:, -1:], (1 - share) * old[:, -1:]], axis=1)
    C = np.concatenate([p.C, np.take(p.C, [-1], axis=axis)], axis=axis)
    want, found = fixed(p, method), fixed(p, method, **{side: split, "C": C})
    twice = np.append(np.arange(old.shape[1]), old.shape[1] - 1)
    potentials = additive(want)[:, twice] if rows else additive(want)[..., twice]
    # the g of an empty bin is that of the last f, not of the one before
    used = np.broadcast_to(((p.b if rows else split) > 0)[:, None], potentials.shape)
    np.testing.assert_allclose(additive(found)[used], potentials[used], **CLOSE)
    np.testing.assert_allclose(found.cost, want.cost, **CLOSE)
    np.testing.assert_allclose(found.reg_cost, want.reg_cost, **CLOSE)


@EXAMPLES
@given(batches(), methods)
def test_swapping_sides_at_convergence(p, method):
    p = dataclasses.replace(p, eps=max(p.eps, 0.3))
    here = cusink.sinkhorn(p.a, p.b, p.C, eps=p.eps, tol=1e-11, max_iter=5000, method=method)
    C = np.swapaxes(p.C, -1, -2)
    there = cusink.sinkhorn(p.b, p.a, C, eps=p.eps, tol=1e-11, max_iter=5000, method=method)
    np.testing.assert_allclose(here.plan(), np.swapaxes(there.plan(), -1, -2), rtol=0, atol=1e-9)
    for name in ("cost", "reg_cost", "entropic_cost"):
        np.testing.assert_allclose(getattr(here, name), getattr(there, name), rtol=0, atol=1e-9)


@EXAMPLES
@given(batches(max_problems=2), methods)
def test_bounds_hold_the_exact_cost(p, method):
    lower, upper = fixed(p, method).bounds()
    exact = np.array(reference.each(reference.exact_cost, p.a, p.b, p.C))
    assert (lower <= exact + 1e-9).all() and (exact <= upper + 1e-9).all()


@EXAMPLES
@given(batches(), st.sampled_from([None, "auto", 1.5, 1.95]), st.sampled_from(["auto", "log"]))
def test_convergence_means_marginals(p, overrelaxation, method):
    p = dataclasses.replace(p, eps=max(p.eps, 0.3))
    options = {"tol": 1e-8, "max_iter": 20_000, "overrelaxation": overrelaxation, "method": method}
    result = cusink.sinkhorn(p.a, p.b, p.C, eps=p.eps, **options)
    P = result.plan()
    assert result.converged.all()
    np.testing.assert_allclose(P.sum(axis=2), p.a, rtol=0, atol=1e-13)
    assert (np.abs(P.sum(axis=1) - p.b).sum(axis=1) <= 1e-8 + 1e-13).all()


@EXAMPLES
@given(batches(shared=True), st.sampled_from(["cost", "reg_cost", "entropic_cost"]))
def test_a_distance_matrix_is_all_pairs(p, value):
    p = dataclasses.replace(p, eps=max(p.eps, 0.3))
    matrix = cusink.distance_matrix(p.a, p.b, p.C, eps=p.eps, tol=1e-11, max_iter=5000, value=value)
    assert matrix.shape == (len(p.a), len(p.b))
    for q, a in enumerate(p.a):
        row = cusink.sinkhorn(a, p.b, p.C, eps=p.eps, tol=1e-11, max_iter=5000)
        np.testing.assert_allclose(matrix[q], getattr(row, value), rtol=0, atol=1e-9)
