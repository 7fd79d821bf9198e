"""Kernel products and what is made of them, by their definitions: every pair at once, in float64 if not told else."""

import numpy as np

LOG_KERNELS = ("gaussian", "laplace", "energy", "exponential")
KERNELS = (*LOG_KERNELS, "distance")


def log_kernel(x, y, kernel, scale, dtype=np.float64):
    """Return log k (n, m) of points (n, d) and (m, d)."""
    x, y, s = x.astype(dtype), y.astype(dtype), dtype(scale)
    q = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    if kernel == "gaussian":
        return -q / s**2
    if kernel == "laplace":
        return -np.sqrt(q + s**2)
    return -np.log(q + s**2) / 4 if kernel == "energy" else -np.sqrt(q) / s


def kernel_of(x, y, kernel, scale, dtype=np.float64):
    """Return k (n, m) of points (n, d) and (m, d)."""
    if kernel == "distance":
        return log_kernel(x, y, "exponential", scale, dtype)
    return np.exp(log_kernel(x, y, kernel, scale, dtype))


def product(x, y, b, kernel, scale, dtype=np.float64):
    return kernel_of(x, y, kernel, scale, dtype) @ b.astype(dtype)


def product_log(x, y, log_b, kernel, scale, dtype=np.float64):
    terms = log_kernel(x, y, kernel, scale, dtype) + log_b.astype(dtype)
    top = terms.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, dtype(0))
    with np.errstate(divide="ignore"):
        return np.log(np.exp(terms - top).sum(axis=1)) + top[:, 0]


def slopes(x, y, v, p, q, kernel, scale, dtype=np.float64):
    """``sum_j w_ij`` and ``sum_j w_ij grad_x log k`` with ``w_ij = k exp(p_i + q_j) v_j``."""
    x, y, v, p, q, s = *(array.astype(dtype) for array in (x, y, v, p, q)), dtype(scale)
    if kernel == "distance":  # which has no logits
        w = kernel_of(x, y, kernel, scale, dtype) * v
    else:
        w = np.exp(log_kernel(x, y, kernel, scale, dtype) + p[:, None] + q) * v
    difference = x[:, None] - y[None]
    square = (difference**2).sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = {
            "gaussian": np.full_like(square, -2 / s**2),
            "laplace": -1 / np.sqrt(square + s**2),
            "energy": -1 / (2 * (square + s**2)),
            "exponential": np.where(square > 0, -1 / (s * np.sqrt(square)), dtype(0)),
            "distance": np.where(square > 0, 1 / square, dtype(0)),
        }[kernel]
    return w.sum(axis=1), np.einsum("ij,ijk->ik", w * factor, difference)


def scalar_product(x, a, y, b, kernel, scale, dtype=np.float64):
    return a.astype(dtype) @ product(x, y, b, kernel, scale, dtype)


def distance(x, a, y, b, kernel, scale, dtype=np.float64):
    points, weights = np.concatenate([x, y]), np.concatenate([a, -b])
    return scalar_product(points, weights, points, weights, kernel, scale, dtype)


def neg_log_likelihood(x, a, y, b, kernel, scale, dtype=np.float64):
    """Of weights `a` in the sum itself, so that one of zero may be moved either way."""
    terms = log_kernel(y, x, kernel, scale, dtype)
    top = terms.max(axis=1)
    return -(b.astype(dtype) @ (top + np.log(np.exp(terms - top[:, None]) @ a.astype(dtype))))
