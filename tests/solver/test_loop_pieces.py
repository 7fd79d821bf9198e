"""The loop with iterations and starts that are scripted: what it asks for, when, and what it keeps of the answers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import cusink
from cusink.convergence.options import Options
from cusink.convergence.rules import Relaxation, StallDetector, StopState
from cusink.costs.operators import Measured
from cusink.operand import dense_cost
from cusink.solver import coarse, each, loop
from cusink.solver.annealing import HALVING, Patience, Slow
from cusink.solver.ending import LARGEST_EXPONENT, Ending, Later, Spared, ended
from cusink.solver.newton import ALONE, BATCH, Found, worth
from cusink.solver.semidual import OVERSHOOT
from cusink.solver.solution import Solution, Stage, later

TOL = 1e-6
HOST = SimpleNamespace(to_host=lambda x: x)


class Scripted:
    """Problems whose bounds (looks) and measured errors (measurements) are known beforehand."""

    def __init__(self, bounds, errors=None, sizes=None, stops=None):
        self.bounds = [list(row) for row in bounds]
        self.errors = [[0.0] * 9 for _ in bounds] if errors is None else [list(row) for row in errors]
        self.sizes, self.stops, self.stops_itself = sizes, stops, stops is not None
        self.at, self.asked, self.finished, self.measured, self.omegas = np.arange(len(bounds)), [], [], [], []

    def _bound(self):
        return np.array([self.bounds[k].pop(0) for k in self.at])

    def advance(self, omega, count):
        assert len(omega) == len(self.at)
        self.omegas.append(omega.tolist())
        self.asked.append((self.at.tolist(), count))
        return self._bound()

    def advance_until_converged(self, rules, tol, count, checks):
        self.asked.append((self.at.tolist(), count, checks))
        taken, over = self.stops.pop(0)
        return rules, self._bound(), np.array(taken), np.array(over)

    def measure(self, index, keep=False):
        if self.sizes is None:
            return None
        at = self.at[index]
        self.measured.append(at.tolist())
        size, error = np.array([self.sizes[k] for k in at]), np.array([self.errors[k].pop(0) for k in at])
        return Measured(size, 7.0 + at, error, (lambda: self.potentials(at, 20.0)) if keep else None)

    def finish(self, index):
        at = self.at[index]
        self.finished.append(at.tolist())
        error = np.array([self.errors[k].pop(0) for k in at])
        return *self.potentials(at, 0.0), 5.0 + at, error

    def omitted(self, index):
        at = self.at[index]
        assert self.finished[-1] == at.tolist()  # asked right after
        return np.stack([0.1 + at, 0.2 + at, 0.3 + at], axis=1)

    def potentials(self, at, more):
        return more + 1.0 + at[:, None] + np.zeros((1, 2)), more + 10.0 + at[:, None] + np.zeros((1, 3))

    def keep(self, index):
        self.at = self.at[index]


def run(iteration, max_iter=35, tol=TOL, omega=1.0, level=0.0, check_every=10, adaptive=False, **given):
    count, none = len(iteration.bounds), np.zeros(len(iteration.bounds), np.int64)
    relaxation = Relaxation(np.full(count, omega), np.full(count, np.inf), none, 0, adaptive, False)
    stall = StallDetector(level, np.full(count, np.inf), np.zeros(count, np.int64))
    out = Solution.empty(np, np.ones((count, 2)), np.ones((count, 3)))
    seen = []
    options = Options(max_iter=max_iter, tol=tol, check_every=check_every)
    watch = (lambda *x: seen.append(x)) if given.pop("watched", False) else None
    started = given.pop("started", False)
    rules = StopState.start(relaxation, stall)
    given_up, out = loop._iterate(HOST, iteration, rules, options, out, watch, started, **given)
    return out, given_up, seen


def test_problems_end_at_their_looks_are_measured_and_go_on_where_that_was_in_vain():
    script = Scripted([[1e-7], [1e-4, 9e-7, 8e-7, 7e-7], [1e-2, 1e-3, 1e-4, 1e-5]], [[2e-8], [2e-6, 3e-7], [4e-5]])
    out, given_up, seen = run(script, watched=True)
    assert script.asked == [([0, 1, 2], 10), ([1, 2], 10), ([1, 2], 10), ([2], 5)]
    assert script.finished == [[0], [1], [1], [2]] and not np.any(given_up)
    assert out.n_iter.tolist() == [10, 30, 35] and out.converged.all()
    assert out.error.tolist() == [2e-8, 3e-7, 4e-5]
    assert out.f.tolist() == [[1, 1], [2, 2], [3, 3]] and out.g[:, 0].tolist() == [10, 11, 12]
    assert out.cost.tolist() == [5, 6, 7]
    np.testing.assert_allclose(out.omitted, [[0.1, 0.2, 0.3], [1.1, 1.2, 1.3], [2.1, 2.2, 2.3]])
    # From 1e-3 at 20 to 1e-5 in 15, as much as from there in 7.5 to 1e-6.
    np.testing.assert_allclose(out.needed, [np.nan, np.nan, 35 + 7.5])
    assert [done for done, _ in seen] == [10, 20, 30, 35]
    np.testing.assert_allclose(seen[1][1], [2e-8, 9e-7, 1e-3])  # a problem that has ended keeps its error


@pytest.mark.parametrize("check_every", [1, 10])
def test_the_first_iteration_from_a_start_is_plain_on_a_device_too(check_every):
    """It chooses its own factors afterwards, however often it checks."""
    script = Scripted([[1e-3, 1e-7]], stops=[([check_every], [True])])
    out, _, _ = run(script, omega=1.6, check_every=check_every, adaptive=True, started=True)
    assert script.omegas == [[1.0]] and [asked[:2] for asked in script.asked] == [([0], 1), ([0], check_every)]
    assert out.n_iter.tolist() == [1 + check_every]
    script = Scripted([[1e-3, 1e-7]])  # unless a factor is asked for
    run(script, omega=1.6, started=True)
    assert script.omegas == [[1.6], [1.6]]


def test_a_look_after_a_vain_one_waits():
    """Measured in vain at the ninth look, it is not measured again at the next two, however promising its bound is."""
    bounds = [[1.0] * 8 + [2e-6] * 4]
    script = Scripted(bounds, [[3e-6, 9e-7]])
    out, _, _ = run(script, max_iter=1000, omega=1.5)
    assert out.n_iter.tolist() == [120] and script.finished == [[0], [0]]
    script = Scripted([[1.0] * 8 + [2e-6, 1e-6]], [[3e-6, 9e-7]])  # a bound within tol is enough
    assert run(script, max_iter=1000, omega=1.5)[0].n_iter.tolist() == [100]


def test_what_leaves_the_range_ends_unconverged():
    script = Scripted([[np.inf], [np.nan], [1e-7, 1e-7]], [[1.0], [np.nan], [np.inf, 1e-8]])
    out, _, _ = run(script)
    assert out.converged.tolist() == [True, False, True] and script.asked == [([0, 1, 2], 10), ([2], 10)]
    fixed = Scripted([[np.inf], [0.5]], [[0.5], [np.inf]])
    out, _, _ = run(fixed, tol=None)
    assert fixed.asked == [([0, 1], 35)] and out.converged.tolist() == [False, True]
    assert np.isnan(out.needed).all() and out.n_iter.tolist() == [35, 35]


def test_a_problem_at_the_level_of_rounding_ends_after_ten_looks():
    script = Scripted([[1e-5] * 30], [[9e-6]])
    out, _, _ = run(script, max_iter=1000, level=1e-4)
    assert out.n_iter.tolist() == [110] and out.error.tolist() == [9e-6]
    script = Scripted([[1e-5] * 30], [[9e-6]])
    assert run(script, max_iter=200, level=1e-6)[0].n_iter.tolist() == [200]
    script = Scripted([[1e-5] * 30, [1e-3, *[1e-5] * 30]], [[9e-6], [8e-6]])  # each for itself
    assert run(script, max_iter=1000, level=1e-4)[0].n_iter.tolist() == [110, 120]


def test_a_start_that_is_poor_is_given_up_at_once():
    script = Scripted([[0.31], [0.3, 1e-7], [1e-7], [np.inf, 1e-7]], [[0.2], [1e-8], [1e-8], [np.inf]])
    out, given_up, _ = run(script, poor=0.3, started=True)
    assert script.asked == [([0, 1, 2, 3], 1), ([1], 10)]
    assert given_up.poor.tolist() == [True, False, False, True]
    assert not given_up.by_newton.any() and not given_up.by_halving.any()
    assert out.n_iter.tolist() == [1, 11, 1, 1]
    # One whose error is within tol after all is not.
    assert not run(Scripted([[0.31]], [[1e-7]]), poor=0.3, started=True)[1].poor.any()
    assert not np.any(run(Scripted([[0.31, 1e-7]]), poor=0.3)[1])  # it did not come with potentials


def patience(count, due=20, **given):
    return Patience(
        **{"newton": 25.0, "max_iter": 400, "cost": 0, "first": 1, "latest": 0, "least": 0, "due": due, "since": 10}
        | {"bound": np.full(count, 1e-2), "level": np.full(count, 1e-2)}
        | given
    )


def test_problems_that_hardly_converge_are_given_up_when_it_is_due():
    script = Scripted([[2e-2, 2e-2], [2e-2, 5e-7], [2e-2, 2e-2, 1e-7], [2e-2, 2e-2]], [[0.9], [1e-8], [1e-7], [1e-7]])
    bounds = np.array([2e-2, 2e-2, 2.0, 2e-2])
    out, given_up, _ = run(script, max_iter=400, patience=patience(4, bound=bounds, level=bounds))
    # At 20 the third has fallen by a hundredth in ten, and needs twenty more; to the fourth its error says it is there.
    assert script.asked == [([0, 1, 2, 3], 10), ([0, 1, 2, 3], 10), ([2], 10)]
    assert given_up.by_newton.tolist() == [True, False, False, False] and out.n_iter.tolist() == [20, 20, 30, 20]
    assert not given_up.by_halving.any() and not given_up.poor.any()


def test_a_problem_that_was_measured_in_vain_keeps_the_patience_of_its_own():
    script = Scripted([[1e-7], [1e-2, 1e-2]], [[1e-8], [0.9]])
    _, given_up, _ = run(script, max_iter=400, patience=patience(2, bound=np.array([7.0, 1e-2])))
    assert given_up.by_newton.tolist() == [False, True]


@pytest.mark.parametrize(
    ("max_iter", "given", "checks"),
    [(1000, None, 16), (95, None, 9), (1000, 45, 5), (1000, 40, 4), (1000, 5, 1), (19, None, 1)],
)
def test_a_device_is_asked_for_as_many_checks_as_fit(max_iter, given, checks):
    script = Scripted([[1e-7, 1e-7]], stops=[([30], [True])])
    patient = None if given is None else patience(1, due=given)
    out, _, _ = run(script, max_iter=max_iter, patience=patient)
    assert script.asked == [([0], 10, checks)] and out.n_iter.tolist() == [30]


def test_a_device_that_stops_in_vain_goes_on_and_what_is_left_is_checked_on_the_host():
    bounds, errors = [[9e-7, 1e-7], [1e-3, 1e-4, 1e-5]], [[3e-6, 1e-7], [1e-5]]
    script = Scripted(bounds, errors, stops=[([10, 30], [True, False])])
    out, _, _ = run(script, max_iter=35)
    assert script.asked[0] == ([0, 1], 10, 3)
    assert all(len(call) == 2 for call in script.asked[1:])  # fewer than `check_every` are left for one of them
    assert out.n_iter[1] == 35
    watched = Scripted([[1e-7]], stops=[])
    assert run(watched, watched=True)[0].n_iter.tolist() == [10] and watched.asked == [([0], 10)]
    assert run(Scripted([[0.5]], stops=[]), tol=None)[0].n_iter.tolist() == [35]


def test_values_alone_are_measured_where_a_bound_on_potentials_will_do():
    script = Scripted([[1e-7], [1e-7], [1e-2, 1e-7]], [[1e-8], [2e-8], [3e-8]], sizes=[4.0, 6.0, 5.0])
    spared = Spared(3, 6.0, keep=False)
    out, _, _ = run(script, spared=spared)
    assert script.measured == [[0, 1], [2]] and script.finished == []
    assert spared.sizes.tolist() == [4, 6, 5] and out.cost.tolist() == [7, 8, 9]
    assert out.error.tolist() == [1e-8, 2e-8, 3e-8]
    script = Scripted([[1e-7], [1e-7], [1e-2, 1e-7]], [[9, 1e-8], [9, 2e-8], [3e-8]], sizes=[4.0, 6.0, 5.0])
    spared = Spared(3, 5.9, keep=False)
    out, _, _ = run(script, spared=spared)
    assert script.finished == [[0, 1]] and np.isnan(spared.sizes[:2]).all() and spared.sizes[2] == 5
    assert out.cost.tolist() == [5, 6, 9] and out.f[:2].tolist() == [[1, 1], [2, 2]]
    # Those that begin again need their potentials.
    script = Scripted([[1e-2, 1e-2]], [[0.9]], sizes=[4.0])
    _, given_up, _ = run(script, max_iter=400, patience=patience(1), spared=Spared(1, 6.0, keep=False))
    assert given_up.by_newton.all() and script.finished == [[0]] and script.measured == []


def test_which_problems_begin_again():
    slow = Slow.none(5)
    assert not slow.among(slice(None)).any() and list(slow.parts(np.zeros(5))) == []
    slow.by_newton[[1, 3]], slow.by_halving[[1, 0, 2, 4]], slow.poor[3] = True, True, True
    assert slow.among(np.array([3, 0])).all()
    found = [(why, part.tolist()) for why, part in slow.parts(np.array([20, 30, 40, 20, 20]))]
    assert found == [("by_newton", [1]), ("by_newton", [3]), ("by_halving", [0, 4]), ("by_halving", [2]), ("poor", [3])]


def test_nearly_all_weight_in_one_bin():
    a = np.array([[0.951, 0.049], [0.949, 0.051], [0.5, 0.5], [1.902, 0.098]])
    b = np.array([[0.5, 0.5], [0.5, 0.5], [0.045, 0.955], [0.5, 0.5]])
    assert loop.in_one_bin(HOST, a, b).tolist() == [True, False, True, True]


# ---- what rounding adds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [1.0, 4.0])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_what_rounding_can_do_to_the_plan_is_in_the_error(scale, mass):
    """A problem of one column, whose plan has no error of its own."""
    rng = np.random.default_rng(0)
    a, C = rng.dirichlet(np.ones(4)), scale * (1 + rng.random((4, 1)))
    result = cusink.sinkhorn(mass * a, [mass], C, eps=0.5, tol=None, max_iter=1)
    unit = 2.0**-53
    g = (mass * a) @ np.zeros(4)  # any: the sizes of what is returned count
    size = abs(result.f).max() + abs(result.g).max() + 0 * g
    added = 4 * unit + np.expm1((unit + 3 * unit) * size / 0.5)
    assert added <= result.error <= added + 4e-16
    assert size < 2.1 * scale


def test_the_rounding_of_a_mass_is_that_of_mass_one():
    """Values in the unit of the mass, f + g less eps log mass, in the gauge of equal sums."""
    rng = np.random.default_rng(1)
    a, b, C = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(4)), rng.random((3, 4))
    one, many = (cusink.sinkhorn(m * a, m * b, C, eps=0.1, tol=1e-10) for m in (1.0, 256.0))
    assert one.n_iter == many.n_iter
    np.testing.assert_array_equal(many.cost, 256 * one.cost)
    np.testing.assert_allclose(many.f, one.f - 0.1 * math.log(256) * 4 / 7, atol=1e-15)
    np.testing.assert_allclose(many.g, one.g - 0.1 * math.log(256) * 3 / 7, atol=1e-15)


# ---- how an iteration begins ---------------------------------------------------------------------------------------


@pytest.fixture
def begun(monkeypatch):
    """Return what an iteration is told, for costs from `low` to 4 more and two problems."""
    calls, original = [], loop._iterate

    def watched(C, iteration, rules, options, out, callback, started, patience, poor, spared):
        known = None if spared is None else spared.sizes.copy()
        calls.append(SimpleNamespace(**{k: x for k, x in locals().items() if k not in ("calls", "original")}))
        return original(C, iteration, rules, options, out, callback, started, patience, poor, spared)

    monkeypatch.setattr(loop, "_iterate", watched)

    def solve(tol=TOL, low=0.0, parts=True, dtype=float, one_bin=False, eps=0.5, init=False, max_iter=300, **given):
        calls.clear()
        how = {name: given.pop(name) for name in ("overrelaxation", "check_every") if name in given}
        costs = low + np.array([[0.0, 4.0, 1.0], [2.0, 0.5, 3.0]]).astype(dtype)
        a, b = np.array([[0.5, 0.5], [0.25, 0.75]], dtype), np.array([[0.25, 0.5, 0.25]] * 2, dtype)
        if one_bin:
            a[1] = 0.0005, 0.9995
        C = dense_cost(costs)
        f, g = np.full((2, 2), 0.1), np.full((2, 3), 0.2)
        given |= {"costs_of": C.at} if parts else {}
        out = loop.solve(C, a, b, eps, Options(max_iter, tol, **how), init=(f, g) if init else None, **given)
        return calls[0], out

    return solve


def test_an_iteration_aims_below_the_tolerance_by_what_rounding_adds(begun):
    unit = 2.0**-52
    told, out = begun()
    assert told.options.tol == pytest.approx(TOL - (2 * unit + 2 * (unit / 2 + 1.5 * unit) * 8), rel=1e-11, abs=0)
    assert out.converged.all() and told.options.max_iter == 300 and not told.started
    told, _ = begun(low=1e9)  # at most half of it
    assert told.options.tol == pytest.approx(TOL / 2 - 2 * unit, rel=1e-11, abs=0)
    assert begun(tol=None)[0].options.tol is None
    assert begun(low=-100.0)[0].options.tol == pytest.approx(TOL - (2 * unit + 4 * unit * 200), rel=1e-11, abs=0)


def test_an_iteration_knows_what_rounding_explains(begun):
    unit = 2.0**-52
    assert begun()[0].rules.stall.level == pytest.approx(64 * unit * (1 + 8), rel=1e-12, abs=0)
    single = begun(dtype=np.float32, tol=1e-4)[0]
    # Its exponents are taken in float64, and explain the less of its error.
    assert single.C.dtype == np.float32 and single.C.exponent_rounding() == unit / 2
    assert single.rules.stall.level == pytest.approx(64 * 2.0**-23 * (1 + 8 * unit / 2.0**-23), rel=1e-12, abs=0)
    far = begun(dtype=np.float32, tol=1e-4, low=2.0**22)[0]
    assert far.rules.stall.level == pytest.approx(64 * (2.0**-23 + 2 * (2.0**22 + 4) * unit), rel=1e-12, abs=0)
    # float32 has digits for half of a tolerance: four half roundings, and half of one of each exponent.
    limit = 2 * (2 * 2.0**-23 + unit / 2 * 8)
    assert begun(dtype=np.float32, tol=1.01 * limit)[0].C.dtype == np.float32
    assert begun(dtype=np.float32, tol=0.99 * limit)[0].C.dtype == np.float64
    assert begun(dtype=np.float32, tol=1.01 * limit)[1].cost.dtype == np.float32
    assert begun(dtype=np.float32, tol=0.99 * limit)[1].cost.dtype == np.float32  # as it came


def test_a_start_is_judged_where_that_is_asked_for(begun):
    told, _ = begun(init=True, judge=True)
    assert told.poor == 0.3 and told.started and told.patience is not None
    for given in (
        {"judge": True},
        {"init": True},
        {"init": True, "judge": True, "tol": None},
        {"init": True, "judge": True, "parts": False},
    ):
        told, _ = begun(**given)
        assert told.poor == math.inf and told.started == given.get("init", False), given


def test_patience_is_for_problems_that_may_begin_again(begun):
    told, _ = begun()
    assert told.patience.newton == worth(2, 3, BATCH) and told.patience.cost == 3 * HALVING
    assert told.patience.max_iter == 300 and told.patience.bound.shape == (2,)
    assert begun(together=ALONE)[0].patience.newton == worth(2, 3, ALONE)
    assert begun(annealed=True)[0].patience.cost == 0
    for given in ({"parts": False}, {"overrelaxation": 1.5}, {"overrelaxation": None}, {"tol": None}):
        assert begun(**given)[0].patience is None, given


def test_the_factor_an_iteration_begins_with(begun):
    assert begun()[0].rules.relaxation.omega.tolist() == [1, 1]
    assert begun(overrelaxation=1.5)[0].rules.relaxation.omega.tolist() == [1.5, 1.5]
    for given in ({"overrelaxation": None}, {"tol": None}):
        told = begun(**given)[0].rules.relaxation
        assert told.omega.tolist() == [1, 1] and not told.adaptive
    told = begun(tol=None, overrelaxation=1.5)[0].rules.relaxation
    assert told.omega.tolist() == [1.5, 1.5]
    steep = {"eps": 4 / 76, "one_bin": True}
    told = begun(**steep)[0].rules.relaxation
    assert told.omega.tolist() == [1.6, 1.0]  # but for nearly all weight in one bin,
    told = told.observe(np.array([0.4, 0.4]), 10).observe(np.array([0.2, 0.2]), 10)
    assert told.omega[1] == 1 and told.observe(np.array([0.1, 0.1]), 10).omega[1] == 1.6  # which stays plain for longer
    assert begun(**steep, overrelaxation=1.7)[0].rules.relaxation.omega.tolist() == [1.7, 1.7]
    assert begun(**steep, check_every=9)[0].rules.relaxation.omega.tolist() == [1, 1]
    assert begun(eps=4 / 74)[0].rules.relaxation.omega.tolist() == [1, 1]
    assert begun(eps=4 / 76, span=(0.0, 0.1))[0].rules.relaxation.omega.tolist() == [1, 1]  # the span says how steep


def test_a_bound_on_potentials_will_do_where_their_rounding_is_little(begun):
    told, out = begun(potentials=False)
    unit = 2.0**-52
    assert np.isnan(told.known).all() and told.spared.most == pytest.approx(1e-3 * told.options.tol * 0.5 / (2 * unit))
    assert out.converged.all()
    for given in ({}, {"potentials": False, "tol": None}, {"potentials": False, "low": 1e7}):
        assert begun(**given)[0].spared is None, given
    at = 4 * 2 * unit / (1e-3 * 0.5) + 34 * unit  # the tolerance at which costs of 4 are as large as they may be
    assert begun(potentials=False, tol=1.001 * at)[0].spared is not None
    assert begun(potentials=False, tol=0.999 * at)[0].spared is None


def kept(errors, sizes=(4.0, 6.0, 5.0), most=6.0):
    """Return problems that end at the first look, with or without potentials, and one that ends at the second."""
    spared = Spared(3, most, keep=True)
    script = Scripted([[1e-7, 1e-7], [1e-7], [1e-2, 1e-7]], errors, sizes=list(sizes))
    out, _, _ = run(script, spared=spared)
    return script, spared, out


def rows_of(out):
    return out.f[:, 0].tolist(), out.g[:, 0].tolist()


def test_potentials_that_are_kept_are_those_of_the_look_at_which_each_problem_ended():
    script, spared, out = kept([[1e-8], [2e-8], [3e-8]])
    assert script.finished == [] and rows_of(spared.put(out)) == ([21, 22, 23], [30, 31, 32])
    # One is measured in vain, and goes on.
    script, spared, out = kept([[9, 1e-8], [2e-8], [3e-8]])
    assert script.measured == [[0, 1], [0, 2]] and rows_of(spared.put(out)) == ([21, 22, 23], [30, 31, 32])
    # Two are finished, of which one is so in vain, and kept at the next look.
    script, spared, out = kept([[9, 9, 1e-8], [2e-8, 2e-8], [3e-8]], sizes=(4.0, 6.1, 5.0))
    assert script.finished == [[0, 1]] and np.isnan(spared.sizes).tolist() == [False, True, False]
    before = out.f.copy()
    assert rows_of(spared.put(out)) == ([21, 2, 23], [30, 11, 32])
    np.testing.assert_array_equal(out.f, before)


def ending_of(**given):
    a, b = np.full((3, 2), 0.5), np.full((3, 3), 1 / 3)
    named = {"mass": None, "rounding": 1e-9, "of_plan": 1e-10, "islands": True, "steep": False, "begun": False} | given
    return Ending(C=dense_cost(np.zeros((2, 3))), a=a, b=b, eps=0.5, **named)


@pytest.mark.filterwarnings("error")
def test_an_error_beyond_all_bounds_stays_a_number():
    """Of potentials without a digit in the plan, and of a marginal that is off by e^700, together too."""
    ending, most = ending_of(), float(np.finfo(float).max)
    far = 2 * LARGEST_EXPONENT / ending.of_plan
    errors = ending.errors(np.array([1e304, 1e304, 1e-3]), np.array([far, 1.0, far]))
    assert errors[[0, 2]].tolist() == [most, most] and errors[1] == pytest.approx(1e304)


def test_what_ends_within_the_tolerance_leaves_its_potentials_for_later():
    """Errors are bounds until somebody asks, and then those of the sizes that the potentials have."""
    ending, errors = ending_of(), [[1e-8], [2e-8], [3e-8]]
    _, spared, out = kept(errors, sizes=(100.0, 140.0, 120.0), most=150.0)
    sizes = ending.potentials(*spared.put(out)[:2])[2]
    found = ended(out, spared, ending, TOL)
    assert found.later is not None and found.converged.all()
    np.testing.assert_allclose(found.error, out.error + 1e-9 + np.expm1(1e-10 * np.array([200, 280, 240])), rtol=1e-12)
    f, g, error = found.later()
    assert all(x is y for x, y in zip((f, g, error), found.later(), strict=True))
    np.testing.assert_array_equal(error, ending.errors(out.error, sizes))
    np.testing.assert_allclose(f.sum(axis=1), g.sum(axis=1), atol=1e-12)
    assert (error < found.error).all()
    # At once where the bounds leave open whether all are within it, or one has its potentials already.
    for most, tol in ((150.0, float(error.max())), (130.0, TOL)):
        _, spared, out = kept([[9, 1e-8], [9, 2e-8], [3e-8]] if most < 140 else errors, (100.0, 140.0, 120.0), most)
        sizes = ending.potentials(*spared.put(out)[:2])[2]
        at_once = ended(out, spared, ending, tol)
        assert at_once.later is None
        np.testing.assert_array_equal(at_once.error, ending.errors(out.error, sizes))


def test_potentials_are_computed_once_and_what_they_were_made_of_is_forgotten():
    _, spared, out = kept([[1e-8], [2e-8], [3e-8]])
    later = Later(out, spared, ending_of())
    first = later.found()
    spared.put = None  # nobody calls it
    assert later.found() is first and later._parts is None


def test_bounds_on_potentials_count_the_mass():
    mass = np.array([1.0, 4.0, 0.25])
    np.testing.assert_allclose(ending_of(mass=mass).bounds(np.ones(3)), 2 + np.abs(np.log(mass)))


# ---- beginning again -----------------------------------------------------------------------------------------------


def found_of(error, n_iter, value):
    count = len(error)
    out = Solution.empty(np, np.ones((count, 2)), np.ones((count, 3)))
    out.f[:], out.g[:], out.cost[:], out.error[:] = value, value, value, error
    out.n_iter[:], out.needed[:], out.newton[:], out.omitted[:] = n_iter, 500.0, 3, value / 16
    return out


@pytest.fixture
def starts(monkeypatch):
    """Note what is asked of the starts; Newton's method finds `starts.error` after `starts.taken` evaluations."""
    asked = SimpleNamespace(newton=[], halved=[], resumed=[], error=1e-3, taken=30, found=[1e-8])

    def newton(C, a, b, eps, start, tol, steepness, most):
        asked.newton.append((C, a, b, eps, start, tol, steepness, most))
        return Found(np.full((1, 2), 4.0), np.full((1, 3), 5.0), 6.0, asked.error, asked.taken)

    def halved(*given):
        asked.halved.append(given)
        return np.full((1, 2), 6.0), np.full((1, 3), 7.0)

    def resume(C, a, b, eps, options, init):
        asked.resumed.append((options.max_iter, init))
        return found_of(asked.found, 11, 9.0)

    monkeypatch.setattr(loop, "newton", newton)
    monkeypatch.setattr(loop, "halved", halved)
    asked.resume = resume
    return asked


def restart(starts, slow, steepness=1000.0, by_newton=True, max_iter=1000, error=0.1, tol=TOL):
    count = 3
    out = found_of([error] * count, 40, 1.0)
    weights = np.ones((len(slow), 2)), 1.5 * np.ones((len(slow), 3))
    cost = dense_cost(np.zeros((2, 3)))
    loop._restart(starts.resume, cost, weights, 0.5, Options(max_iter, tol), out, np.array(slow), steepness, by_newton)
    return out


def test_a_start_by_newton_is_taken_if_it_is_better(starts):
    out = restart(starts, [1])
    _, a, b, eps, start, tol, steepness, most = starts.newton[0]
    assert (eps, tol, steepness, most) == (0.5, TOL / 2, 1000.0, 1000 - 40 - 1 - OVERSHOOT)
    assert b.tolist() == [[1.5] * 3] and start[0].tolist() == [[1, 1]] and a.tolist() == [[1, 1]]
    ((left, init),) = starts.resumed
    assert left == 1000 - 40 - 30 and init[0].tolist() == [[4, 4]] and not starts.halved
    assert out.n_iter.tolist() == [40, 40 + 30 + 11, 40] and out.f[:, 0].tolist() == [1, 9, 1]
    assert out.error.tolist() == [0.1, 1e-8, 0.1] and out.cost.tolist() == [1, 9, 1] and out.g[1, 0] == 9
    np.testing.assert_allclose(out.needed, [500, 500 + 40 + 30, 500])
    assert out.newton.tolist() == [3, 3 + 30 + 3, 3] and (out.omitted[:, 0] * 16).tolist() == [1, 9, 1]


def test_what_newton_solved_is_the_solution(starts):
    starts.error = TOL
    out = restart(starts, [1])
    assert not starts.resumed and not starts.halved and out.n_iter.tolist() == [40, 40 + 30, 40]
    assert out.f[:, 0].tolist() == [1, 4, 1] and out.g[:, 0].tolist() == [1, 5, 1] and out.cost.tolist() == [1, 6, 1]
    assert out.error.tolist() == [0.1, TOL, 0.1]
    assert out.newton.tolist() == [3, 3 + 30, 3] and (out.omitted * 16).tolist() == [[1] * 3, [0] * 3, [1] * 3]
    starts.error = 1.01 * TOL
    assert restart(starts, [1]).cost[1] == 9 and len(starts.resumed) == 1


@pytest.mark.parametrize("found", [0.1, 0.2])
def test_a_start_by_newton_that_is_no_better_leads_to_annealing(starts, found):
    starts.error = found
    out = restart(starts, [1])
    assert starts.newton and len(starts.halved) == 1 and starts.halved[0][3:] == (0.5, Options(1000, TOL), 1000.0)
    ((left, init),) = starts.resumed
    assert left == 1000 - 40 - 30 - 10 * HALVING and init[0].tolist() == [[6, 6]]
    assert out.n_iter[1] == 40 + 30 + 10 * HALVING + 11
    starts.resumed.clear()
    out = restart(starts, [1], max_iter=40 + 1 + 30 + 200 - 1)  # of which too few are left
    assert len(starts.halved) == 1
    ((left, init),) = starts.resumed
    assert left == 200 and init[0].tolist() == [[1, 1]]
    restart(starts, [1], max_iter=40 + 1 + 30 + 200)
    assert len(starts.halved) == 2


def test_several_problems_are_annealed_together_and_keep_what_is_better(starts):
    starts.found = [1e-8, 0.1, 0.2]
    out = restart(starts, [0, 1, 2], by_newton=False)
    assert not starts.newton and starts.resumed[0][0] == 1000 - 40 - 200
    assert out.error.tolist() == [1e-8, 0.1, 0.1] and out.cost.tolist() == [9, 9, 1]
    assert out.n_iter.tolist() == [40 + 200 + 11] * 3
    assert out.newton.tolist() == [6] * 3 and (out.omitted[:, 2] * 16).tolist() == [9, 9, 1]
    starts.resumed.clear()
    restart(starts, [0, 1, 2], by_newton=True, tol=None)  # without a tolerance there is nothing to aim at
    assert not starts.newton
    starts.resumed.clear()
    restart(starts, [0, 1, 2], by_newton=False, max_iter=20)
    assert starts.resumed[0][0] == 1


def test_costs_are_widened_for_parts_too():
    single = dense_cost(np.zeros((2, 2), np.float32))
    assert loop._widened(lambda part: single)(np.arange(1)).dtype == np.float64


@pytest.mark.parametrize(("n", "m"), [(20, 30), (400, 10)])
def test_what_newton_is_worth_has_its_parts(n, m):
    """In the unit of 0.05 ns: products, exponentials and a factorisation, over an iteration of one or of many."""
    k = min(n, m)
    evaluation = n * m * (0.54 * k + 40) + 0.7 * k**3 + 2e6
    assert worth(n, m, ALONE) == pytest.approx(15 * evaluation / (4 * n * m * 4 + 8e5), rel=1e-12)
    assert worth(n, m, BATCH) == pytest.approx(15 * evaluation / (4 * n * m * (1 + 3 / 16) + 5e4), rel=1e-12)


# ---- coarse to fine ------------------------------------------------------------------------------------------------


class Clouds:
    """A cost with levels of these variances, which notes what it is asked."""

    def __init__(self, variances):
        self.variances, self.losses, self.shape = variances, [], (103, 104)

    def with_loss(self, loss):
        self.losses.append(loss)
        return self

    def levels(self, a, b):
        def level(k, variance):
            def extended(f, g, means):
                assert means == f"means at {k}"
                return f + 1, g + 1

            return SimpleNamespace(a=f"a{k}", b=f"b{k}", variance=variance, extended=extended)

        def cost(k):
            def plan_means(a, b, f, g, eps):
                assert (a, b) == (f"a{k}", f"b{k}")
                self.at = eps
                return [(None, f"means at {k}")]

            return SimpleNamespace(plan_means=plan_means, name=k, shape=(10 * k + 3, 10 * k + 4))

        return [(cost(k), level(k, variance)) for k, variance in enumerate(self.variances)]


def coarsely(variances, eps, tol=1e-4, check_every=10):
    calls = []

    def solve(C, a, b, eps, options, init, restrict, together):
        assert not restrict and together == ALONE
        calls.append((getattr(C, "name", "all"), eps, options.tol, None if init is None else init[0]))
        return SimpleNamespace(f=10.0 * len(calls), g=20.0 * len(calls), n_iter=np.array([5 * len(calls)]))

    cost = Clouds(variances)
    found = coarse.coarse_start(solve, cost, "a", "b", eps, Options(tol=tol, check_every=check_every))
    return found, calls, cost


def test_a_large_cloud_is_solved_from_coarse_to_fine():
    found, calls, cost = coarsely([1.6, 0.4, 0.008], 0.01)
    assert cost.losses == pytest.approx([1e-6]) and cost.at == pytest.approx(0.01)
    assert [call[0] for call in calls] == [0, 1, 2]
    np.testing.assert_allclose([call[1] for call in calls], [2.0, 0.5, 0.01])
    assert [call[2] for call in calls] == [1e-2, 1e-2, 0.5e-4]  # at eps itself half of the tolerance
    assert [call[3] for call in calls] == [None, 11.0, 21.0]
    C, init, options, stages = found
    assert [stage[:2] + stage[3:] for stage in stages] == [(3, 4, 5), (13, 14, 10), (23, 24, 15)]
    assert [stage.eps for stage in stages] == [call[1] for call in calls]
    assert C is cost and init == (31.0, 61.0) and (options.check_every, options.tol) == (5, 1e-4)
    assert coarsely([0.008], 0.01, check_every=3)[0][2].check_every == 3
    assert [call[2] for call in coarsely([0.4], 0.1, tol=0.03)[1]] == [0.03, 0.03]  # no closer than asked for


def test_the_points_follow_at_a_quarter_of_eps_each():
    found, calls, _ = coarsely([0.072], 0.01)  # 9 eps
    assert [call[0] for call in calls] == [0, "all"]
    np.testing.assert_allclose([call[1] for call in calls], [0.09, 0.0225])
    assert [call[2] for call in calls] == [1e-2, 1e-2] and [call[3] for call in calls] == [None, 11.0]
    assert found.init == (20.0, 40.0)
    assert found.stages[0][:2] == (3, 4) and found.stages[1] == (103, 104, 0.0225, 10)
    assert [call[0] for call in coarsely([0.0319], 0.01)[1]] == [0] and len(coarsely([0.0321], 0.01)[1]) == 2


def test_where_coarse_levels_do_not_pay():
    assert coarsely([0.1], 0.01, tol=None)[0] is None
    assert coarsely([], 0.01)[0] is None
    assert (
        coarsely([0.0799], 0.01)[0] is not None and coarsely([0.0801], 0.01)[0] is None and not coarsely([1.0], 0.01)[1]
    )


# ---- what is handed on ---------------------------------------------------------------------------------------------


def test_a_part_writes_its_solutions_where_they_belong():
    out, part = found_of([1.0] * 4, 5, 1.0), found_of([2.0, 3.0], 7, 8.0)
    part.converged[0] = False
    out.put(np.array([3, 1]), part)
    assert out.error.tolist() == [1, 3, 1, 2] and out.n_iter.tolist() == [5, 7, 5, 7]
    assert (out.omitted[:, 1] * 16).tolist() == [1, 8, 1, 8] and out.newton.tolist() == [3] * 4
    assert out.f[:, 0].tolist() == [1, 8, 1, 8] and out.g[:, 0].tolist() == out.cost.tolist() == [1, 8, 1, 8]
    assert out.converged.tolist() == [True, True, True, False]
    empty = Solution.empty(np, np.ones((2, 3), np.float32), np.ones((2, 1), np.float32))
    assert (empty.f.shape, empty.g.shape, empty.cost.dtype, empty.computed) == ((2, 3), (2, 1), np.float32, np.float32)
    assert empty.f.dtype == np.float64 and np.isinf(empty.error).all() and np.isnan(empty.needed).all()
    assert empty.converged.all() and not empty.n_iter.any()
    assert not empty.newton.any() and empty.omitted.tolist() == [[0] * 3] * 2 and empty.stages == ()


def test_a_callback_sees_all_problems_and_all_iterations():
    out, seen = found_of([1.0, 2.0, 3.0], [10, 40, 30], 1.0), []
    assert later(None, out, np.array([0])) is None
    later(lambda *x: seen.append(x), out, np.array([2, 0]))(5, np.array([0.25, 0.5]))
    assert seen[0][0] == 35 and seen[0][1].tolist() == [0.5, 2.0, 0.25] and out.error.tolist() == [1, 2, 3]


# ---- one eps, or one each ------------------------------------------------------------------------------------------


@pytest.fixture
def solves(monkeypatch):
    """Note what the loop is asked for; it finds the first weight of each problem, and the eps."""
    calls = []

    def solve(C, a, b, eps, options, **given):
        calls.append(SimpleNamespace(C=C, a=a, b=b, eps=eps, options=options, **given))
        out = Solution.empty(np, a, b)
        out.f[:], out.g[:], out.cost[:], out.error[:] = a[:, :1], eps, a[:, 1], 1e-9
        return out._replace(computed=np.dtype(np.float32))

    monkeypatch.setattr(each, "solve", solve)
    return calls


W = np.array([[0.25, 0.75], [0.5, 0.5], [0.1, 0.9]])
COST = np.array([[0.0, 1.0], [2.0, 0.5]])


def solve_each(eps, reach=None, cost=COST, a=W, tol=TOL, init=None, callback=None, method="auto", **how):
    options = Options(max_iter=50, tol=tol, method=method)
    given = each.HowToSolve(options, reach, **{"together": BATCH} | how)
    return each.solve_each(
        dense_cost(cost), a, W[:, ::-1].copy().astype(a.dtype), eps, given, init=init, callback=callback
    )


def test_problems_of_one_eps_are_one_call(solves):
    found, shift = solve_each(0.5)
    assert shift is None and len(solves) == 1 and (solves[0].eps, solves[0].span, solves[0].start) == (0.5, None, None)
    assert solves[0].costs_of is not None and not solves[0].judge and not solves[0].annealed
    assert solves[0].together == BATCH
    assert found.cost.tolist() == W[:, 1].tolist()
    solve_each(np.full(3, 0.5), spanned=True, judge=True, together=ALONE)
    assert len(solves) == 2 and (solves[1].eps, solves[1].span) == (0.5, (0.0, 2.0)) and solves[1].judge
    assert isinstance(solves[1].eps, float) and solves[1].together == ALONE
    _, shift = solve_each(0.5, reach=(1.0, 2.0))
    assert (
        shift.tolist() == [0, 0, 0] and solves[2].costs_of is None and solves[2].start.keywords["reach"] == (1.0, 2.0)
    )
    assert solves[2].start.keywords["shift"] is shift


def test_problems_of_equal_eps_are_one_call(solves):
    seen, init = [], (np.arange(6.0).reshape(3, 2), np.ones((3, 2)))
    found, shift = solve_each(np.array([0.5, 0.25, 0.5]), init=init, callback=lambda *x: seen.append(x))
    assert [(call.eps, call.a.tolist()) for call in solves] == [(0.25, W[[1]].tolist()), (0.5, W[[0, 2]].tolist())]
    assert solves[1].init[0].tolist() == [[0, 1], [4, 5]] and solves[1].init[1].shape == (2, 2) and shift is None
    assert found.f[:, 0].tolist() == W[:, 0].tolist() and found.g[:, 0].tolist() == [0.5, 0.25, 0.5]
    assert found.computed == np.float32
    solves[1].callback(7, np.array([0.1, 0.2]))
    assert seen[0][0] == 7 and seen[0][1].tolist() == [0.1, 1e-9, 0.2]
    with pytest.raises(ValueError, match="C / eps is finite; got 1e-310 in a batch with costs of up to 2"):
        solve_each(np.array([1e-310, 1.0, 1.0]))
    _, shift = solve_each(np.array([0.5, 0.25, 0.5]), reach=(1.0, 2.0))
    assert shift.shape == (3,) and len(solves) == 4


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_costs_of_their_own_are_taken_in_units_of_eps(solves, dtype):
    eps, cost = np.array([0.5, 0.25, 0.125]), np.stack([COST, COST, 2 * COST]).astype(dtype)
    init = np.ones((3, 2)), np.full((3, 2), 2.0)
    found, shift = solve_each(eps, cost=cost, a=W.astype(dtype), init=init)
    (call,) = solves
    assert shift is None and call.eps == 1.0 and call.a.dtype == call.b.dtype == call.C.dtype == np.float64
    np.testing.assert_allclose(call.C.data, cost / eps[:, None, None])
    np.testing.assert_allclose(call.init[0][:, 0], 1 / eps)
    np.testing.assert_allclose(call.init[1][:, 0], 2 / eps)
    np.testing.assert_allclose(call.a.sum(axis=1), call.b.sum(axis=1), rtol=1e-15)
    np.testing.assert_allclose(found.f[:, 0], W[:, 0] * eps, rtol=1e-6)
    np.testing.assert_allclose(found.g[:, 0], eps)
    np.testing.assert_allclose(found.cost, W[:, 1] * eps, rtol=1e-6)
    assert found.cost.dtype == dtype
    solves.clear()
    solve_each(eps, cost=cost, a=W.astype(dtype), reach=(1.0, 1.0))
    assert len(solves) == 3  # not with prices


def test_coarse_levels_are_asked_where_nothing_else_is_known(solves, monkeypatch):
    asked, other = [], dense_cost(COST)
    found = coarse.CoarseStart(other, ("f", "g"), Options(max_iter=3), (Stage(3, 4, 0.5, 6),))
    monkeypatch.setattr(each, "coarse_start", lambda *given: asked.append(given) or found)
    init = np.ones((3, 2)), np.ones((3, 2))
    solved, _ = solve_each(0.5, coarse=True, judge=True, init=init)
    assert solved.stages == ((3, 4, 0.5, 6),)
    assert len(asked) == 1 and solves[0].C is other and solves[0].init == ("f", "g")
    assert solves[0].options.max_iter == 3 and solves[0].annealed and not solves[0].judge
    for given in ({"coarse": False}, {"reach": (1.0, 1.0)}, {"method": "log"}):
        solve_each(0.5, **{"coarse": True} | given)
        assert len(asked) == 1 and not solves[-1].annealed, given


def test_self_terms_of_an_eps_each_are_those_of_each(monkeypatch):
    calls = []

    def self_potentials(C, a, eps, options, rho):
        calls.append((C.shape, a.tolist(), eps, rho))
        count = len(a)
        return each.SelfSolution(
            a + eps, a[:, 0] * eps, np.full(count, eps), np.arange(count), np.full(count, eps > 0.3)
        )

    monkeypatch.setattr(each, "self_potentials", self_potentials)
    cost, options = dense_cost(COST), Options()
    assert each.self_potentials_each(cost, W, 0.5, options, 2.0).f.tolist() == (W + 0.5).tolist()
    calls.clear()
    eps = np.array([0.5, 0.25, 0.5])
    found = each.self_potentials_each(cost, W, eps, options, 2.0)
    assert [call[1:] for call in calls] == [(W[[1]].tolist(), 0.25, 2.0), (W[[0, 2]].tolist(), 0.5, 2.0)]
    assert found.f.tolist() == (W + eps[:, None]).tolist() and found.reg_cost.tolist() == (W[:, 0] * eps).tolist()
    assert found.error.tolist() == eps.tolist() and found.n_iter.tolist() == [0, 0, 1]
    assert found.converged.tolist() == [True, False, True]
    one = each.self_potentials_each(cost, W[:1], eps, options, 2.0)  # one measure for all
    assert one.f.tolist() == (W[[0, 0, 0]] + eps[:, None]).tolist()


def test_a_call_says_how_to_solve(monkeypatch):
    from cusink.solver import sinkhorn as door

    calls, original = [], door.solve_each

    def watched(C, a, b, eps, how, *, init, callback):
        calls.append((how, init, callback))
        return original(C, a, b, eps, how, init=init, callback=callback)

    monkeypatch.setattr(door, "solve_each", watched)
    cusink.sinkhorn(W[0], W[1], COST, eps=0.5)
    cusink.sinkhorn(W, W, COST, eps=0.5, reach=2.0, max_iter=70, check_every=4, init=(np.zeros(2), np.zeros(2)))
    (one, *rest), (many, init, _) = calls
    assert (one.together, one.spanned, one.judge, one.reach) == (ALONE, True, True, None) and rest == [None, None]
    assert many.together == BATCH and many.reach == (2.0, 2.0) and init[0].shape == (3, 2)
    assert many.options == Options(70, 1e-6, 4, "auto", "auto")
    single = cusink.sinkhorn(W.astype(np.float32), W.astype(np.float32), COST.astype(np.float32), eps=0.5)
    assert calls[2][0].options.tol == 1e-5 and single.converged.all()
    with pytest.warns(cusink.ConvergenceWarning, match="1 of 3 problems"):
        cusink.sinkhorn(W, W[[0, 1, 0]], 30 * COST, eps=0.5, max_iter=2, tol=1e-4)
