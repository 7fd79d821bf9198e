"""Neighbours that were found, as users get them."""

from dataclasses import dataclass
from typing import Literal, overload

from cusink.convergence.options import Options
from cusink.errors import warn_unconverged
from cusink.retrieval.pairs import Pairs
from cusink.retrieval.query import Found
from cusink.summary import Summary
from cusink.types import Array


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Neighbours(Summary):
    """Nearest neighbours, and how many pairs it took to find them.

    Attributes
    ----------
    distances : array, shape (Q, k)
        Ascending in each row.
    indices : array of int, shape (Q, k)
        Rows of B; equal distances come in the order of their indices.
    error : array, shape (Q, k)
        Marginal error of each of these pairs.
    converged : array of bool, shape (Q, k)
        Whether it reached the tolerance.
    bounded : int
        Pairs that were bounded from below, by iterations that many share.
    started : int
        Pairs for which iterations of their own were taken, for a closer bound or to solve them.
    finished : int
        Pairs that were solved.
    pruning : str
        "dual" where pairs were left out because a dual lower bound exceeds the distance of the k-th neighbour; "words"
        where, among documents, a bound from the costs of single words does; else "none: " and the reason.
    proved : array of bool, shape (Q,)
        Whether these are the k nearest of all, as a search without limits finds them. False only where `solve_at_most`
        or `candidates` limited the search.
    undercut : array, shape (Q,)
        By how much at most a pair that was not solved could be nearer than the k-th neighbour: 0 where `proved`, inf
        where nothing is known.
    """

    distances: Array
    indices: Array
    error: Array
    converged: Array
    bounded: int
    started: int
    finished: int
    pruning: str
    proved: Array
    undercut: Array


@overload
def neighbours(
    found: Found, pairs: Pairs, options: Options, pruning: str, full_output: Literal[True]
) -> Neighbours: ...
@overload
def neighbours(
    found: Found, pairs: Pairs, options: Options, pruning: str, full_output: bool
) -> tuple[Array, Array] | Neighbours: ...
def neighbours(
    found: Found, pairs: Pairs, options: Options, pruning: str, full_output: bool
) -> tuple[Array, Array] | Neighbours:
    """Return what a search found in the user's library, after a warning if pairs did not converge."""
    best, counts, certificate = found
    if counts.misses.count and options.tol is not None:
        warn_unconverged(counts.misses.count, counts.finished, counts.misses.worst, options.tol, options.max_iter)
    xp = pairs.xp
    distances, indices = xp.asarray(best.values.astype(pairs.dtype)), xp.asarray(best.columns)
    if not full_output:
        return distances, indices
    return Neighbours(
        distances=distances,
        indices=indices,
        error=xp.asarray(best.error),
        converged=xp.asarray(best.converged),
        bounded=counts.bounded,
        started=counts.started,
        finished=counts.finished,
        pruning=pruning,
        proved=xp.asarray(certificate.proved),
        undercut=xp.asarray(certificate.undercut),
    )
