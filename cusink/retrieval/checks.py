"""Checks of the arguments of `cusink.distance_matrix` and `cusink.nearest`."""

import dataclasses
import numbers
import os
from pathlib import Path
from typing import Any

import numpy as np

from cusink.checks.arrays import arrays, kind
from cusink.checks.scalars import positive_bytes, regularisation
from cusink.checks.weights import MASS_TOLERANCE
from cusink.costs.checks import cost_values
from cusink.costs.kinds import named_arrays
from cusink.operand import operand
from cusink.solver import values

__all__ = [
    "ALL_VALUES",
    "Histograms",
    "Rows",
    "divergence",
    "histograms",
    "is_path",
    "memory_limit",
    "neighbours",
    "output_path",
    "shapes",
]


ALL_VALUES = (*values.VALUES, "divergence")
STORED = ("float16", "float32", "float64")
ROWS = 4096  # histograms looked at together: a collection may be larger than the memory


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Histograms (Q, n) as they came, and factors (Q,) that bring them to one mass when they are taken out."""

    weights: Any
    factors: Any

    def __getitem__(self, items):
        return self.weights[items] * self.factors[items, None]

    def __len__(self):
        return len(self.weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Histograms:
    """Checked `Rows` A and B (A itself for a collection with itself), the cost, and the dtype of the user."""

    A: Rows
    B: Rows
    C: Any
    dtype: Any


def histograms(A, B, C, *, eps, check, memory_limit=None, mass=None):
    """Rows of A against rows of B, B None for A itself; brought to `mass`, or to that of the first row of A."""
    regularisation(eps)
    itself = B is None
    (A, B, *parts), xp, dtype = arrays(A=A, B=B, **named_arrays(C))
    C = operand(C, xp, dtype, parts, memory_limit, batch=False)
    if A is None:
        raise TypeError("'A' must be an array of histograms; got None. Only 'B' may be None, for A against itself")
    shapes(A, B, C)
    if check and C.stored:
        cost_values(C.data, xp)
    if mass is None:
        if check:
            _weights("A", A[:1], 0, xp)
        mass = float(A[0].sum(dtype=np.float64))
    first = _rows("A", A, mass, xp, check)
    second = first if itself else _rows("B", B, mass, xp, check)
    if check and C.stored and not xp.isfinite(C.data).all():
        _partners(first.weights, second.weights, C.data, xp)
    return Histograms(first, second, C, dtype)


def shapes(A, B, C):
    """Check that A and B, None for A itself, have histograms on the bins of C as their rows."""
    n, m = C.shape
    for name, x, bins in (("A", A, n), ("B", A if B is None else B, m)):
        if x.ndim != 2 or x.shape[1] != bins:
            hint = ". Did you swap 'A' and 'B'?" if B is not None and n != m and x.shape[-1] == n + m - bins else ""
            hint = hint or (". A single histogram is A[None, :]" if x.ndim == 1 else "")
            raise ValueError(
                f"'{name}' must have shape (Q, {bins}), one histogram per row, to match C of shape {C.shape}; "
                f"got {x.shape}{hint}"
            )
        if 0 in x.shape:
            raise ValueError(f"'{name}' must have at least one row and one bin; got shape {x.shape}")


def _rows(name, x, wanted, xp, check):
    """Rows of one mass, which they must have up to the tolerance of their dtype."""
    x = xp.ascontiguousarray(x)
    mass = xp.concatenate([x[start : start + ROWS].sum(axis=1, dtype=np.float64) for start in range(0, len(x), ROWS)])
    if check:
        for start in range(0, len(x), ROWS):
            _weights(name, x[start : start + ROWS], start, xp)
        tolerance = MASS_TOLERANCE[x.dtype.name]
        off = xp.abs(mass - wanted) > tolerance * wanted
        if off.any():
            row = int(off.argmax())
            raise ValueError(
                f"all histograms must have the same mass (relative {tolerance:g}); 'A' row 0 has {wanted:g} "
                f"and '{name}' row {row} has {float(mass[row]):g}. To normalise, divide each row by its sum: "
                "A / A.sum(axis=1, keepdims=True)"
            )
    return Rows(x, (wanted / mass).astype(x.dtype))


def _weights(name, x, start, xp):
    """Check that weights are finite, non-negative, and not all zero; `start` is the number of the first row."""
    for wrong, rule, fix in (
        (~xp.isfinite(x), "finite", ""),
        (x < 0, "non-negative", ". Weights are masses, not their logarithms"),
    ):
        if wrong.any():
            row, column = divmod(int(wrong.argmax()), x.shape[1])
            raise ValueError(
                f"'{name}' must be {rule}; got {float(x[row, column]):g} at [{start + row}, {column}]{fix}"
            )
    empty = ~x.any(axis=1)
    if empty.any():
        raise ValueError(
            f"'{name}' must have a positive sum; row {start + int(empty.argmax())} is all zero. Leave empty rows out"
        )


def _partners(A, B, C, xp):
    """Check that every bin with weight may send some of it to a bin with weight, in every pair of rows."""
    allowed = xp.isfinite(C).astype(A.dtype)
    for names, weights, others, pairs in (("AB", A, B, allowed), ("BA", B, A, allowed.T)):
        for begin in range(0, len(others), ROWS):
            reached = xp.matmul((others[begin : begin + ROWS] > 0).astype(A.dtype), pairs.T) > 0
            for start in range(0, len(weights), ROWS):
                carried = (weights[start : start + ROWS] > 0).astype(A.dtype)
                lone = xp.matmul(carried, (~reached).T.astype(A.dtype)) > 0
                if lone.any():
                    row, other = divmod(int(lone.argmax()), lone.shape[1])
                    raise ValueError(
                        "'C' must allow every bin with weight a partner with weight; "
                        f"'{names[0]}' row {start + row} has weight where 'C' forbids (+inf) all partners in "
                        f"'{names[1]}' row {begin + other}. Allow a pair, or drop the row"
                    )


def memory_limit(limit):
    """Check that a memory limit is one, whole; whether it is enough is for whoever cuts the work."""
    return None if limit is None else positive_bytes(limit)


def divergence(C):
    """Check that both items of a pair can be compared with themselves, as each cloud of points can."""
    if not C.has_own:
        how = "is not symmetric" if C.shape[0] == C.shape[1] else f"has shape {tuple(C.shape)}"
        raise ValueError(
            "value='divergence' also compares each histogram with itself: 'C' must be a symmetric cost, between the "
            f"same bins; got one that {how}. Take value='reg_cost', or put both collections on the same bins"
        )


def is_path(out):
    """Whether `out` names a store on disk."""
    return isinstance(out, (str, os.PathLike))


def output_path(out, dtype, full_output):
    """The path of a store that can be made, of the distances alone."""
    path = Path(out)
    if path.suffix not in (".npy", ".zarr"):
        raise ValueError(f"'out' must end in .npy or .zarr to be written to disk; got '{path}'")
    if full_output:
        raise ValueError(
            f"'full_output' must be False where the distances go to disk; got True with out='{path}'. Errors and "
            "iterations are kept for arrays in memory alone: pass an array as 'out', or leave 'full_output' out"
        )
    if np.dtype(dtype).name not in STORED:
        raise TypeError(
            f"'out' on disk holds {', '.join(STORED)}; got histograms of {dtype}. Convert them with .astype"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"'out' must lie in a folder that exists; there is no '{path.parent}'. Make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"'out' must lie in a folder that may be written to; '{path.parent}' may not")
    return path


def output(out, shape, dtype, xp, inputs):
    """`out` if it can take the result, a new array if it is None; it must not share memory with the inputs."""
    if out is None:
        return xp.empty(shape, dtype)
    if not isinstance(out, xp.ndarray):
        raise TypeError(f"'out' must be a {xp.__name__} array like the input; got {kind(out)}")
    if out.shape != shape:
        raise ValueError(f"'out' must have shape {shape} for these histograms; got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"'out' must have the dtype of the histograms, {dtype}; got {out.dtype}")
    if not getattr(out.flags, "writeable", True):  # CuPy's flags have no such name
        raise ValueError("'out' must be writable; got a read-only array. Open a memmap with mode='r+' or 'w+'")
    for name, x in inputs.items():
        if isinstance(x, xp.ndarray) and xp.may_share_memory(out, x):
            raise ValueError(
                f"'out' must not overlap an input; it shares memory with '{name}'. Pass an array of its own"
            )
    return out


def neighbours(k, documents, alone):
    """How many neighbours are wanted: `k`, of `documents` items, or of those but one that looks for the others."""
    if isinstance(k, bool) or not isinstance(k, numbers.Integral):
        raise TypeError(f"'k' must be an integer; got {kind(k)}")
    if k < 1:
        raise ValueError(f"'k' must be at least 1; got {k}")
    most = documents - 1 if alone else documents
    if k > most:
        where = f"the other rows of 'A', of which there are {most}" if alone else f"the rows of 'B', {documents}"
        raise ValueError(f"'k' must be at most the number of neighbours there are: {where}; got {k}. Ask for fewer")
    return int(k)
