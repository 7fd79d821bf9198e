"""Arrays over pairs of bins that are affine in the costs C and in how these move, made block by block.

All that a Hessian needs of a pair is of this kind: the logarithm of the plan's ratio, its change along a direction, the
residual of a fit. Where C and dC are products of thin matrices, as squared distances are, so is each of these: a block
is one matrix product, without a pass for each coordinate and each term.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cusink.costs.cost import Cost
from cusink.types import Array

Factors = tuple[Array, Array]  # (n, r) and (m, r), or some of each problem
MOST_COLUMNS = 16  # of thin matrices, up to which their product takes less time than sums of costs


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine:
    """``rows_i + columns_j + cost C_ij + move dC_ij``: (B, n), (B, m), and factors (B,). None stands for 0."""

    rows: Array | None = None
    columns: Array | None = None
    cost: Array | None = None
    move: Array | None = None

    def times(self, factor: Array | float) -> "Affine":
        """Return the array times a number, or numbers (B,)."""
        of_bins = factor if isinstance(factor, float) else factor[:, None]
        return Affine(
            rows=_times(self.rows, of_bins),
            columns=_times(self.columns, of_bins),
            cost=_times(self.cost, factor),
            move=_times(self.move, factor),
        )

    def plus(self, other: "Affine") -> "Affine":
        """Return the sum of two arrays."""
        return Affine(
            rows=_plus(self.rows, other.rows),
            columns=_plus(self.columns, other.columns),
            cost=_plus(self.cost, other.cost),
            move=_plus(self.move, other.move),
        )

    def minus(self, other: "Affine") -> "Affine":
        """Return the difference of two arrays."""
        return self.plus(Affine(**{name: None if x is None else -x for name, x in vars(other).items()}))

    def of(self, problems: slice) -> "Affine":
        """Return the arrays of some problems."""
        return Affine(**{name: None if x is None else x[problems] for name, x in vars(self).items()})


def _times(x: Array | None, factor: Array | float) -> Array | None:
    return None if x is None else x * factor


def _plus(x: Array | None, y: Array | None) -> Array | None:
    if x is None or y is None:
        return y if x is None else x
    return x + y


@dataclass(frozen=True, eq=False)
class AffineBlocks:
    """Makes blocks of such arrays; `direction` is that of the costs as operands take it, None for costs that stay.

    `costs` and `moves` are thin matrices whose products are C and dC, without columns of zeros; None if there are none.
    """

    C: Cost[Any]
    direction: Any
    costs: Factors | None
    moves: Factors | None

    def maker(self, problems: slice, arrays: Sequence[Affine]) -> Callable[[slice], tuple[list[Array], Array | None]]:
        """Return a function that makes blocks (problems, rows, m) of the arrays, and the mask of forbidden pairs.

        At these pairs, if there are some, C counts as 0.
        """
        some = [array.of(problems) for array in arrays]
        thin = [self._thin(problems, array) for array in some]
        thick = [array for array, factors in zip(some, thin, strict=True) if factors is None]
        with_costs = any(array.cost is not None for array in thick)
        with_moves = any(array.move is not None for array in thick)

        def block(rows: slice) -> tuple[list[Array], Array | None]:
            C, forbidden = self._costs(problems, rows) if with_costs else (None, None)
            dC = self._moves(problems, rows) if with_moves else None
            out = [
                _sum(array, rows, C, dC) if factors is None else factors[0][:, rows] @ factors[1]
                for array, factors in zip(some, thin, strict=True)
            ]
            return out, forbidden

        return block

    def _thin(self, problems: slice, array: Affine) -> Factors | None:
        """Return thin matrices (problems, n, r) and (problems, r, m) whose product is an array; None if not thin."""
        parts = [(x, of) for x, of in ((array.cost, self.costs), (array.move, self.moves)) if x is not None]
        widths = [0 if factors is None else factors[0].shape[-1] for _, factors in parts]
        rank, (n, m), xp = 2 + sum(widths), self.C.shape[-2:], self.C.xp
        if rank > MOST_COLUMNS or not all(widths):
            return None
        size = problems.stop - problems.start
        left, right = xp.empty((size, n, rank)), xp.empty((size, rank, m))
        left[..., 0], right[:, 0] = 0 if array.rows is None else array.rows, 1
        left[..., 1], right[:, 1] = 1, 0 if array.columns is None else array.columns
        start = 2
        for (factor, factors), width in zip(parts, widths, strict=True):
            assert factors is not None
            of_rows, of_columns = (_of(problems, x) for x in factors)
            xp.multiply(factor[:, None, None], of_rows, out=left[..., start : start + width])
            right[:, start : start + width] = of_columns.swapaxes(-1, -2)
            start += width
        return left, right

    def _costs(self, problems: slice, rows: slice) -> tuple[Array, Array | None]:
        """Return a block of costs, of all problems or each, with 0 for forbidden pairs, and the mask of these."""
        if self.costs is not None:
            return _product(self.costs, problems, rows), None
        xp, C = self.C.xp, self.C.block(problems, rows)
        forbidden = xp.isposinf(C) if self.C.stored else None
        if forbidden is None or not bool(forbidden.any()):
            return C, None
        return xp.where(forbidden, 0, C), forbidden

    def _moves(self, problems: slice, rows: slice) -> Array:
        """Return a block of how costs move, of all problems or each."""
        if self.moves is not None:
            return _product(self.moves, problems, rows)
        return self.C.block_tangent(self.direction, problems, rows)


def _of(problems: slice, factor: Array) -> Array:
    """Return the thin matrix of some problems, with an axis for these; of one that they share, that one."""
    return factor[None] if factor.ndim == 2 else factor[problems]


def _product(factors: Factors, problems: slice, rows: slice) -> Array:
    """Return a block of a product of thin matrices."""
    left, right = (_of(problems, x) for x in factors)
    block: Array = left[:, rows] @ right.swapaxes(-1, -2)
    return block


def _sum(array: Affine, rows: slice, C: Array | None, dC: Array | None) -> Array:
    """Return a block of an array with a share of the costs C or of their moves dC, given blocks of these."""
    (factor, x), *more = [(factor, x) for factor, x in ((array.cost, C), (array.move, dC)) if factor is not None]
    out: Array = factor[:, None, None] * x
    for factor, x in more:
        out += factor[:, None, None] * x
    if array.rows is not None:
        out += array.rows[:, rows, None]
    if array.columns is not None:
        out += array.columns[:, None, :]
    return out


def leading(C: Cost[Any], direction: Any, f: Array, g: Array) -> Affine | None:
    """Return rows (B, n) and columns (B, m) that most of dC is the sum of, which potentials f and g follow as they are.

    Beside them, as between clouds that are far apart, the tolerance of a linear system would be large. None where there
    are none. With `reach` potentials do not follow.
    """
    found = None if direction is None else C.affine_tangent(direction)
    return None if found is None else Affine(rows=found[0] + C.xp.zeros_like(f), columns=found[1] + C.xp.zeros_like(g))
