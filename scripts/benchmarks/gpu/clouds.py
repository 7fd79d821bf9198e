"""More rows of ``gpu/kernels.py``: costs and kernels between points, documents, and a whole solve.

Each is called as a user calls it, or one layer below; each has its own judge, in float64 and with none of our kernels.
"""

import dataclasses
import importlib

import numpy as np
from benchmarks.gpu.cases import CHECKED, EPS, Case
from benchmarks.gpu.machines import FAST_HALVES

NEAR = 0.01  # eps, of the mean cost
BLOCK = 1 << 26  # entries of the judge's blocks
TOL = 1e-4
FLASH = "flash_sinkhorn_iterations"


@dataclasses.dataclass(frozen=True)
class PointCase(Case):
    """One operator between `n` and `m` points of `d` coordinates, or bins."""

    d: int = 0

    @property
    def exps(self):
        """Exponentials that the operation asks for; None where it is not bound by them."""
        if self.operator in ("solve", "split_step"):
            return None
        return self.B * self.n * self.m * (2 * self.count if self.count > 1 else 1)

    @property
    def bytes(self):
        """Bytes that must cross the memory bus: every input once and every output once."""
        stored = self.n * self.m * (2 if self.operator == "plan_sum" else 1)
        numbers = stored if self.cost == "shared" else self.B * (self.n + self.m) * self.d
        return (numbers + self.B * 2 * (self.n + self.m)) * np.dtype(self.dtype).itemsize


def point_cases(points=100_000, many=10_000, items=64, words=50, problems=256, bins=100, large=(45 * 37, 4000)):
    """Yield the rows; the sizes are those of the goals."""
    for dtype in ("float32", "float64"):
        for operator in ("softmin_points", "kernel_product"):
            yield PointCase(operator, "points", "d=3", 1, points, points, dtype, d=3)
        yield PointCase("documents", "points", "d=64", items**2, words, words, dtype, 20, d=64)
        yield PointCase("solve", "shared", f"tol {TOL:g}", problems, bins, bins, dtype)
        yield PointCase("plan_sum", "shared", None, problems, 10 * bins, 10 * bins, dtype)
    yield PointCase("split_step", "shared", "tensor cores", *large, large[1], "float32", 10)
    for operator in ("softmin_products", FLASH):
        yield PointCase(operator, "points", "d=64", 1, many, many, "float32", 10, d=64)
    yield PointCase("kernel_sums_products", "points", "d=64", 1, many, many, "float32", d=64)


def prepare(case, xp):
    """Return (call, judge): `call()` does the work once, `judge(result)` says (error, allowed).

    Or None where a peer is not installed, and words where the work would be another.
    """
    return WORK[case.operator](case, xp, np.random.default_rng(case.n))


def softmin_points(case, xp, rng):
    x, y = clouds(case, xp, rng)
    logits, eps = xp.asarray(rng.normal(size=(1, case.m)).astype(case.dtype)), NEAR * case.d / 6
    rows = xp.asarray(rng.choice(case.n, min(64, case.n), replace=False))
    C = point_cost(xp, x, y)

    def answer(dtype):
        return softmin(xp, x[rows].astype(dtype), y.astype(dtype), logits[0].astype(dtype), eps)

    return lambda: C.softmin(logits, eps, 1), judged(case, xp, lambda found: found[0][rows], answer, unit=case.d)


def kernel_product(case, xp, rng):
    import cusink

    x, y = clouds(case, xp, rng)
    weights, scale = xp.asarray(rng.random(case.m).astype(case.dtype) / case.m), 0.5 * (case.d / 3) ** 0.5
    rows = xp.asarray(rng.choice(case.n, min(64, case.n), replace=False))

    def answer(dtype):
        q = squares(xp, x[rows].astype(dtype), y.astype(dtype))
        return xp.exp(q / -(np.dtype(dtype).type(scale) ** 2)) @ weights.astype(dtype)

    return lambda: cusink.kernel_product(x, y, weights, "gaussian", scale), judged(
        case, xp, lambda found: found[rows], answer
    )


def softmin_products(case, xp, rng):
    """Alternating iterations, g first, that start at 0."""
    x, y = clouds(case, xp, rng)
    a, b, eps, answer = alternating(case, xp, x, y)
    C = point_cost(xp, x, y)
    C = dataclasses.replace(C, data=dataclasses.replace(C.data, memory_limit=0))
    iteration = C.iteration(a[None], b[None], eps, 0 * a[None], 0 * b[None], "log")
    omega, first = np.ones(1), np.arange(1)

    def potentials(_):
        return xp.concatenate([w[0] for w in start.finish(first)[:2]])

    # Timed is one object that goes on; judged is another that has just started.
    start = C.iteration(a[None], b[None], eps, 0 * a[None], 0 * b[None], "log")
    start.advance(omega, case.count)
    return lambda: iteration.advance(omega, case.count), judged(case, xp, potentials, answer, unit=case.d)


def split_step(case, xp, rng):
    """Iterate with a large shared cost, g first, from 0; say so where it would not be on tensor cores."""
    a, b, C = stored(case, xp, rng)
    # Timed is one object that goes on; judged is another that has just started.
    iteration, start = (operand_of(xp, C).iteration(a, b, EPS, 0 * a, 0 * b, "auto") for _ in range(2))
    if xp is not np and type(iteration.form).__name__ != "SplitForm":
        # On a device that has fast ones this is a fault, and no row that may be missing.
        return "in float" if xp.cuda.Device().compute_capability in FAST_HALVES else "not on tensor cores"
    omega, first = np.ones(case.B), np.arange(min(CHECKED, case.B))
    start.advance(omega, case.count)

    def answer(dtype):
        costs, scale, found = C.astype(dtype), np.dtype(dtype).type(EPS), []
        for u, v in zip(*(w[: len(first)].astype(dtype) for w in (a, b)), strict=True):
            f = xp.zeros(case.n, dtype)
            for _ in range(case.count):
                g = -scale * logsumexp(xp, xp.log(u)[:, None] + (f[:, None] - costs) / scale, 0)
                f = -scale * logsumexp(xp, xp.log(v) + (g - costs) / scale, 1)
            found.append(xp.concatenate([f, g]))
        return xp.stack(found)

    def potentials(_):
        return xp.concatenate(start.finish(first)[:2], axis=1)

    return lambda: iteration.advance(omega, case.count), judged(case, xp, potentials, answer, unit=1)


def plan_sum(case, xp, rng):
    """Sum the weighted plans of all problems, as a gradient by a shared cost is one."""
    a, b, C = stored(case, xp, rng)
    g, level = (xp.asarray(rng.normal(size=size).astype(case.dtype) * EPS) for size in (b.shape, a.shape))
    rows, step = rng.choice(case.n, min(64, case.n), replace=False), max(1, BLOCK // case.n // case.m)
    terms = (xp.log(b[k : k + step]) + g[k : k + step] / EPS for k in range(0, case.B, step))
    # Those of g, so that plans have the marginals a.
    f = xp.concatenate([-EPS * logsumexp(xp, block[:, None] - C / EPS, 2) for block in terms]).astype(case.dtype)
    groups = [(level[index], made) for index, made in operand_of(xp, C).plan_means(a, b, f, g, EPS)]

    def answer(dtype):
        u, v, p, q, w, costs = (x.astype(dtype) for x in (a[:, rows], b, f[:, rows], g, level[:, rows], C[rows]))
        total = xp.zeros_like(costs)
        for k in range(0, case.B, step):
            block, scale = slice(k, k + step), np.dtype(dtype).type(EPS)
            P = xp.exp((p[block, :, None] + q[block, None] - costs) / scale) * u[block, :, None] * v[block, None]
            total += (P * w[block, :, None]).sum(axis=0)
        return total

    return lambda: sum(made.plan_sum(levels, None, None) for levels, made in groups), judged(
        case, xp, lambda found: found[rows], answer
    )


def flash_sinkhorn(case, xp, rng):
    """Return the same iterations by flash-sinkhorn, which updates its first side first, in the digits of a float."""
    try:
        solve = importlib.import_module("flash_sinkhorn.sinkhorn_solvers").sinkhorn_flashstyle_alternating
        torch = importlib.import_module("torch")
    except (ImportError, AttributeError):
        return None
    x, y = clouds(case, xp, rng)
    a, b, eps, answer = alternating(case, xp, x, y)
    given = [torch.from_dlpack(array) for array in (y, x, b, a)]

    def potentials(found):
        g, f = map(xp.from_dlpack, found)
        return xp.concatenate([f, g])

    return lambda: solve(*given, eps=eps, n_iters=case.count, allow_tf32=False), judged(
        case, xp, potentials, answer, unit=case.d
    )


def documents(case, xp, rng):
    import cusink

    items = round(case.B**0.5)
    offsets, dtype, eps = np.arange(items + 1) * case.n, np.dtype(case.dtype), NEAR * case.d / 6
    points = [rng.random((items * case.n, case.d)).astype(dtype) for _ in range(2)]
    measures = [cusink.Measures(offsets, None, xp.asarray(p)) for p in points]
    pairs = rng.choice(items, (min(CHECKED, items), 2))

    def answer(dtype):
        return np.array(
            [
                plain(*(p.reshape(items, case.n, -1)[k] for p, k in zip(points, pair, strict=True)), dtype)
                for pair in pairs
            ]
        )

    def plain(x, y, dtype):
        C = squares(np, x.astype(dtype), y.astype(dtype))
        f, one = np.zeros(len(x), dtype), np.dtype(dtype).type(1)
        weight, scale = -np.log(one * case.n), one * eps
        for _ in range(case.count):
            g = -scale * logsumexp(np, (weight + f / scale)[:, None] - C / scale, 0)
            f = -scale * logsumexp(np, (weight + g / scale) - C / scale, 1)
        return (np.exp(2 * weight + (f[:, None] + g - C) / scale) * C).sum()

    def call():
        return cusink.distance_matrix(*measures, "sqeuclidean", eps=eps, tol=None, max_iter=case.count)

    return call, judged(case, np, lambda found: host(xp, found)[pairs[:, 0], pairs[:, 1]], answer)


def solve(case, xp, rng):
    """Measure a solve to its tolerance, checks and all; the marginals of the plan of its potentials judge it."""
    import cusink

    given = stored(case, xp, rng)
    a, b, C = (host(xp, part) for part in given)

    def judge(found):
        f, g = (host(xp, w).astype(np.float64) for w in (found.f, found.g))
        errors = []
        for k in range(min(CHECKED, case.B)):
            P = a[k][:, None] * np.exp((f[k][:, None] + g[k] - C) / EPS) * b[k]
            errors.append(max(np.abs(P.sum(axis=1) - a[k]).sum(), np.abs(P.sum(axis=0) - b[k]).sum()))
        return float(max(errors)), 2 * TOL

    return lambda: cusink.sinkhorn(*given, eps=EPS, tol=TOL, max_iter=100_000), judge


WORK = {
    "softmin_points": softmin_points,
    "kernel_product": kernel_product,
    "kernel_sums_products": kernel_product,
    "softmin_products": softmin_products,
    FLASH: flash_sinkhorn,
    "documents": documents,
    "solve": solve,
    "split_step": split_step,
    "plan_sum": plan_sum,
}


def clouds(case, xp, rng):
    """Two clouds in the unit cube."""
    return (xp.asarray(rng.random((size, case.d)).astype(case.dtype)) for size in (case.n, case.m))


def stored(case, xp, rng):
    """Histograms a and b of all problems, and a cost between points of the unit square, at most 1."""
    C = ((rng.random((case.n, 1, 2)) - rng.random((1, case.m, 2))) ** 2).sum(axis=2)
    parts = rng.dirichlet(np.ones(case.n), case.B), rng.dirichlet(np.ones(case.m), case.B), C / C.max()
    return [xp.asarray(part.astype(case.dtype)) for part in parts]


def operand_of(xp, C):
    """Return a stored cost as an operand."""
    from cusink.operand import operand

    return operand(C, xp, C.dtype, [C])


def point_cost(xp, x, y):
    """Return the cost between two clouds as an operand."""
    import cusink
    from cusink.operand import operand

    return operand(cusink.PointCloud(x, y), xp, x.dtype, [x, y])


def alternating(case, xp, x, y):
    """Equal weights, eps, and what the iterations give in a dtype."""
    a, b = (xp.full(size, 1 / size, case.dtype) for size in (case.n, case.m))
    eps = NEAR * case.d / 6

    def answer(dtype):
        u, v = ((p - x.mean(axis=0)).astype(dtype) for p in (x, y))
        f, logs = xp.zeros(case.n, dtype), [np.dtype(dtype).type(-np.log(size)) for size in (case.n, case.m)]
        for _ in range(case.count):
            g = softmin(xp, v, u, logs[0] + f / np.dtype(dtype).type(eps), eps)
            f = softmin(xp, u, v, logs[1] + g / np.dtype(dtype).type(eps), eps)
        return xp.concatenate([f, g])

    return a, b, eps, answer


def softmin(xp, x, y, logits, eps):
    """-eps log sum_j exp(logits_j - |x_i - y_j|^2 / eps), in blocks."""
    scale, step = logits.dtype.type(eps), max(1, BLOCK // len(y))
    parts = (x[start : start + step] for start in range(0, len(x), step))
    return xp.concatenate([-scale * logsumexp(xp, logits - squares(xp, part, y) / scale, 1) for part in parts])


def logsumexp(xp, terms, axis):
    largest = terms.max(axis=axis, keepdims=True)
    return xp.log(xp.exp(terms - largest).sum(axis=axis)) + largest.squeeze(axis)


def squares(xp, x, y):
    """|x_i - y_j|^2: by differences for few coordinates."""
    if x.shape[1] > 4:
        return xp.maximum((x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * (x @ y.T), 0)
    return sum((x[:, k][:, None] - y[:, k]) ** 2 for k in range(x.shape[1]))


def judged(case, xp, read, answer, unit=0):
    """Return a judge that allows 4 times the rounding error of plain NumPy or CuPy, as `cases.check` does."""

    def judge(result):
        found, exact, single = (
            host(xp, values).astype(np.float64) for values in (read(result), answer("float64"), answer("float32"))
        )
        scale = max(np.abs(exact).max(), unit)
        error, granted = (np.abs(values - exact).max() / scale for values in (found, single))
        return float(error), float(4 * (granted / np.finfo(np.float32).eps + 1) * np.finfo(case.dtype).eps)

    return judge


def host(xp, array):
    return getattr(xp, "asnumpy", np.asarray)(array)
