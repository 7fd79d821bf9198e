"""Options, refusals and rules of half precision that the losses of `cusink.torch` and `cusink.jax` share."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from cusink.checks.scalars import one_of
from cusink.solver import checks
from cusink.types import Value

__all__ = [
    "LossOptions",
]

Gradient: TypeAlias = Literal["exact", "multiplier"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]

HALF_MASS_TOLERANCE = 1e-2  # 2.5 roundings of bfloat16


@dataclass(frozen=True, eq=False)
class LossOptions:
    """Options of a loss, whose words are checked; `solver` holds those of `cusink.sinkhorn`, which checks them."""

    value: Value
    gradient: Gradient
    reduction: Reduction
    solver: dict[str, Any]

    def __post_init__(self) -> None:
        one_of("value", self.value, get_args(Value))
        one_of("gradient", self.gradient, get_args(Gradient))
        one_of("reduction", self.reduction, get_args(Reduction))

    @property
    def reach(self) -> tuple[float, float] | None:
        """The checked prices of the marginals, None for balanced transport."""
        return checks.reach(self.solver.get("reach"), self.solver.get("method", "auto"))

    def cotangents(self, grad_losses: Any) -> dict[str, Any]:
        """Return the keywords of `cusink.sinkhorn_adjoint` for the gradient `grad_losses` (B,) or () of the losses."""
        multiplier = self.gradient == "multiplier" and self.value == "cost"
        value = "reg_cost" if multiplier else self.value
        tol = self.solver.get("tol", "auto")
        return {f"grad_{value}": grad_losses, "tol": 1e-6 if tol in (None, "auto") else tol}

    def reduce(self, losses: Any) -> Any:
        """Return the mean or the sum of the losses (B,), or the losses themselves."""
        return losses if self.reduction == "none" else getattr(losses, self.reduction)()


def stored_cost(name: str, C: object, wanted: str, dense: str) -> None:
    """Refuse a `cusink.PointCloud` or `cusink.Grid`, which has no memory to share and no gradient here."""
    if hasattr(C, "dense"):
        given = f"cusink.{type(C).__name__}"
        raise TypeError(f"'{name}' must be {wanted}; got {given}. Pass {dense}, or C itself to cusink.sinkhorn")


def mass_ratio(xp: Any, a: Any, b: Any) -> Any:
    """Return the factors (..., 1) that give `b` the mass of `a`, 1 where rounding to half precision is no reason.

    `xp` is the library of a (..., n) and b (..., m): torch or jax.numpy.
    """
    ratio = a.sum(axis=-1, keepdims=True) / b.sum(axis=-1, keepdims=True)
    return xp.where(abs(ratio - 1) <= HALF_MASS_TOLERANCE, ratio, 1)
