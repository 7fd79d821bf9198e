"""The linear system behind every implicit gradient, solved by conjugate gradients over `ops.plan_means`.

With R the means of what a row sends to (``R_ij = P_ij / sum_j P_ij``) and S' those of what a column receives from,

    x + R y = h        S' x + y = k

has one solution up to a constant that moves between x and y. Written out, x_i + y_j is the least-squares fit, weighted
by the plan, of an array with the conditional means h and k. See docs/gradients.md. In unbalanced transport R and S'
have factors ``1 / (1 + slack)`` below 1, and the solution is unique, see docs/unbalanced.md.
"""

import numpy as np

ROUNDS = 3  # of conjugate gradients, each from the residual that was really reached


def additive_fit(ops, C, a, b, f, g, eps, right, tol, max_iter, slack=(0.0, 0.0)):
    """Solve the system for every problem; return x (B, n), y (B, m) and whether each reached `tol` (B,), in NumPy.

    ``right(index, means)`` gives h and k of the problems at `index`.
    """
    x, y = ops.xp.empty_like(a), ops.xp.empty_like(b)
    converged = np.zeros(len(a), bool)
    for index, means in ops.plan_means(C, a, b, f, g, eps):
        h, k = right(index, means)
        x[index], y[index], converged[index] = _solve(ops, means, h, k, tol, max_iter, slack)
    return x, y, converged


def _solve(ops, means, h, k, tol, max_iter, slack):
    """As `additive_fit`, for problems whose means can all be taken at once."""
    if h.shape[1] < k.shape[1]:
        x, y, converged = _solve_side(ops, means, k, h, 1, tol, max_iter, slack[::-1])
        return y, x, converged
    return _solve_side(ops, means, h, k, 0, tol, max_iter, slack)


def _solve_side(ops, means, other, own, axis, tol, max_iter, slack):
    """Eliminate the unknown of the other side; solve for the own one, whose means sum over the other side by `axis`.

    Returns the other unknown first; `slack` is of the equations of the other side and of the own one.
    """
    by_other, by_own = (1 / (1 + s) for s in slack)
    of_constant = (slack[0] + slack[1] + slack[0] * slack[1]) * by_other * by_own  # 1 - by_other * by_own
    xp = ops.xp
    tol = max(tol, 32 * float(np.finfo(own.dtype.name).eps))
    weights, other_weights = means.marginal(axis), means.marginal(1 - axis)
    size = xp.sqrt(_dot(xp, other_weights, other, other) + _dot(xp, weights, own, own))
    target = tol * size
    y = xp.zeros_like(own)
    for attempt in range(ROUNDS + 1):
        x = other - by_other * means.mean(y, 1 - axis)
        residual = own - by_own * means.mean(x, axis) - y
        constant = _mean(xp, weights, residual)
        residual -= constant
        if of_constant:  # an eigenvector, however near to singular the system is along it
            y += constant / of_constant
        reached = _dot(xp, weights, residual, residual)
        open_problems = np.flatnonzero(~ops.to_host(reached <= target**2))
        if attempt == ROUNDS or not len(open_problems):
            break
        every = len(open_problems) == len(y)
        chosen = slice(None) if every else open_problems
        step = _conjugate_gradients(
            ops,
            means if every else means.at(open_problems),
            weights[chosen],
            xp.where(weights > 0, residual, 0)[chosen],
            0.5 * target[chosen],
            axis,
            max_iter,
            by_other * by_own,
        )
        y[chosen] += step
    y = y + residual  # the equations themselves: they give empty bins their values, and even out those of light ones
    x = other - by_other * means.mean(y, 1 - axis)
    return x, y, ops.to_host(reached <= target**2)


def _conjugate_gradients(ops, means, weights, residual, target, axis, max_iter, factor):
    """Solve ``y - factor S' R y = residual`` to the norm `target` (B,), each problem for itself, in the inner product
    with `weights`, which is the system preconditioned by its diagonal. A problem that has finished leaves the batch.
    """
    xp = ops.xp
    out = xp.zeros_like(residual)
    active, y, direction = np.arange(len(out)), xp.zeros_like(residual), residual
    size = _dot(xp, weights, residual, residual)
    for _ in range(max_iter):
        image = direction - factor * means.mean(means.mean(direction, 1 - axis), axis)
        curvature = _dot(xp, weights, direction, image)
        sound = curvature > 0
        length = xp.where(sound, size / xp.where(sound, curvature, 1), 0)[:, None]
        y = y + length * direction
        residual = residual - length * image
        residual = residual - _mean(xp, weights, residual)
        residual = xp.where(weights > 0, residual, 0)
        previous, size = size, _dot(xp, weights, residual, residual)
        going = ops.to_host(sound & (size > target**2))
        if not going.any():
            break
        direction = residual + (size / xp.where(previous > 0, previous, 1))[:, None] * direction
        if 2 * np.count_nonzero(going) <= len(going):
            out[active[~going]] = y[~going]
            index = np.flatnonzero(going)
            active, means = active[index], means.at(index)
            weights, y, residual, direction, size, target = (
                v[index] for v in (weights, y, residual, direction, size, target)
            )
    out[active] = y
    return out


def _dot(xp, weights, x, y):
    """``sum_j weights_j x_j y_j`` (B,)."""
    return (xp.where(weights > 0, weights * x, 0) * y).sum(axis=1)


def _mean(xp, weights, x):
    """Weighted means (B, 1)."""
    return (weights * x).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
