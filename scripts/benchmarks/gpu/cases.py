"""The rows of ``gpu/kernels.py``: operators and sizes, their arrays, and their answers in plain NumPy."""

import dataclasses
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
EPS = 0.01  # of the largest cost, which is 1
CHECKED = 4  # problems of a row that are compared with the oracle


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator at one size. `cost` is "shared" or "own"; `detail` is the axis, or the form of the iteration."""

    operator: str
    cost: str
    detail: int | str | None
    B: int
    n: int
    m: int
    dtype: str
    count: int = 1  # iterations

    @property
    def exps(self):
        """Exponentials that the operation asks for; None where it is not bound by them."""
        if self.operator == "c_transform" or self.detail in ("auto", "scaling"):
            return None
        return self.B * self.n * self.m * (2 * self.count if "iterations" in self.operator else 1)

    @property
    def bytes(self):
        """Bytes that must cross the memory bus: every input once and every output once."""
        B, n, m = self.B, self.n, self.m
        cost = n * m * (B if self.cost == "own" else 1)
        vectors = {
            "apply_plan": B * 2 * (n + m),
            "plan": B * (n + m + n * m),
            "transport_cost": B * (n + m + 1),
            "iterations": B * 4 * (n + m),
            "report_iterations": B * 4 * (n + m),
        }
        return (cost + vectors.get(self.operator, B * (n + m))) * np.dtype(self.dtype).itemsize


def all_cases(sizes=((256, 100, 100), (256, 1000, 1000), (1024, 784, 784))):
    """Yield every row; the first two sizes have all operators, the others softmin alone."""
    for dtype in ("float32", "float64"):
        for size in sizes:
            for axis in (1, 0):
                yield Case("report_softmin", "shared", axis, *size, dtype)
                yield Case("softmin", "shared", axis, *size, dtype)
        for size in sizes[:2]:
            for axis in (1, 0):
                yield Case("softmin", "own", axis, *size, dtype)
                yield Case("apply_plan", "shared", axis, *size, dtype)
                yield Case("c_transform", "shared", axis, *size, dtype)
            for operator in ("transport_cost", "plan"):
                yield Case(operator, "shared", None, *size, dtype)
            count = 100 if size[1] <= 100 else 10  # the oracle of large ones takes the host a second for each dtype
            yield Case("report_iterations", "shared", None, *size, dtype, count=count)
            for form in ("log", "scaling", "auto"):
                yield Case("iterations", "shared", form, *size, dtype, count=count)
        yield Case("iterations", "own", "log", *sizes[0], dtype, count=100)


class Data:
    """The arrays of a case: on the host for the oracle, and in `device` through `xp` (NumPy or CuPy)."""

    def __init__(self, case, xp):
        rng = np.random.default_rng(case.n)
        B, n, m = case.B, case.n, case.m
        self.dtype = np.dtype(case.dtype)
        self.checked = np.sort(rng.choice(B, min(CHECKED, B), replace=False))
        C = ((rng.random((n, 1, 2)) - rng.random((1, m, 2))) ** 2).sum(axis=2)
        self.cost = (C / C.max()).astype(self.dtype)
        self.factors = rng.uniform(0.5, 1, B).astype(self.dtype)  # an own cost is the shared one times a factor
        a, b = rng.dirichlet(np.ones(n), B), rng.dirichlet(np.ones(m), B)
        if (
            "iterations" not in case.operator
        ):  # the report's potentials are -inf at empty bins, and could not be compared
            a[:, ::7], b[:, ::5] = 0, 0
        self.a, self.b = ((w / w.sum(axis=1, keepdims=True)).astype(self.dtype) for w in (a, b))
        with np.errstate(divide="ignore"):
            self.p = np.log(self.a) + rng.normal(size=(B, n)).astype(self.dtype)
            self.q = np.log(self.b) + rng.normal(size=(B, m)).astype(self.dtype)
        self.v = rng.normal(size=(B, m if case.detail == 1 else n)).astype(self.dtype)
        names = ("cost", "a", "b", "p", "q", "v")
        self.device = {name: xp.asarray(getattr(self, name)) for name in names}
        if case.cost == "own":
            self.device["cost"] = self.device["cost"][None] * xp.asarray(self.factors)[:, None, None]

    def problems(self, case, dtype):
        """Yield the problems to be checked as (cost, a, b, p, q, v), on the host and in `dtype`."""
        for k in self.checked:
            cost = self.cost * self.factors[k] if case.cost == "own" else self.cost
            yield tuple(x.astype(dtype) for x in (cost, self.a[k], self.b[k], self.p[k], self.q[k], self.v[k]))


def softmin(C, logits, axis, eps):
    """Log-sum-exp with the maximum taken out, of one problem."""
    terms = (logits if axis == 1 else logits[:, None]) - C / eps
    largest = terms.max(axis=axis, keepdims=True)
    return -eps * (np.log(np.exp(terms - largest).sum(axis=axis)) + largest.squeeze(axis))


def naive(case, data, dtype):
    """Return the answers in plain NumPy: the oracle if `dtype` is float64, a measure of rounding if it is float32."""
    eps, axis = np.dtype(dtype).type(EPS), case.detail

    def answer(C, a, b, p, q, v):
        if case.operator in ("softmin", "report_softmin"):
            return softmin(C, q if axis == 1 else p, axis, eps)
        if case.operator == "c_transform":
            return (C - (v if axis == 1 else v[:, None])).min(axis=axis)
        if "iterations" in case.operator:
            f = np.zeros_like(a)
            for _ in range(case.count):
                g = softmin(C, np.log(a) + f / eps, 0, eps)
                f = softmin(C, np.log(b) + g / eps, 1, eps)
            return np.concatenate([f, g])
        P = np.exp(p[:, None] + q - C / eps)
        if case.operator == "apply_plan":
            return P @ v if axis == 1 else v @ P
        return {"plan": P, "transport_cost": (P * C).sum()}[case.operator]

    return np.array([answer(*problem) for problem in data.problems(case, dtype)])


_answers = {}


def check(case, data, found):
    """Return (error, allowed), both of the largest value, or of the largest cost for what is in units of cost.

    The last because one rounding of the costs, which nobody can avoid, moves potentials by as much as that.

    Allowed is 4 times the rounding error of plain NumPy. For both dtypes it is taken from float32, in units of its eps:
    in float64 plain NumPy is the oracle itself, and would seem to have none.
    """
    # The report's kernel and all forms of the iteration have one answer, which can take the host seconds.
    detail = None if "iterations" in case.operator else case.detail
    key = dataclasses.replace(case, operator=case.operator.removeprefix("report_"), detail=detail)
    if key not in _answers:
        _answers[key] = naive(case, data, np.float64), naive(case, data, np.float32)
    exact, single = _answers[key]
    in_units_of_cost = "softmin" in case.operator or "iterations" in case.operator or case.operator == "c_transform"
    scale = max(np.abs(exact).max(), data.cost.max() if in_units_of_cost else 0)
    error, granted = (np.abs(x.astype(np.float64) - exact).max() / scale for x in (found, single))
    units = granted / np.finfo(np.float32).eps + 1
    return float(error), float(4 * units * np.finfo(data.dtype).eps)


def operation(case, data, ops, xp):
    """Return (call, read): `call()` does the work once, and `read(result)` is what `naive` gives, on the host."""
    x, eps, axis = data.device, EPS, case.detail
    host = getattr(xp, "asnumpy", np.asarray)
    checked = xp.asarray(data.checked)

    def rows(result):
        return host(result[checked])

    if case.operator == "softmin":
        return lambda: ops.softmin(x["cost"], x["q" if axis == 1 else "p"], eps, axis), rows
    if case.operator == "c_transform":
        return lambda: ops.c_transform(x["cost"], x["v"], axis), rows
    if case.operator == "apply_plan":
        return lambda: ops.apply_plan(x["cost"], x["p"], x["q"], x["v"], eps, axis), rows
    if case.operator in ("transport_cost", "plan"):
        return lambda: getattr(ops, case.operator)(x["cost"], x["p"], x["q"], eps), rows
    if case.operator != "iterations":
        raise ValueError(f"no operation for {case}")
    omega = xp.ones(case.B, data.dtype)
    f, g = (xp.zeros(x[side].shape, data.dtype) for side in "ab")
    iteration = ops.Iteration(x["cost"], x["a"], x["b"], eps, f, g, case.detail)

    def advance():
        iteration.advance(omega, case.count)
        return iteration

    def potentials(iteration):
        return np.concatenate([host(w) for w in iteration.finish(checked)[:2]], axis=1)

    return advance, potentials


def report_operation(case, data, kernel, block, xp):
    """Return the same for the report's kernel, with `block` threads for each output."""
    x, eps, axis = data.device, data.dtype.type(EPS), case.detail
    host = getattr(xp, "asnumpy", np.asarray)
    checked = xp.asarray(data.checked)

    def half_step(out, logits, w, axis):
        strides = (case.m, 1) if axis == 1 else (1, case.m)
        sizes = (np.int32(k) for k in (out.shape[1], logits.shape[1], *strides))
        kernel((out.size,), (block,), (out, x["cost"], logits, w, 1 / eps, *sizes))
        return out

    if case.operator == "report_softmin":
        zero = xp.zeros_like(x["a"] if axis == 1 else x["b"])
        out = xp.empty_like(zero)
        return lambda: half_step(out, x["q" if axis == 1 else "p"], zero, axis), lambda out: host(out[checked]) * eps

    log_a, log_b = xp.log(x["a"]), xp.log(x["b"])
    u, v = xp.empty_like(log_a), xp.empty_like(log_b)

    def iterate():
        u[:] = log_a
        for _ in range(case.count):
            half_step(v, u, log_b, 0)
            half_step(u, v, log_a, 1)
        return u - log_a, v - log_b

    return iterate, lambda found: np.concatenate([host(w[checked]) for w in found], axis=1) * eps
