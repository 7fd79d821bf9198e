"""The operators of `cusink.backends.operators` in NumPy: log-sum-exp reductions in blocks that stay in the cache.

No operator forms a ``B*n*m`` array (except `plan`, whose result it is): a block of problems and rows is filled,
reduced and forgotten. ``BLOCK`` bounds its entries.
"""

import numpy as np

BLOCK = 1 << 16


def _blocks(problems, rows, columns):
    """Slices of problems and of rows such that one block holds at most `BLOCK` entries, or one row."""
    row_step = max(1, min(rows, BLOCK // max(columns, 1)))
    problem_step = max(1, BLOCK // max(row_step * columns, 1))
    for start in range(0, problems, problem_step):
        for row in range(0, rows, row_step):
            yield slice(start, min(start + problem_step, problems)), slice(row, min(row + row_step, rows))


def _turned(C, axis):
    """View of the cost with the axis that is summed over last."""
    return C if axis == 1 else np.swapaxes(C, -1, -2)


def _cost_block(C, problems, rows):
    return C[rows] if C.ndim == 2 else C[problems, rows]


def _exponents(C, logits, eps, problems, rows):
    """``logits_j - C_ij / eps`` of one block, (problems, rows, summed)."""
    scaled = np.multiply(_cost_block(C, problems, rows), logits.dtype.type(-1.0 / eps), order="C")
    return logits[problems, None, :] + scaled


def _exp_shifted(exponents):
    """Overwrite `exponents` by ``exp(exponents - maximum)`` along the last axis; return that maximum, 0 for -inf."""
    maximum = exponents.max(axis=-1, keepdims=True)
    maximum[np.isneginf(maximum)] = 0
    exponents -= maximum
    np.exp(exponents, out=exponents)
    return maximum[..., 0]


def softmin(C, logits, eps, axis):
    """``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, rows); +inf where every term is zero."""
    turned = _turned(C, axis)
    rows, columns = turned.shape[-2:]
    out = np.empty((len(logits), rows), logits.dtype)
    for problems, block in _blocks(len(logits), rows, columns):
        exponents = _exponents(turned, logits, eps, problems, block)
        maximum = _exp_shifted(exponents)
        with np.errstate(divide="ignore"):
            out[problems, block] = np.log(exponents.sum(axis=-1)) + maximum
    out *= -eps
    return out


def softmin_entries(C, logits, eps, axis, problems, entries):
    """`softmin` of single entries only: out[k] is the one of row ``entries[k]`` of problem ``problems[k]``."""
    turned = _turned(C, axis)
    out = np.empty(len(problems), logits.dtype)
    step = max(1, BLOCK // turned.shape[-1])
    for start in range(0, len(problems), step):
        chosen = slice(start, start + step)
        cost = turned[entries[chosen]] if C.ndim == 2 else turned[problems[chosen], entries[chosen]]
        exponents = logits[problems[chosen]] - cost * logits.dtype.type(1.0 / eps)
        maximum = _exp_shifted(exponents)
        with np.errstate(divide="ignore"):
            out[chosen] = np.log(exponents.sum(axis=-1)) + maximum
    out *= -eps
    return out


def plan(C, p, q, eps):
    """Plans (B, n, m) of the logits p (B, n) and q (B, m)."""
    out = p[:, :, None] + q[:, None, :]
    out -= C / eps
    return np.exp(out, out=out)


def apply_plan(C, p, q, v, eps, axis):
    """``P v`` (axis 1, v (B, m)) or ``P' v`` (axis 0, v (B, n)); v of any sign."""
    turned = _turned(C, axis)
    kept, summed = (p, q) if axis == 1 else (q, p)
    rows, columns = turned.shape[-2:]
    out = np.empty((len(p), rows), p.dtype)
    for problems, block in _blocks(len(p), rows, columns):
        exponents = _exponents(turned, summed, eps, problems, block)
        maximum = _exp_shifted(exponents)
        total = np.matvec(exponents, v[problems])
        out[problems, block] = np.exp(kept[problems, block] + maximum) * total
    return out


def transport_cost(C, p, q, eps):
    """``sum_ij P_ij C_ij`` (B,), where a forbidden pair (cost +inf) carries nothing and costs nothing."""
    rows, columns = C.shape[-2:]
    out = np.zeros(len(p), p.dtype)
    for problems, block in _blocks(len(p), rows, columns):
        exponents = _exponents(C, q, eps, problems, block)
        maximum = _exp_shifted(exponents)
        exponents *= _finite(_cost_block(C, problems, block))
        out[problems] += (np.exp(p[problems, block] + maximum) * exponents.sum(axis=-1)).sum(axis=-1)
    return out


def plan_sum(C, p, q, weights, eps):
    """``sum_b weights_b P_b`` (n, m) of problems that share one cost, or of problems with a cost each."""
    rows, columns = C.shape[-2:]
    out = np.zeros((rows, columns), p.dtype)
    for problems, block in _blocks(len(p), rows, columns):
        exponents = _exponents(C, q, eps, problems, block)
        exponents += p[problems, block, None]
        np.exp(exponents, out=exponents)
        out[block] += np.tensordot(weights[problems], exponents, axes=1)
    return out


def c_transform(C, potential, axis):
    """``min_j (C_ij - potential_j)`` (B, rows); a potential of -inf takes its bin out of the minimum."""
    turned = _turned(C, axis)
    rows, columns = turned.shape[-2:]
    out = np.empty((len(potential), rows), potential.dtype)
    for problems, block in _blocks(len(potential), rows, columns):
        slack = _cost_block(turned, problems, block) - potential[problems, None, :]
        out[problems, block] = slack.min(axis=-1)
    return out


def cost_range(C):
    """The smallest and the largest finite cost, as numbers."""
    return float(C.min()), float(np.where(np.isfinite(C), C, -np.inf).max())


def cost_block(C, problems, rows):
    """Costs (rows, m) or (problems, rows, m)."""
    return np.ascontiguousarray(C[rows] if C.ndim == 2 else C[problems, rows])


def bilinear(C, x, y):
    """``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y; +inf only where a forbidden pair meets mass."""
    forbidden = np.isposinf(C)
    if not forbidden.any():
        return (np.matmul(x[:, None, :], C)[:, 0, :] * y).sum(axis=1)
    met = (np.matmul(x[:, None, :], forbidden.astype(x.dtype))[:, 0, :] * y).sum(axis=1)
    return np.where(met > 0, np.inf, bilinear(np.where(forbidden, 0, C), x, y))


def _finite(C):
    """`C` with forbidden pairs at zero, for sums in which they carry no mass."""
    forbidden = np.isposinf(C)
    return np.where(forbidden, 0, C) if forbidden.any() else C
