"""Products of the matrices of a block, one for each problem, with vectors and with each other."""

from cusink.types import Array


def right_product(M: Array, v: Array) -> Array:
    """Return ``M v`` (B, rows) of matrices (B, rows, m) and vectors (B, m)."""
    out: Array = (M @ v[:, :, None])[:, :, 0]
    return out


def left_product(M: Array, v: Array) -> Array:
    """Return ``M' v`` (B, m) of matrices (B, rows, m) and vectors (B, rows)."""
    out: Array = (v[:, None, :] @ M)[:, 0, :]
    return out


def product_sums(x: Array, y: Array) -> Array:
    """Return the sums (B,) of the products of entries of a block."""
    sums: Array = x.reshape(len(x), 1, -1) @ y.reshape(len(y), -1, 1)
    return sums[:, 0, 0]
