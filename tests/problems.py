"""Problems with known answers, and hard ones whose answer the oracle gives. Imports nothing of cusink."""

from dataclasses import dataclass, field

import numpy as np

# Of `cusink.backends.numpy.limits`: clouds of some hundreds of points count as large.
SMALL_LIMITS = {
    "cloud_cell_pairs": 1 << 14,
    "cloud_sparse_pairs": 1 << 14,
    "cloud_array_pairs": 1 << 10,
    "cloud_coarse_points": 1 << 5,
    "cloud_celled_rows": (32, 64),
    "cloud_dense_points": 1 << 5,
    "cloud_cells": 1 << 6,
}


@dataclass(frozen=True, eq=False)
class Problem:
    """One transport problem (or a batch of them); `known` maps names of values to what they must be.

    A problem equals only itself, so that what is dear to compute can be cached for it.
    """

    name: str
    a: np.ndarray
    b: np.ndarray
    C: np.ndarray
    eps: float
    known: dict = field(default_factory=dict)

    def __str__(self):
        return self.name


def histograms(rng, count, bins, zeros=0.0, mass=1.0):
    """Random weights (count, bins) of the given mass, a share `zeros` of them empty, the first bin never."""
    weights = rng.gamma(1.0, size=(count, bins)) + 1e-3
    if zeros:
        empty = rng.random((count, bins)) < zeros
        empty[:, 0] = False
        weights[empty] = 0.0
    return mass * weights / weights.sum(axis=1, keepdims=True)


def line_cost(n, m=None):
    """Squared distance between n and m equally spaced points of [0, 1]."""
    m = n if m is None else m
    return (np.linspace(0, 1, n)[:, None] - np.linspace(0, 1, m)[None, :]) ** 2


def grid_cost(height, width):
    """Squared distance between the cells of a grid, the largest scaled to 1."""
    points = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)
    C = ((points[:, None] - points[None]) ** 2).sum(axis=-1).astype(float)
    return C / C.max()


def _xlogx(p):
    p = np.asarray(p, dtype=float)
    p = p[p > 0]
    return float((p * np.log(p)).sum())


def _known(P, a, b, C, eps):
    """Values of a plan that is known in closed form."""
    cost = float((P * np.where(P > 0, C, 0)).sum())
    entropic_cost = cost + eps * _xlogx(P)
    return {
        "plan": P,
        "cost": cost,
        "entropic_cost": entropic_cost,
        "reg_cost": entropic_cost - eps * (_xlogx(a) + _xlogx(b)),
    }


def one_by_one(mass=1.0, cost=3.0, eps=0.5):
    """One bin each: P = mass, whatever eps; f + g = C - eps log(mass)."""
    a = np.array([mass])
    C = np.array([[cost]])
    known = {
        "plan": np.array([[mass]]),
        "cost": mass * cost,
        "reg_cost": mass * (cost - eps * np.log(mass)),
        "entropic_cost": mass * cost + eps * mass * np.log(mass),
        "f_plus_g": np.array([[cost - eps * np.log(mass)]]),
    }
    return Problem(f"1x1, mass {mass:g}", a, a.copy(), C, eps, known)


def permutation(n=7, eps=0.05, seed=0):
    """Cost 0 on a permutation, 1 elsewhere, uniform weights.

    With r = exp(-1/eps) the plan is 1/(n (1 + (n-1) r)) on the permutation and r times that elsewhere.
    """
    order = np.random.default_rng(seed).permutation(n)
    C = np.ones((n, n))
    C[np.arange(n), order] = 0.0
    r = np.exp(-1 / eps)
    P = np.where(C == 0, 1.0, r) / (n * (1 + (n - 1) * r))
    a = np.full(n, 1 / n)
    return Problem(f"permutation of {n}, eps {eps:g}", a, a.copy(), C, eps, _known(P, a, a, C, eps))


def two_by_two(a1=0.3, b1=0.6, C=((0.1, 0.9), (0.7, 0.2)), eps=0.25, mass=1.0):
    """Return the regularised optimum in closed form.

    A 2 x 2 plan has one unknown, t = P_11. At the optimum P_11 P_22 / (P_12 P_21) = r, where
    r = exp(-(C_11 + C_22 - C_12 - C_21) / eps), so t (M - a1 - b1 + t) = r (a1 - t) (b1 - t): a quadratic with one root
    in [max(0, a1 + b1 - M), min(a1, b1)].
    """
    C = np.array(C, dtype=float)
    a, b = np.array([a1, mass - a1]), np.array([b1, mass - b1])
    r = np.exp(-(C[0, 0] + C[1, 1] - C[0, 1] - C[1, 0]) / eps)
    if r == 1:
        t = a1 * b1 / mass
    else:
        # (1 - r) t^2 + (M + (r - 1) (a1 + b1)) t - r a1 b1 = 0, by the form of the root that does not cancel.
        linear = mass + (r - 1) * (a1 + b1)
        t = 2 * r * a1 * b1 / (linear + np.sqrt(linear**2 + 4 * (1 - r) * r * a1 * b1))
    P = np.array([[t, a1 - t], [b1 - t, mass - a1 - b1 + t]])
    return Problem(f"2x2, r = {r:.3g}, mass {mass:g}", a, b, C, eps, _known(P, a, b, C, eps))


def gaussians(mean_a=-0.5, mean_b=0.8, sd_a=1.0, sd_b=0.6, eps=0.5, bins=201):
    """Two Gaussians and the squared distance, on a grid so fine that it is as good as the line.

    The optimal plan is Gaussian with covariance c, its KL to the product is -log(1 - c^2 / (sa^2 sb^2)) / 2, and
    the best c solves 2 c^2 + eps c - 2 sa^2 sb^2 = 0.
    """
    x = np.linspace(-9, 9, bins)
    a, b = (np.exp(-(((x - mean) / sd) ** 2) / 2) for mean, sd in ((mean_a, sd_a), (mean_b, sd_b)))
    a, b = a / a.sum(), b / b.sum()
    product = (sd_a * sd_b) ** 2
    c = (-eps + np.sqrt(eps**2 + 16 * product)) / 4
    cost = (mean_a - mean_b) ** 2 + sd_a**2 + sd_b**2 - 2 * c
    known = {"cost": cost, "reg_cost": cost - eps / 2 * np.log(1 - c**2 / product)}
    C = (x[:, None] - x[None, :]) ** 2
    return Problem(f"Gaussians on {bins} bins, eps {eps:g}", a, b, C, eps, known)


def separated(eps=0.05):
    """Two islands joined only by forbidden (+inf) pairs: each is a problem of its own with a known plan."""
    left, right = two_by_two(0.1, 0.15, eps=eps, mass=0.4), permutation(3, eps)
    C = np.full((5, 5), np.inf)
    C[:2, :2], C[2:, 2:] = left.C, right.C
    P = np.zeros((5, 5))
    P[:2, :2], P[2:, 2:] = left.known["plan"], 0.6 * right.known["plan"]
    a, b = np.r_[left.a, 0.6 * right.a], np.r_[left.b, 0.6 * right.b]
    return Problem("two islands, +inf between", a, b, C, eps, _known(P, a, b, C, eps))


KNOWN = [
    one_by_one(),
    one_by_one(mass=7.0, cost=0.0),
    one_by_one(mass=1e-3, cost=-2.0),
    permutation(),
    permutation(eps=1.0),
    permutation(33, eps=0.01, seed=5),
    two_by_two(),
    two_by_two(a1=0.5, b1=0.5, C=((0, 1), (1, 0)), eps=0.1),
    two_by_two(a1=0.4, b1=0.7, C=((1, 1), (1, 1)), eps=0.1),
    two_by_two(a1=3.0, b1=1.0, eps=0.2, mass=5.0),
    two_by_two(a1=0.0, b1=0.6),
    gaussians(),
    gaussians(mean_a=1.5, mean_b=-1.5, sd_a=0.7, sd_b=0.9, eps=1.0, bins=161),
    separated(),
]


def _random(name, seed, n, m, eps, zeros=0.0, mass=1.0, B=None, shared=True, scale=1.0):
    rng = np.random.default_rng(seed)
    a, b = (histograms(rng, B or 1, bins, zeros, mass) for bins in (n, m))
    C = scale * rng.random((n, m) if shared else (B, n, m))
    if B is None:
        a, b = a[0], b[0]
    return Problem(name, a, b, C, eps)


def forbidden(seed=11, B=3, n=12, m=9, eps=0.1):
    """Allow a band of pairs, all others +inf; a and b are the marginals of a plan on the band, so a plan exists."""
    rng = np.random.default_rng(seed)
    C = rng.random((n, m))
    band = np.abs(np.arange(n)[:, None] / n - np.arange(m)[None, :] / m) < 0.25
    C[~band] = np.inf
    P = rng.random((B, n, m)) * band
    P /= P.sum(axis=(1, 2), keepdims=True)
    return Problem("forbidden pairs", P.sum(axis=2), P.sum(axis=1), C, eps)


def tiny_weights(eps=0.02, n=40):
    """Weights down to 1e-195 beside ordinary ones: zero in float32, and products of two are zero in float64."""
    exponents = np.linspace(0, -195, n)
    a = 10.0**exponents
    b = a[::-1].copy()
    return Problem("weights down to 1e-195", a / a.sum(), b / b.sum(), line_cost(n), eps)


def far_gaussians(B=6, seed=0, bins=100, eps=1e-3):
    """1-D Gaussians, means in [10, 90], deviations in [3, 20] on [0, 100], the squared distance scaled to 1."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 100, bins)
    means, sds = rng.uniform(10, 90, (2, B, 1)), rng.uniform(3, 20, (2, B, 1))
    means[:, 0, 0], sds[:, 0, 0] = (10, 90), 3
    weights = np.exp(-(((x - means) / sds) ** 2) / 2)
    a, b = weights / weights.sum(axis=-1, keepdims=True)
    return Problem("far-apart Gaussians", a, b, ((x[:, None] - x[None, :]) / 100) ** 2, eps)


def spikes(eps=1e-4, n=20):
    """Narrow histograms at the two ends of the line: every kernel entry between them underflows."""
    a, b = np.zeros(n), np.zeros(n)
    a[:3], b[-3:] = (0.2, 0.5, 0.3), (0.1, 0.3, 0.6)
    return Problem("spikes far apart", a, b, line_cost(n), eps)


HARD = [
    _random("n < m, shared cost", 1, 37, 53, 0.05, B=5),
    _random("n > m, shared cost", 2, 65, 31, 0.05, B=4),
    _random("a cost per problem", 3, 17, 33, 0.1, B=4, shared=False),
    _random("one problem, no batch axis", 4, 32, 40, 0.1),
    _random("B = 1", 5, 33, 64, 0.1, B=1),
    _random("empty bins", 6, 30, 41, 0.03, zeros=0.5, B=6),
    _random("mass 250", 7, 21, 19, 0.1, mass=250.0, B=3),
    _random("mass 1e-4", 8, 21, 19, 0.1, mass=1e-4, B=3),
    _random("large cost / eps", 9, 25, 25, 1.0, scale=5e3, B=3),
    _random("one row", 10, 1, 40, 0.1, B=3),
    _random("one column", 12, 40, 1, 0.1, B=3),
    _random("costs below zero", 13, 20, 22, 0.1, B=2, scale=-3.0),
    _random("a cost per problem far below zero", 14, 14, 31, 1e-3, B=2, shared=False, scale=-1.0),
    forbidden(),
    tiny_weights(),
    far_gaussians(),
    spikes(),
]


def drawn(seed):
    """Draw a hard problem: weights and costs of any size, empty bins, eps down to 1e-4 of the costs."""
    rng = np.random.default_rng(seed)
    B, (n, m) = rng.integers(1, 5), rng.integers(1, 41, 2)
    mass, scale = 10.0 ** rng.choice([0, 0, 3, -5]), 10.0 ** rng.choice([0, 0, 5, -5])
    shape = rng.choice(["dense", "many decades", "sparse", "narrow"])
    emptiness = rng.choice([0, 0.5, 0.9])

    def weights(bins):
        if shape == "dense":
            w = rng.gamma(1.0, size=(B, bins)) + 1e-3
        elif shape == "many decades":
            w = 10.0 ** rng.uniform(-300, 0, size=(B, bins))
        elif shape == "sparse":
            w = rng.gamma(0.05, size=(B, bins))
        else:
            w = np.exp(-(((np.linspace(0, 1, bins) - rng.random((B, 1))) / rng.uniform(0.01, 0.2, (B, 1))) ** 2) / 2)
        w[rng.random((B, bins)) < emptiness] = 0
        w[:, rng.integers(bins)] += rng.choice([1e-3, 1.0])
        return mass * w / w.sum(axis=1, keepdims=True)

    a, b = weights(n), weights(m)
    C = rng.random((B, n, m)) if rng.random() < 0.25 else rng.random((n, m)) if rng.random() < 0.5 else line_cost(n, m)
    C = scale * (C + rng.choice([0, 0, 3, -1]))
    return Problem(f"drawn {seed}", a, b, C, float(scale * 10.0 ** rng.uniform(-4, 0.5)))
