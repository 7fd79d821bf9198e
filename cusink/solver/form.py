"""Which form of the iterations solved a problem, and what it cost the accuracy: what a result says of it."""

import math
from dataclasses import dataclass

from cusink.solver.solution import Solution, Stage


@dataclass(frozen=True, kw_only=True)
class SinkhornForm:
    """Which form solved a problem; ``str(form)`` says it in words. `SinkhornResult.form` is one.

    Of a batch, the loss is the largest one, shares are means, and Newton's iterations a sum.

    Attributes
    ----------
    stages : tuple of (n, m, eps, n_iter)
        Problems that were solved before, for a start: between the means of n and m cells of large clouds, then between
        all points at larger `eps`; the coarsest first. Their iterations are not in `SinkhornResult.n_iter`.
    loss : float
        What pairs that are left out and entries that are approximate can have done to both marginals, relative to the
        mass. `SinkhornResult.error` contains it. 0 where all that is lost is below rounding.
    left_out : float or None
        Share of the pairs of bins with weight that the last iteration left out. None where it left out some that
        nobody counted, as on a GPU.
    approximate : float
        Share of these pairs whose entries are products of thin factors.
    newton : int
        Iterations at `eps` that Newton's method took.
    """

    stages: tuple[Stage, ...] = ()
    loss: float = 0.0
    left_out: float | None = 0.0
    approximate: float = 0.0
    newton: int = 0

    def __str__(self) -> str:
        said = []
        if self.stages:
            sizes = dict.fromkeys(f"{stage.n} x {stage.m}" for stage in self.stages)
            said.append(f"coarse to fine, from {', '.join(sizes)}")
        if self.left_out != 0:
            said.append("pairs left out" if self.left_out is None else f"{self.left_out:.3g} of the pairs left out")
        if self.approximate:
            said.append(f"{self.approximate:.3g} of the pairs in thin factors")
        if self.loss:
            said.append(f"a loss of {self.loss:.2g} in the error")
        if self.newton:
            said.append(f"{self.newton} iterations by Newton's method")
        return "; ".join(said) or "plain iterations"


def form_of_self(omitted: tuple[float, float, float], stages: tuple[Stage, ...]) -> SinkhornForm:
    """Return the form of problems of measures with themselves."""
    loss, left_out, approximate = omitted
    return SinkhornForm(stages=stages, loss=loss, left_out=left_out, approximate=approximate)


def form_of(found: Solution) -> SinkhornForm:
    """Return the form of solved problems."""
    loss = float(found.omitted[:, 0].max())
    left_out, approximate = (float(share) for share in found.omitted[:, 1:].mean(axis=0))
    return SinkhornForm(
        stages=found.stages,
        loss=loss,
        left_out=None if math.isnan(left_out) else left_out,
        approximate=approximate,
        newton=int(found.newton.sum()),
    )
