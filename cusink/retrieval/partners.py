"""Forbidden pairs of bins: every item must be able to send its mass, or with `reach` some of it, to every other."""

import math

from cusink.costs.cost import Cost
from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.pairs import Rows
from cusink.types import Reach


def partners(A: Rows, B: Rows, cost: Cost[object], reach: Reach | None = None) -> None:
    """Check that every bin with weight may send some of it to a bin with weight, in every pair of rows.

    With prices `reach` that is asked for where a marginal is to be met, and of one bin elsewhere.
    """
    xp, C, dtype = cost.xp, cost.data, cost.dtype
    if not cost.stored or xp.isfinite(C).all():
        return
    allowed = xp.isfinite(C).astype(dtype)
    sides = (("AB", A, B, allowed), ("BA", B, A, allowed.T))
    for (names, weights, others, pairs), rho in zip(sides, reach or (math.inf, math.inf), strict=True):
        for columns in blocks(len(others), ROWS_PER_BLOCK):
            reached = xp.matmul((others[columns] > 0).astype(dtype), pairs.T) > 0
            sought = ~reached if rho == math.inf else reached
            for rows in blocks(len(weights), ROWS_PER_BLOCK):
                carried = (weights[rows] > 0).astype(dtype)
                lone = (xp.matmul(carried, sought.T.astype(dtype)) > 0) == (rho == math.inf)
                if lone.any():
                    row, other = divmod(int(lone.argmax()), lone.shape[1])
                    ours, theirs = f"'{names[0]}' row {rows.start + row}", f"'{names[1]}' row {columns.start + other}"
                    if rho < math.inf:
                        raise ValueError(
                            "'C' must allow a pair of bins that both have weight; it forbids (+inf) all between "
                            f"{ours} and {theirs}. Allow one, or drop the row"
                        )
                    raise ValueError(
                        "'C' must allow every bin with weight a partner with weight; "
                        f"{ours} has weight where 'C' forbids (+inf) all partners in {theirs}. Allow a pair, or drop "
                        "the row"
                    )
