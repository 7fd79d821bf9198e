"""`cusink.sinkhorn` against the float64 oracle: iterations, stopping, starting, shapes, precision."""

import dataclasses
import itertools
import warnings

import numpy as np
import problems
import pytest
import reference

import cusink

named = {"ids": str}
FLOATS = [np.float32, np.float64]
# One precision above the one that is judged; where long double is double, the floor in `earned` carries the test.
ABOVE = {np.float32: np.float64, np.float64: np.longdouble}
BY_NAME = {p.name: p for p in problems.KNOWN + problems.HARD}
MILD = [
    p
    for p in problems.HARD
    if p.name not in {"large cost / eps", "spikes far apart", "far-apart Gaussians", "weights down to 1e-195"}
    and p.name != "a cost per problem far below zero"
]


def largest(C):
    """Return the largest finite cost, in size."""
    return float(np.abs(C[np.isfinite(C)]).max())


def fixed_iterations(p, dtype, count):
    """Per problem, `count` iterations of the oracle, on inputs rounded to dtype, and of the naive solver in dtype."""
    a, b, C = (np.asarray(x, dtype) for x in (p.a, p.b, p.C))
    exact = reference.each(reference.iterated, a, b, C, p.eps, count, dtype=ABOVE[dtype])
    naive = reference.each(reference.iterated, a, b, C, p.eps, count, dtype=dtype)
    # The g of an empty bin is that of the last f, not of the one before: nothing in the iteration depends on it.
    for solutions, kind in ((exact, ABOVE[dtype]), (naive, dtype)):
        for k, (one_a, one_b, one_C) in enumerate(reference.each(lambda *one: one, a, b, C)):
            latest = reference.softmin(one_C.astype(kind), solutions[k].f, one_a.astype(kind), kind(p.eps), axis=0)
            solutions[k] = solutions[k]._replace(g=np.where(one_b > 0, solutions[k].g, latest))
    costs = []
    for solutions, kind in ((exact, ABOVE[dtype]), (naive, dtype)):
        plans = reference.each(lambda *one: one, a, b, C)
        costs.append(
            [
                reference.transport_cost(
                    reference.plan(*(x.astype(kind) for x in one), kind(p.eps), s.f, s.g), one[2].astype(kind)
                )
                for one, s in zip(plans, solutions, strict=True)
            ]
        )
    return exact, naive, np.array(costs[0]), np.array(costs[1])


def earned(exact, naive, dtype, scale):
    """Tolerance: 4 times the error of the naive solver in the same precision, and at least 4 roundings of `scale`."""
    error = max(float(np.abs(np.asarray(e) - np.asarray(n)).max()) for e, n in zip(exact, naive, strict=True))
    return 4 * error + 4 * np.finfo(dtype).eps * scale


def assert_potentials_agree(xp, result, exact, naive, p, dtype):
    """Compare f and g, which are in the gauge, within their tolerance."""
    scale = largest(p.C) + p.eps
    f, g = (np.atleast_2d(xp.numpy(x)).astype(float) for x in (result.f, result.g))
    want_f, want_g, rough_f, rough_g = (
        np.array([getattr(s, name) for s in solutions]) for solutions in (exact, naive) for name in "fg"
    )
    tolerance = max(earned(want_f, rough_f, dtype, scale), earned(want_g, rough_g, dtype, scale))
    np.testing.assert_allclose(f, want_f.astype(float), rtol=0, atol=tolerance, err_msg="f")
    np.testing.assert_allclose(g, want_g.astype(float), rtol=0, atol=tolerance, err_msg="g")


def solve(xp, p, dtype=np.float64, **options):
    return cusink.sinkhorn(xp(p.a, dtype), xp(p.b, dtype), xp(p.C, dtype), eps=p.eps, **options)


def finite(xp, result):
    fields = (getattr(result, field.name) for field in dataclasses.fields(result))
    numbers = [xp.numpy(x) for x in fields if hasattr(x, "dtype") and xp.numpy(x).dtype.kind == "f"]
    assert numbers
    return all(np.isfinite(x).all() for x in numbers)


# Agreement with the oracle


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", problems.HARD, **named)
def test_fixed_iterations_agree_with_the_oracle(xp, p, dtype, method):
    exact, naive, cost, naive_cost = fixed_iterations(p, dtype, 30)
    result = solve(xp, p, dtype, max_iter=30, tol=None, method=method)
    scale = largest(p.C) + p.eps
    assert xp.numpy(result.f).dtype == xp.numpy(result.g).dtype == dtype
    assert_potentials_agree(xp, result, exact, naive, p, dtype)
    mass = p.a.sum(axis=-1).max()
    tolerance = earned(cost, naive_cost, dtype, scale * mass)
    np.testing.assert_allclose(np.atleast_1d(xp.numpy(result.cost)), cost, rtol=0, atol=tolerance)
    assert (np.atleast_1d(xp.numpy(result.n_iter)) == 30).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", MILD, **named)
def test_scaling_form_agrees_where_it_stays_in_range(xp, p, dtype):
    exact, naive, cost, naive_cost = fixed_iterations(p, dtype, 30)
    result = solve(xp, p, dtype, max_iter=30, tol=None, method="scaling")
    scale = largest(p.C) + p.eps
    assert_potentials_agree(xp, result, exact, naive, p, dtype)
    tolerance = earned(cost, naive_cost, dtype, scale * p.a.sum(axis=-1).max())
    np.testing.assert_allclose(np.atleast_1d(xp.numpy(result.cost)), cost, rtol=0, atol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("method", ["auto", "log", "scaling"])
def test_an_iteration_is_one_g_update_and_then_one_f_update(xp, method, count):
    p = BY_NAME["one problem, no batch axis"]
    want = reference.iterated(p.a, p.b, p.C, p.eps, count)
    result = solve(xp, p, max_iter=count, tol=None, method=method)
    np.testing.assert_allclose(xp.numpy(result.f), want.f, rtol=0, atol=1e-13)
    np.testing.assert_allclose(xp.numpy(result.g), want.g, rtol=0, atol=1e-13)
    np.testing.assert_allclose(xp.numpy(result.error), want.error, rtol=1e-9)


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("p", problems.KNOWN, **named)
def test_known_problems(xp, p, method):
    result = solve(xp, p, tol=1e-12, method=method, max_iter=20000)
    assert xp.numpy(result.converged).all()
    scale = p.a.sum() * largest(p.C) + p.eps
    accuracy = 1e-9 if "Gaussians" in p.name else 1e-10
    for name in ("cost", "reg_cost", "entropic_cost"):
        if name in p.known:
            assert float(getattr(result, name)) == pytest.approx(p.known[name], abs=accuracy * scale), name
    if "plan" in p.known:
        np.testing.assert_allclose(xp.numpy(result.plan()), p.known["plan"], rtol=0, atol=accuracy * p.a.sum())
    if "f_plus_g" in p.known:
        f_plus_g = xp.numpy(result.f)[:, None] + xp.numpy(result.g)
        np.testing.assert_allclose(f_plus_g, p.known["f_plus_g"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", problems.HARD, **named)
def test_converged_problems_agree_with_the_oracle(xp, p):
    result = solve(xp, p, tol=1e-9, max_iter=50000)
    assert xp.numpy(result.converged).all()
    want = np.array(reference.each(reference.optimum, p.a, p.b, p.C, p.eps))
    # An error of 1e-9 is that much mass in the wrong place; slow modes of the plan can hide a thousand times more.
    scale = p.a.sum(axis=-1).max() * (largest(p.C) + p.eps)
    for k, name in enumerate(("cost", "reg_cost", "entropic_cost")):
        found = np.atleast_1d(xp.numpy(getattr(result, name)))
        np.testing.assert_allclose(found, want[:, k], rtol=0, atol=1e-6 * scale, err_msg=name)


@pytest.mark.parametrize("method", ["auto", "log"])
def test_far_apart_gaussians_stay_right_after_a_hundred_iterations(xp, method):
    """Where unguarded code gives NaN: float64 within 1e-9, float32 within 1e-4 of the float64 log-domain cost."""
    p = BY_NAME["far-apart Gaussians"]
    exact = reference.each(reference.iterated, p.a, p.b, p.C, p.eps, 100)
    triples = reference.each(lambda *one: one, p.a, p.b, p.C)
    cost = [
        reference.transport_cost(reference.plan(*one, p.eps, s.f, s.g), one[2])
        for one, s in zip(triples, exact, strict=True)
    ]
    for dtype, accuracy in ((np.float64, 1e-9), (np.float32, 1e-4)):
        result = solve(xp, p, dtype, max_iter=100, tol=None, method=method)
        assert finite(xp, result)
        np.testing.assert_allclose(xp.numpy(result.cost), cost, rtol=accuracy)


# Stopping


def moved_by_rounding(p, result, xp, dtype):
    """How far rounding the potentials to dtype moves a plan, relative to its mass."""
    size = max(largest(p.C), np.abs(xp.numpy(result.f)).max(), np.abs(xp.numpy(result.g)).max())
    return 4 * np.finfo(dtype).eps * (size / p.eps + 1)


def recomputed_errors(p, result, xp):
    """Marginal errors in float64 of the potentials that were returned."""
    f, g = (np.atleast_2d(xp.numpy(x)).astype(np.float64) for x in (result.f, result.g))
    triples = reference.each(lambda *one: one, *(np.asarray(x, np.float64) for x in (p.a, p.b, p.C)))
    return np.array(
        [reference.marginal_error(reference.plan(*one, p.eps, f[k], g[k]), one[1]) for k, one in enumerate(triples)]
    )


@pytest.mark.parametrize("overrelaxation", [None, "auto", 1.3])
@pytest.mark.parametrize("method", ["auto", "log", "scaling"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "name", ["n < m, shared cost", "empty bins", "mass 250", "a cost per problem", "forbidden pairs"]
)
def test_error_is_honest_and_each_problem_reaches_tol(xp, name, dtype, method, overrelaxation):
    p = BY_NAME[name]
    p = dataclasses.replace(p, **{k: getattr(p, k).astype(dtype) for k in "abC"})
    result = solve(xp, p, dtype, tol=1e-4, method=method, overrelaxation=overrelaxation)
    error, converged = xp.numpy(result.error), xp.numpy(result.converged)
    assert converged.dtype == bool and converged.all()
    assert (error >= 0).all() and (error <= 1e-4).all()
    rounding = moved_by_rounding(p, result, xp, dtype)
    np.testing.assert_allclose(error, recomputed_errors(p, result, xp), rtol=1e-5, atol=rounding)
    P = xp.numpy(result.plan()).astype(np.float64)
    mass = p.a.astype(float).sum(axis=-1)
    np.testing.assert_allclose(np.abs(P.sum(axis=1) - p.b).sum(axis=-1) / mass, error, rtol=1e-5, atol=2 * rounding)
    np.testing.assert_allclose(P.sum(axis=2), p.a, rtol=2 * rounding)


def test_plain_iteration_stops_at_the_first_check_below_tol(xp):
    p = BY_NAME["n < m, shared cost"]
    result = solve(xp, p, tol=1e-5, check_every=3, overrelaxation=None)
    n_iter = xp.numpy(result.n_iter)
    assert n_iter.shape == (5,) and n_iter.dtype.kind in "iu"
    assert (n_iter % 3 == 0).all()
    assert len(set(n_iter.tolist())) > 1  # or the test proves nothing about stopping apart
    for k, count in enumerate(n_iter):
        a, b = p.a[k], p.b[k]
        assert reference.iterated(a, b, p.C, p.eps, int(count)).error <= 1e-5
        assert reference.iterated(a, b, p.C, p.eps, int(count) - 3).error > 1e-5
        f = reference.iterated(a, b, p.C, p.eps, int(count)).f
        np.testing.assert_allclose(xp.numpy(result.f)[k], f, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_iter", [1, 4, 10, 25])
def test_max_iter_is_kept_and_reported(xp, max_iter):
    p = BY_NAME["n < m, shared cost"]
    with pytest.warns(cusink.ConvergenceWarning) as caught:
        result = solve(xp, p, tol=1e-14, max_iter=max_iter, overrelaxation=None)
    assert len(caught) == 1
    assert (xp.numpy(result.n_iter) == max_iter).all()
    assert not xp.numpy(result.converged).any()
    want = [reference.iterated(p.a[k], p.b[k], p.C, p.eps, max_iter) for k in range(5)]
    np.testing.assert_allclose(xp.numpy(result.f), [s.f for s in want], rtol=0, atol=1e-12)
    np.testing.assert_allclose(xp.numpy(result.error), [s.error for s in want], rtol=1e-6, atol=1e-13)


def test_warning_says_how_many_failed_and_what_to_do(xp):
    p = BY_NAME["n < m, shared cost"]
    with pytest.warns(cusink.ConvergenceWarning, match=r"(?s)5.*1e-14.*max_iter"):
        solve(xp, p, tol=1e-14, max_iter=3)


def test_warning_counts_only_the_problems_that_failed(xp):
    """One free problem, whose plan is the product at once, beside hard ones: there is one warning, about those."""
    p = BY_NAME["n < m, shared cost"]
    C = np.concatenate([np.zeros((1, 37, 53)), np.broadcast_to(p.C, (4, 37, 53))])
    with pytest.warns(cusink.ConvergenceWarning) as caught:
        result = cusink.sinkhorn(xp(p.a), xp(p.b), xp(C), eps=0.02, tol=1e-9, max_iter=5)
    assert len(caught) == 1
    assert xp.numpy(result.converged).tolist() == [True, False, False, False, False]
    assert "4" in str(caught[0].message)


def test_warning_points_at_the_caller(xp):
    p = BY_NAME["one problem, no batch axis"]
    with pytest.warns(cusink.ConvergenceWarning) as caught:
        cusink.sinkhorn(xp(p.a), xp(p.b), xp(p.C), eps=p.eps, tol=1e-14, max_iter=2)
    assert caught[0].filename == __file__
    assert issubclass(cusink.ConvergenceWarning, UserWarning)


def test_fixed_count_warns_of_nothing_and_tells_its_error(xp):
    p = BY_NAME["n < m, shared cost"]
    result = solve(xp, p, tol=None, max_iter=3)
    want = [reference.iterated(p.a[k], p.b[k], p.C, p.eps, 3).error for k in range(5)]
    np.testing.assert_allclose(xp.numpy(result.error), want, rtol=1e-9)


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_stops_at_the_rounding_level_instead_of_burning_iterations(xp, dtype, method):
    p = BY_NAME["n < m, shared cost"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        result = solve(xp, p, dtype, tol=1e-30, max_iter=100_000, method=method)
    assert (xp.numpy(result.n_iter) < 10_000).all()
    error = xp.numpy(result.error)
    # A fixed point of the arithmetic itself has no error that could be seen; whoever sees one has not converged.
    np.testing.assert_array_equal(xp.numpy(result.converged), error <= 1e-30)
    assert (error < 100 * np.finfo(dtype).eps * (1 + largest(p.C) / p.eps)).all()


def test_impossible_problem_is_reported(xp):
    """Every row has a partner, but together they have too little room: it ends unconverged, in finite numbers."""
    C = np.array([[0.0, np.inf], [1.0, np.inf], [1.0, 0.0]])
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(xp([0.5, 0.3, 0.2]), xp([0.5, 0.5]), xp(C), eps=0.1, max_iter=300)
    assert not bool(result.converged)
    assert float(result.error) > 0.1
    assert finite(xp, result)


def test_callback_sees_iterations_and_errors(xp):
    p = BY_NAME["n < m, shared cost"]
    seen = []
    result = solve(
        xp,
        p,
        tol=1e-6,
        check_every=5,
        callback=lambda iteration, error: seen.append((iteration, xp.numpy(error).copy())),
    )
    iterations = [iteration for iteration, _ in seen]
    assert iterations == sorted(set(iterations)) and all(k % 5 == 0 for k in iterations)
    assert iterations[-1] == xp.numpy(result.n_iter).max()
    assert all((error >= 0).all() for _, error in seen)
    assert seen[-1][1].max() <= 1e-6 < seen[0][1].max()


@pytest.mark.parametrize(
    "p", [BY_NAME["large cost / eps"], BY_NAME["spikes far apart"], BY_NAME["far-apart Gaussians"]], **named
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_scaling_form_out_of_range_is_reported_never_nan(xp, p, dtype):
    p = dataclasses.replace(p, eps=p.eps / 10)
    with pytest.warns(cusink.ConvergenceWarning):
        result = solve(xp, p, dtype, max_iter=50, method="scaling")
    assert not xp.numpy(result.converged).all()
    fields = [getattr(result, field.name) for field in dataclasses.fields(result)]
    for x in fields:
        if hasattr(x, "dtype") and xp.numpy(x).dtype.kind == "f":
            assert not np.isnan(xp.numpy(x)).any()


@pytest.mark.parametrize("name", ["large cost / eps", "spikes far apart", "far-apart Gaussians"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_scaling_form_out_of_range_is_reported_after_a_fixed_count_too(xp, name, dtype):
    """What says it has converged, or taken the count, has the potentials of that count."""
    p = dataclasses.replace(BY_NAME[name], eps=BY_NAME[name].eps / 10)
    result = solve(xp, p, dtype, max_iter=20, tol=None, method="scaling")
    f, g = (np.atleast_2d(xp.numpy(x)).astype(float) for x in (result.f, result.g))
    done = np.atleast_1d(xp.numpy(result.converged))
    exact, naive, *_ = fixed_iterations(p, dtype, 20)
    for k in np.flatnonzero(done):
        want, rough = (np.asarray(s[k].f[:, None] + s[k].g, float) for s in (exact, naive))
        tolerance = earned(want, rough, dtype, largest(p.C) + p.eps)
        used = np.asarray(np.atleast_2d(p.b)[k], dtype) > 0
        np.testing.assert_allclose((f[k][:, None] + g[k])[:, used], want[:, used], rtol=0, atol=tolerance)


# Over-relaxation and warm start


def slow_problem(B=6, seed=0, eps=0.005):
    """Histograms on an 8 x 8 grid with empty bins, like digits: hundreds of plain iterations."""
    rng = np.random.default_rng(seed)
    weights = problems.histograms(rng, 2 * B, 64, zeros=0.4)
    return problems.Problem("slow", weights[:B], weights[B:], problems.grid_cost(8, 8), eps)


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("overrelaxation", ["auto", 1.0, 1.5, 1.9, 1.99])
def test_over_relaxation_reaches_the_same_solution(xp, overrelaxation, method):
    p = slow_problem(B=3, eps=0.02)
    plain = solve(xp, p, tol=1e-9, max_iter=50_000, overrelaxation=None)
    fast = solve(xp, p, tol=1e-9, max_iter=50_000, overrelaxation=overrelaxation, method=method)
    assert xp.numpy(fast.converged).all()
    best = np.array(reference.each(reference.optimum, p.a, p.b, p.C, p.eps))[:, 0]
    plain_error = np.abs(xp.numpy(plain.cost) - best).max()
    assert np.abs(xp.numpy(fast.cost) - best).max() <= 10 * plain_error + 1e-9


def error_at_the_start(a, b, C, eps):
    """Marginal error of g = 0 and its f: where the iteration comes from."""
    g = np.zeros(len(b))
    return reference.marginal_error(reference.plan(a, b, C, eps, reference.softmin(C, g, b, eps, axis=1), g), b)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("overrelaxation", ["auto", 1.5, 1.99, float(np.nextafter(2.0, 0.0))])
@pytest.mark.parametrize("p", problems.HARD, **named)
def test_no_over_relaxation_diverges(xp, p, overrelaxation, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        result = solve(xp, p, dtype, tol=1e-12, max_iter=60, overrelaxation=overrelaxation)
    assert finite(xp, result)
    start = np.array(reference.each(error_at_the_start, p.a, p.b, p.C, p.eps))
    assert (np.atleast_1d(xp.numpy(result.error)) <= 1.1 * start + moved_by_rounding(p, result, xp, dtype)).all()


def test_estimated_over_relaxation_saves_iterations(xp):
    p = slow_problem()
    plain = solve(xp, p, max_iter=20_000, overrelaxation=None)
    auto = solve(xp, p, max_iter=20_000)
    assert xp.numpy(plain.converged).all() and xp.numpy(auto.converged).all()
    assert xp.numpy(auto.n_iter).sum() < 0.6 * xp.numpy(plain.n_iter).sum()


@pytest.mark.parametrize("method", ["auto", "log"])
def test_a_start_from_potentials_continues_the_iteration(xp, method):
    p = BY_NAME["n < m, shared cost"]
    whole = solve(xp, p, max_iter=12, tol=None, method=method)
    half = solve(xp, p, max_iter=5, tol=None, method=method)
    rest = solve(xp, p, max_iter=7, tol=None, method=method, init=(half.f, half.g))
    np.testing.assert_allclose(xp.numpy(rest.f), xp.numpy(whole.f), rtol=0, atol=1e-13)
    np.testing.assert_allclose(xp.numpy(rest.g), xp.numpy(whole.g), rtol=0, atol=1e-13)


def test_warm_start_saves_iterations(xp):
    p = slow_problem()
    cold = solve(xp, p, max_iter=20_000)
    again = solve(xp, p, max_iter=20_000, init=(cold.f, cold.g))
    assert xp.numpy(again.converged).all() and (xp.numpy(again.n_iter) <= 10).all()
    near = dataclasses.replace(p, eps=0.9 * p.eps)
    warm, without = solve(xp, near, max_iter=20_000, init=(cold.f, cold.g)), solve(xp, near, max_iter=20_000)
    assert xp.numpy(warm.n_iter).sum() < xp.numpy(without.n_iter).sum()
    np.testing.assert_allclose(xp.numpy(warm.cost), xp.numpy(without.cost), rtol=1e-4)


def test_one_start_serves_a_batch(xp):
    p = BY_NAME["n < m, shared cost"]
    f, g = xp(np.linspace(0, 1, 37)), xp(np.zeros(53))
    result = solve(xp, p, max_iter=4, tol=None, init=(f, g))
    want = [reference.iterated(p.a[k], p.b[k], p.C, p.eps, 4, f=np.linspace(0, 1, 37)).f for k in range(5)]
    np.testing.assert_allclose(xp.numpy(result.f), want, rtol=0, atol=1e-13)


# Batches


@pytest.mark.parametrize("method", ["auto", "log", "scaling"])
@pytest.mark.parametrize("name", ["n < m, shared cost", "a cost per problem", "empty bins", "forbidden pairs"])
def test_a_batch_is_a_loop_of_singles(xp, name, method):
    """Stopping apart and the compaction that follows change no problem's result."""
    p = BY_NAME[name]
    options = {"eps": p.eps, "tol": 1e-7, "method": method, "check_every": 2, "max_iter": 5000}
    batch = cusink.sinkhorn(xp(p.a), xp(p.b), xp(p.C), **options)
    assert len(set(xp.numpy(batch.n_iter).tolist())) > 1
    for k in range(len(p.a)):
        C = p.C if p.C.ndim == 2 else p.C[k]
        one = cusink.sinkhorn(xp(p.a[k]), xp(p.b[k]), xp(C), **options)
        assert one.f.shape == p.a[k].shape and one.cost.shape == one.error.shape == one.converged.shape == ()
        assert abs(int(one.n_iter) - int(xp.numpy(batch.n_iter)[k])) <= 2
        for field in ("cost", "reg_cost", "entropic_cost"):
            assert float(getattr(one, field)) == pytest.approx(float(xp.numpy(getattr(batch, field))[k]), rel=1e-8), (
                field
            )


def test_a_batch_stopped_apart_equals_fixed_counts(xp):
    p = BY_NAME["n < m, shared cost"]
    batch = solve(xp, p, tol=1e-6, overrelaxation=None)
    for k, count in enumerate(xp.numpy(batch.n_iter)):
        one = cusink.sinkhorn(xp(p.a[k]), xp(p.b[k]), xp(p.C), eps=p.eps, tol=None, max_iter=int(count))
        np.testing.assert_allclose(xp.numpy(batch.f)[k], xp.numpy(one.f), rtol=0, atol=1e-13)
        np.testing.assert_allclose(xp.numpy(batch.g)[k], xp.numpy(one.g), rtol=0, atol=1e-13)


def test_permuted_batch_gives_permuted_results(xp):
    p = BY_NAME["empty bins"]
    order = np.random.default_rng(0).permutation(len(p.a))
    result, moved = solve(xp, p, tol=1e-8), solve(xp, dataclasses.replace(p, a=p.a[order], b=p.b[order]), tol=1e-8)
    np.testing.assert_allclose(xp.numpy(moved.f), xp.numpy(result.f)[order], rtol=0, atol=1e-8)
    np.testing.assert_allclose(xp.numpy(moved.cost), xp.numpy(result.cost)[order], rtol=1e-9)


@pytest.mark.parametrize("name", ["n > m, shared cost", "a cost per problem", "empty bins", "forbidden pairs"])
def test_swapping_the_sides_transposes_the_plan(xp, name):
    p = BY_NAME[name]
    swapped = dataclasses.replace(p, a=p.b, b=p.a, C=np.swapaxes(p.C, -1, -2))
    here, there = solve(xp, p, tol=1e-11, max_iter=20_000), solve(xp, swapped, tol=1e-11, max_iter=20_000)
    np.testing.assert_allclose(xp.numpy(here.plan()), np.swapaxes(xp.numpy(there.plan()), -1, -2), rtol=0, atol=1e-9)
    np.testing.assert_allclose(xp.numpy(here.cost), xp.numpy(there.cost), rtol=1e-8)


SIDES = {"single": (), "batch": (3,), "batch of one": (1,), "none": None}


@pytest.mark.parametrize(
    ("side_a", "side_b", "side_C"),
    list(itertools.product(SIDES, SIDES, ["single", "batch", "batch of one"])),
)
def test_batch_axes_broadcast(xp, side_a, side_b, side_C):
    rng = np.random.default_rng(0)
    a, b = (
        None if SIDES[side] is None else problems.histograms(rng, 3, bins)[: SIDES[side][0] if SIDES[side] else 1]
        for side, bins in ((side_a, 4), (side_b, 6))
    )
    C = rng.random((3, 4, 6))[: SIDES[side_C][0] if SIDES[side_C] else 1]
    given = [
        None if x is None else xp(x if SIDES[side] else x[0]) for x, side in ((a, side_a), (b, side_b), (C, side_C))
    ]
    result = cusink.sinkhorn(*given, eps=0.2, tol=None, max_iter=20)
    batch = np.broadcast_shapes(*(SIDES[side] for side in (side_a, side_b, side_C) if SIDES[side] is not None))
    assert result.f.shape == (*batch, 4) and result.g.shape == (*batch, 6)
    shapes = {
        getattr(result, name).shape for name in ("cost", "reg_cost", "entropic_cost", "error", "n_iter", "converged")
    }
    assert shapes == {batch}
    assert result.plan().shape == (*batch, 4, 6)
    a, b = (np.full((1, bins), 1 / bins) if x is None else x for x, bins in ((a, 4), (b, 6)))
    want = reference.each(reference.iterated, a, b, C, 0.2, 20)
    f = np.broadcast_to(xp.numpy(result.f), (len(want), 4))
    np.testing.assert_allclose(f, [s.f for s in want], rtol=0, atol=1e-13)


# Numbers in and out


@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ratio", [1.0, 0.1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
def test_no_eps_gives_nan_or_inf(xp, ratio, dtype, method, scale):
    p = slow_problem(B=4, seed=3)
    a, b = p.a.copy(), p.b.copy()
    a[0], b[0] = 0, 0  # all mass in opposite corners, everything between empty
    a[0, 0], b[0, -1] = 1, 1
    p = dataclasses.replace(p, a=a, b=b, C=scale * p.C, eps=scale * ratio)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        result = solve(xp, p, dtype, max_iter=100, method=method)
        assert finite(xp, result)
        assert np.isfinite(xp.numpy(result.plan())).all()
        lower, upper = (xp.numpy(x) for x in result.bounds())
    assert np.isfinite(lower).all() and np.isfinite(upper).all()


def test_potential_of_an_empty_bin_is_the_derivative_with_respect_to_its_weight(xp):
    """Weight moves from bin l to the empty bin k: reg_cost changes at the rate f_k - f_l, or g_k - g_l."""
    rng = np.random.default_rng(0)
    a, b = problems.histograms(rng, 2, 9)
    a[[2, 5]], b[[0, 7]] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    C, eps = rng.random((9, 9)), 0.1

    def reg_cost(a, b):
        return float(cusink.sinkhorn(xp(a), xp(b), xp(C), eps=eps, tol=1e-13, max_iter=20_000, check=False).reg_cost)

    result = cusink.sinkhorn(xp(a), xp(b), xp(C), eps=eps, tol=1e-13, max_iter=20_000)
    f, g = xp.numpy(result.f), xp.numpy(result.g)
    for side, potential, k, donor in (("a", f, 2, 1), ("a", f, 5, 8), ("b", g, 0, 3), ("b", g, 7, 4)):
        quotients = []
        for step in (1e-4, 5e-5):
            weights = {"a": a.copy(), "b": b.copy()}
            weights[side][k] += step
            weights[side][donor] -= step
            quotients.append((reg_cost(**weights) - reg_cost(a, b)) / step)
        # One-sided quotients err by O(step); Richardson's combination takes that term away.
        assert 2 * quotients[1] - quotients[0] == pytest.approx(potential[k] - potential[donor], abs=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("mass", [1e-6, 1.0, 1e6])
def test_units_of_cost_and_mass_do_not_matter(xp, mass, scale, dtype):
    """No product of a mass, a cost and a scaling leaves the range of float32 on the way to a value that is in it."""
    p = BY_NAME["n < m, shared cost"]
    plain = solve(xp, p, dtype, max_iter=20, tol=None)
    p = dataclasses.replace(p, a=mass * p.a, b=mass * p.b, C=scale * (p.C + 3), eps=scale * p.eps)
    result = solve(xp, p, dtype, max_iter=20, tol=None)
    rounding = 16 * np.finfo(dtype).eps * 4 / BY_NAME["n < m, shared cost"].eps
    np.testing.assert_allclose(xp.numpy(result.cost) / (mass * scale), xp.numpy(plain.cost) + 3, rtol=rounding)
    np.testing.assert_allclose(xp.numpy(result.error), xp.numpy(plain.error), rtol=1e-3, atol=rounding)


@pytest.mark.parametrize("method", ["auto", "log", "scaling"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", range(60))
def test_problems_drawn_at_random(xp, seed, dtype, method):
    """After a fixed count of iterations: the oracle's potentials, and the cost and the error of these potentials."""
    p = problems.drawn(seed)
    p = dataclasses.replace(p, **{k: getattr(p, k).astype(dtype) for k in "abC"})
    count = (1, 7, 40)[seed % 3]
    result = solve(xp, p, dtype, max_iter=count, tol=None, method=method)
    assert finite(xp, result) or method == "scaling"
    size, mass = largest(p.C), p.a.astype(float).sum(axis=1)
    rounding = 16 * float(np.finfo(dtype).eps) * (size / p.eps + 1)
    f, g, error, cost = (xp.numpy(x).astype(float) for x in (result.f, result.g, result.error, result.cost))
    triples = reference.each(lambda *one: one, *(x.astype(float) for x in (p.a, p.b, p.C)))
    for k, (a, b, C) in enumerate(triples):
        if method == "scaling" and not xp.numpy(result.converged)[k]:
            continue  # it left the range, and says so
        exact = reference.iterated(a, b, C, p.eps, count)
        naive = reference.iterated(p.a[k], p.b[k], C.astype(dtype), p.eps, count, dtype=dtype)
        used = b > 0
        want, rough = ((s.f.astype(float)[:, None] + s.g)[:, used] for s in (exact, naive))
        tolerance = 8 * np.abs(want - rough).max() + 64 * float(np.finfo(dtype).eps) * (size + p.eps)
        np.testing.assert_allclose((f[k][:, None] + g[k])[:, used], want, rtol=0, atol=tolerance)
        P = reference.plan(a, b, C, p.eps, f[k], g[k])
        assert error[k] == pytest.approx(reference.marginal_error(P, b), rel=1e-4, abs=4 * rounding)
        assert cost[k] == pytest.approx(reference.transport_cost(P, C), abs=4 * rounding * size * mass[k])


@pytest.mark.parametrize("overrelaxation", ["auto", 1.95])
@pytest.mark.parametrize("method", ["auto", "log", "scaling"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", range(60, 100))
def test_problems_drawn_at_random_over_relaxed(xp, seed, dtype, method, overrelaxation):
    """Converged or not: values are finite, and the error is that of the potentials."""
    p = problems.drawn(seed)
    p = dataclasses.replace(p, **{k: getattr(p, k).astype(dtype) for k in "abC"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        result = solve(xp, p, dtype, max_iter=100, tol=1e-5, method=method, overrelaxation=overrelaxation)
    for name in ("f", "g", "cost", "reg_cost", "entropic_cost"):
        assert np.isfinite(xp.numpy(getattr(result, name))).all(), name
    error = xp.numpy(result.error).astype(float)
    assert not np.isnan(error).any()
    rounding = 64 * np.finfo(dtype).eps * (largest(p.C) / p.eps + 1)
    seen = np.isfinite(error)
    np.testing.assert_allclose(error[seen], recomputed_errors(p, result, xp)[seen], rtol=1e-4, atol=rounding)


def test_all_bins_but_one_empty(xp):
    a, b, C = np.zeros((2, 5)), np.zeros((2, 4)), np.arange(20.0).reshape(5, 4)
    a[:, 3], b[0, 1], b[1, 2] = 1, 1, 1
    result = cusink.sinkhorn(xp(a), xp(b), xp(C), eps=0.01)
    np.testing.assert_allclose(xp.numpy(result.cost), [C[3, 1], C[3, 2]], rtol=1e-12)
    assert finite(xp, result) and xp.numpy(result.converged).all()


def test_an_empty_bin_changes_nothing_for_the_others(xp):
    p = BY_NAME["empty bins"]
    for k in range(3):
        rows, columns = np.flatnonzero(p.a[k]), np.flatnonzero(p.b[k])
        whole = cusink.sinkhorn(xp(p.a[k]), xp(p.b[k]), xp(p.C), eps=p.eps, tol=None, max_iter=25)
        # The first g-update of the small problem must see the same f = 0, which it does.
        core = cusink.sinkhorn(
            xp(p.a[k, rows]), xp(p.b[k, columns]), xp(p.C[np.ix_(rows, columns)]), eps=p.eps, tol=None, max_iter=25
        )
        np.testing.assert_allclose(xp.numpy(whole.f)[rows], xp.numpy(core.f), rtol=0, atol=1e-13)
        np.testing.assert_allclose(xp.numpy(whole.g)[columns], xp.numpy(core.g), rtol=0, atol=1e-13)
        assert float(whole.cost) == pytest.approx(float(core.cost), rel=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_is_kept(xp, dtype):
    p = BY_NAME["n < m, shared cost"]
    result = solve(xp, p, dtype)
    for name in ("f", "g", "cost", "reg_cost", "entropic_cost"):
        assert getattr(result, name).dtype == dtype, name
        assert xp.owns(getattr(result, name))
    assert result.plan().dtype == dtype and xp.owns(result.plan())
    v = xp(np.ones((5, 53)), dtype)
    assert result.apply(v, 1).dtype == dtype
    assert {x.dtype for x in result.bounds()} == {np.dtype(dtype)}


def test_half_precision_is_computed_in_float32_and_returned_in_its_own_dtype(xp):
    p = BY_NAME["one problem, no batch axis"]
    a, b, C = (np.asarray(x, np.float16) for x in (p.a, p.b, p.C))
    result = cusink.sinkhorn(xp(a), xp(b), xp(C), eps=p.eps, max_iter=50, tol=None)
    for name in ("f", "g", "cost", "reg_cost"):
        assert getattr(result, name).dtype == np.float16, name
    single = cusink.sinkhorn(*(xp(x, np.float32) for x in (a, b, C)), eps=p.eps, max_iter=50, tol=None)
    np.testing.assert_array_equal(xp.numpy(result.f), xp.numpy(single.f).astype(np.float16))
    np.testing.assert_array_equal(xp.numpy(result.cost), xp.numpy(single.cost).astype(np.float16))


def test_lists_and_integers_become_float64():
    from_lists = cusink.sinkhorn([0.5, 0.5], [0.25, 0.75], [[0, 1], [1, 0]], eps=0.5)
    from_arrays = cusink.sinkhorn(
        np.array([0.5, 0.5]), np.array([0.25, 0.75]), np.array([[0, 1], [1, 0]], dtype=np.int32), eps=0.5
    )
    assert from_lists.f.dtype == from_arrays.cost.dtype == np.float64
    assert float(from_lists.cost) == float(from_arrays.cost)
    whole = cusink.sinkhorn([1, 1], [0, 2], [[0, 1], [1, 0]], eps=1)
    assert float(whole.cost) == pytest.approx(1.0)


def test_lists_and_numbers_follow_the_dtype_of_the_arrays():
    C = np.array([[0, 1], [1, 0]], np.float32)
    single = cusink.sinkhorn([0.5, 0.5], (0.25, 0.75), C, eps=0.5)
    assert single.f.dtype == single.cost.dtype == np.float32
    weights = cusink.barycenter(np.eye(2, dtype=np.float32), C, [0.5, 0.5], eps=0.5).barycenter
    assert weights.dtype == np.float32
    assert cusink.sinkhorn([0.5, 0.5], None, C.astype(int), eps=0.5).cost.dtype == np.float64


def test_views_of_any_strides_are_accepted(xp):
    p = BY_NAME["n < m, shared cost"]
    a, b, C = xp(p.a.T.copy()).T, xp(p.b[:, ::-1].copy())[:, ::-1], xp(np.asfortranarray(p.C))
    strided = cusink.sinkhorn(a, b, C, eps=p.eps, tol=None, max_iter=10)
    plain = solve(xp, p, tol=None, max_iter=10)
    np.testing.assert_allclose(xp.numpy(strided.f), xp.numpy(plain.f), rtol=0, atol=1e-14)


def test_foreign_byte_order_is_refused_or_right():
    p = BY_NAME["one problem, no batch axis"]
    a, b, C = (x.astype(x.dtype.newbyteorder()) for x in (p.a, p.b, p.C))
    with pytest.raises(TypeError, match=r"byte order"):
        cusink.sinkhorn(a, b, C, eps=p.eps)


# The result


def test_result_is_frozen_and_not_a_tuple(xp):
    result = solve(xp, BY_NAME["n < m, shared cost"])
    assert isinstance(result, cusink.SinkhornResult)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.cost = 0.0
    with pytest.raises(TypeError):
        iter(result)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", MILD, **named)
def test_plan_and_apply(xp, p, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        result = solve(xp, p, dtype, tol=1e-5)
    P = xp.numpy(result.plan())
    f, g = (np.atleast_2d(xp.numpy(x)).astype(np.float64) for x in (result.f, result.g))
    a, b, C = (np.asarray(x, dtype).astype(np.float64) for x in (p.a, p.b, p.C))
    want = np.array(
        [reference.plan(*one, p.eps, f[k], g[k]) for k, one in enumerate(reference.each(lambda *x: x, a, b, C))]
    ).reshape(P.shape)
    rounding = moved_by_rounding(p, result, xp, dtype)
    np.testing.assert_allclose(P, want, rtol=rounding, atol=np.finfo(dtype).tiny)
    assert (P >= 0).all()
    rng = np.random.default_rng(0)
    for axis in (0, 1):
        v = rng.normal(size=(*P.shape[:-2], P.shape[-1] if axis == 1 else P.shape[-2])).astype(dtype)
        applied = xp.numpy(result.apply(xp(v), axis))
        product = np.einsum("...ij,...j->...i" if axis == 1 else "...ij,...i->...j", want, v.astype(float))
        size = np.einsum("...ij,...j->...i" if axis == 1 else "...ij,...i->...j", want, np.abs(v).astype(float))
        assert (np.abs(applied - product) <= 2 * rounding * size + np.finfo(dtype).tiny).all()


def test_apply_takes_one_vector_for_the_whole_batch(xp):
    result = solve(xp, BY_NAME["n < m, shared cost"])
    v = np.linspace(-1, 1, 53)
    np.testing.assert_allclose(xp.numpy(result.apply(xp(v), 1)), xp.numpy(result.plan()) @ v, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ["auto", "log", "scaling"])
def test_one_shared_cost_is_never_copied_per_problem(method):
    """400 problems on 150 bins: a cost per problem would be 72 MB, the plans as much."""
    import tracemalloc

    rng = np.random.default_rng(0)
    a, b = problems.histograms(rng, 400, 150), problems.histograms(rng, 400, 150)
    C = rng.random((150, 150))
    cusink.sinkhorn(a[:2], b[:2], C, eps=0.1, max_iter=2, tol=None, method=method)
    tracemalloc.start()
    cusink.sinkhorn(a, b, C, eps=0.1, max_iter=4, tol=None, method=method)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.25 * 400 * 150 * 150 * 8
