"""Results whose potentials nobody has read: what they say later is what they would have said at once."""

import dataclasses
import pickle
import threading

import numpy as np
import pytest

import cusink
from cusink.backends.numpy.forms.ended import Ended
from cusink.solver.ending import Spared

NAMES = ("f", "g", "cost", "reg_cost", "entropic_cost", "error", "n_iter", "converged")
N, M, PROBLEMS = 9, 7, 5


def problem(case, dtype):
    """Return arrays of a call, of its own, and options."""
    rng = np.random.default_rng(3)
    a, b = rng.dirichlet(np.ones(N), PROBLEMS), rng.dirichlet(np.ones(M), PROBLEMS)
    C, options = rng.random((N, M)), {"eps": 0.05}
    if case == "empty bins":
        a[1:3, 2], b[:4, 3] = 0, 0
    if case == "masses":
        a *= np.array([[0.03], [1], [2], [7], [1e3]])
    if case == "eps for each":
        options["eps"] = np.full(PROBLEMS, 0.05)
    if case == "one problem":
        a, b = a[0], b[0]
    if case == "plain":
        options |= {"tol": None, "max_iter": 40}
    if case == "over-relaxed":
        options |= {"overrelaxation": 1.5}
    b *= a.sum(-1, keepdims=True) / b.sum(-1, keepdims=True)
    return a.astype(dtype), b.astype(dtype), C.astype(dtype), options


CASES = ["easy", "empty bins", "masses", "eps for each", "one problem", "plain", "over-relaxed"]


@pytest.fixture
def unread(monkeypatch):
    """Return how often potentials were made of scalings."""
    asked, made = [], Ended.potentials

    def potentials(ended):
        asked.append(ended)
        return made(ended)

    monkeypatch.setattr(Ended, "potentials", potentials)
    return asked


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("case", CASES)
def test_what_is_read_later_is_what_is_computed_at_once(unread, monkeypatch, case, dtype):
    a, b, C, options = problem(case, dtype)
    later = cusink.sinkhorn(a, b, C, **options)
    assert later.converged.all() and (later.n_iter > 0).all() and not unread
    cost = later.cost
    for x in (a, b, C, options["eps"]):
        if isinstance(x, np.ndarray):
            x[...] = 7  # the result does not follow, though nothing has been read
    told = {name: getattr(later, name) for name in reversed(NAMES)}
    assert unread and told["cost"] is cost
    count = len(unread)
    plan, bounds = later.plan(), later.bounds()
    assert len(unread) == count

    monkeypatch.setattr(Spared, "measure", lambda *_: None)
    a, b, C, options = problem(case, dtype)
    at_once = cusink.sinkhorn(a, b, C, **options)
    assert len(unread) == count
    for name in NAMES:
        mine, other = told[name], getattr(at_once, name)
        assert (mine.dtype, mine.shape, mine.tobytes()) == (other.dtype, other.shape, other.tobytes()), name
    for mine, other in zip((plan, *bounds), (at_once.plan(), *at_once.bounds()), strict=True):
        assert mine.tobytes() == other.tobytes()


@pytest.mark.parametrize("how", ["plan", "repr", "pickle", "adjoint", "replace", "warm start"])
def test_whatever_needs_the_potentials_has_them(unread, how):
    a, b, C, options = problem("easy", np.float64)
    want = cusink.sinkhorn(a, b, C, **options)
    told = [getattr(want, name) for name in NAMES]
    result = cusink.sinkhorn(a, b, C, **options)
    count = len(unread)
    if how == "plan":
        assert result.plan().tobytes() == want.plan().tobytes()
    elif how == "repr":
        assert repr(result) == repr(want) and "f=float64[5, 9]" in repr(result)
    elif how == "pickle":
        result = pickle.loads(pickle.dumps(result))
    elif how == "replace":
        result = dataclasses.replace(result, n_iter=result.n_iter)
    elif how == "warm start":
        assert (cusink.sinkhorn(a, b, C, init=(result.f, result.g), **options).n_iter == 1).all()
    else:
        grads = (cusink.sinkhorn_adjoint(x, grad_cost=np.ones(PROBLEMS)) for x in (result, want))
        assert len({x.a.tobytes() + x.C.tobytes() for x in grads}) == 1
    assert len(unread) > count
    for value, name in zip(told, NAMES, strict=True):
        assert getattr(result, name).tobytes() == value.tobytes(), name


def test_a_user_who_changes_potentials_changes_no_value_that_he_has_not_read():
    a, b, C, options = problem("easy", np.float64)
    want = cusink.sinkhorn(a, b, C, **options)
    told = [getattr(want, name).copy() for name in NAMES[2:]]
    result = cusink.sinkhorn(a, b, C, **options)
    result.f[...] = 7
    for value, name in zip(told, NAMES[2:], strict=True):
        np.testing.assert_array_equal(getattr(result, name), value)


def test_threads_that_read_at_once_find_the_same_bytes():
    a, b, C, options = problem("masses", np.float64)
    want = cusink.sinkhorn(a, b, C, **options)
    told = [getattr(want, name).tobytes() for name in NAMES]
    for _ in range(10):
        result, found, barrier = cusink.sinkhorn(a, b, C, **options), [], threading.Barrier(4)

        def read(result=result, found=found, barrier=barrier):
            barrier.wait(10)
            found.append([getattr(result, name) for name in NAMES])

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for values in found:
            assert [x.tobytes() for x in values] == told
            assert all(x is y for x, y in zip(values, found[0], strict=True))
        assert result.problem.f is result.problem.f


def test_what_misses_the_tolerance_says_so_with_its_error():
    a, b, C, options = problem("easy", np.float64)
    with pytest.warns(cusink.ConvergenceWarning) as caught:
        result = cusink.sinkhorn(a, b, C, max_iter=3, **options)
    assert not result.converged.all() and f"error is {result.error.max():.2g}" in str(caught[0].message)
