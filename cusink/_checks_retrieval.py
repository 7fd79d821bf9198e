"""Checks of the arguments of `cusink.distance_matrix` that other functions do not have."""

import numbers
import os
from pathlib import Path

import numpy as np

from cusink import _checks
from cusink._arrays import kind

__all__ = ["VALUES", "divergence", "is_path", "memory_limit", "output_path"]

VALUES = (*_checks.VALUES, "divergence")
STORED = ("float16", "float32", "float64")


def memory_limit(limit):
    """Check the kind of a memory limit; whether it is enough is for whoever cuts the work."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, numbers.Integral)):
        raise TypeError(f"'memory_limit' must be a number of bytes (an integer) or None; got {kind(limit)}")
    return None if limit is None else int(limit)


def divergence(pairs):
    """Check that both items of a pair can be compared with themselves."""
    if not pairs.comparable:
        how = "is not symmetric" if pairs.C.shape[0] == pairs.C.shape[1] else f"has shape {tuple(pairs.C.shape)}"
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
