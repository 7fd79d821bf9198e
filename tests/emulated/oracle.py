"""What the kernels must compute, in plain NumPy; float64 is the oracle, float32 the naive solution to compare with.

Imports nothing of cusink. Arrays as in ``cusink/costs/operators.py``: C (n, m) or (B, n, m), logits p (B, n) and
q (B, m).
"""

import numpy as np


def wide(*arrays, dtype=np.float64):
    return [np.asarray(x, dtype) for x in arrays]


def log_sum(x, axis):
    """Return log sum exp along `axis`, -inf where every term is zero."""
    highest = x.max(axis=axis, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - highest).sum(axis=axis)) + highest.squeeze(axis)


def softmin(C, logits, eps, axis, dtype=np.float64):
    C, logits = wide(C, logits, dtype=dtype)
    return -dtype(eps) * log_sum(
        (logits[:, None, :] if axis else logits[:, :, None]) - C / dtype(eps), 2 if axis else 1
    )


def plan(C, p, q, eps, dtype=np.float64):
    C, p, q = wide(C, p, q, dtype=dtype)
    return np.exp(p[:, :, None] + (q[:, None, :] - C / dtype(eps)))


def plan_sum(C, p, q, rows, columns, costs, eps, dtype=np.float64):
    finite = np.where(np.isposinf(C), 0, C).astype(dtype)
    factor = wide(rows, dtype=dtype)[0][:, :, None] + (0 if columns is None else columns[:, None, :])
    factor = factor + (0 if costs is None else costs[:, None, None] * finite)
    return (plan(C, p, q, eps, dtype) * factor).sum(axis=0, dtype=dtype)


def apply_plan(C, p, q, v, eps, axis, dtype=np.float64):
    P = plan(C, p, q, eps, dtype)
    return (P * (v[:, None, :] if axis else v[:, :, None])).sum(axis=2 if axis else 1, dtype=dtype)


def transport_cost(C, p, q, eps, dtype=np.float64):
    cost = np.broadcast_to(C, (len(p), *C.shape[-2:]))
    return (plan(C, p, q, eps, dtype) * np.where(np.isposinf(cost), 0, cost)).sum(axis=(1, 2), dtype=dtype)


def c_transform(C, potential, axis, dtype=np.float64):
    C, potential = wide(C, potential, dtype=dtype)
    return (C - (potential[:, None, :] if axis else potential[:, :, None])).min(axis=2 if axis else 1)


def logits(weights, potential, eps):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weights > 0, np.log(weights) + potential / eps, -np.inf)


def relax(old, plain, omega, eps, weights):
    """Return the over-relaxed potential of which every step raises the dual; `plain` for omega 1 and zero weights."""
    excess = omega[:, None] - 1
    with np.errstate(all="ignore"):
        relaxed = plain + eps * np.log(excess + np.maximum(1 - excess * np.exp((old - plain) / eps), 0))
    return np.where((excess > 0) & (weights > 0), relaxed, plain)


def deviation(weights, before, after, eps):
    """sum_j w_j |1 - exp((before_j - after_j) / eps)|, where a zero weight deviates by nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(weights > 0, weights * np.abs(1 - np.exp((before - after) / eps)), 0).sum(axis=1)


def iterate(C, a, b, eps, f, g, omega, count, dtype=np.float64):
    """``(f, g, bound)`` after `count` over-relaxed iterations, in the log domain."""
    C, a, b, f, g, omega = wide(C, a, b, f, g, omega, dtype=dtype)
    eps = dtype(eps)
    for _ in range(count):
        g = relax(g, softmin(C, logits(a, f, eps), eps, 0, dtype), omega, eps, b)
        plain = softmin(C, logits(b, g, eps), eps, 1, dtype)
        f = relax(f, plain, omega, eps, a)
    after = softmin(C, logits(a, f, eps), eps, 0, dtype)
    return f, g, (deviation(b, g, after, eps) + deviation(a, f, plain, eps)) / b.sum(axis=1)


def finish(C, a, b, eps, g, dtype=np.float64):
    """``(f, g, cost, error)`` after a plain f-update; a zero weight gets the potential of its own softmin."""
    C, a, b, g = wide(C, a, b, g, dtype=dtype)
    eps = dtype(eps)
    f = softmin(C, logits(b, g, eps), eps, 1, dtype)
    p, q = logits(a, f, eps), logits(b, g, eps)
    after = softmin(C, p, eps, 0, dtype)
    error = deviation(b, g, after, eps) / b.sum(axis=1)
    return f, np.where(b > 0, g, after), transport_cost(C, p, q, eps, dtype), error


def assert_as_good(actual, exact, naive, exponent=1.0, scale=None):
    """`actual` is as near to `exact` as a small multiple of the error of naive NumPy in the same precision.

    `naive` is in float32 always, and its error is taken to the precision of `actual`: float64 would be the oracle.

    Of few numbers naive NumPy may have all right by chance; where the answer is ``exp(x)``, any solution has to round
    an `exponent` of that size, relative to `scale`: by default the largest of `exact`.
    """
    assert naive.dtype == np.float32 and actual.shape == exact.shape == naive.shape
    precision = np.finfo(actual.dtype).eps
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(actual[~finite], exact[~finite])
    if finite.any():
        scale = np.abs(exact[finite]).max() if scale is None else scale
        with np.errstate(invalid="ignore"):
            error = np.abs(naive[finite] - exact[finite]).max()
        allowed = 8 * error * precision / np.finfo(np.float32).eps + 4 * precision * scale * max(exponent, 4)
        allowed += np.finfo(actual.dtype).tiny  # below it a GPU has zeros
        worst = np.abs(actual[finite] - exact[finite]).max()
        assert worst <= allowed, f"off by {worst}, allowed {allowed}, of {scale}"
