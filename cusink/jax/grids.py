"""`cusink.jax.Grid`: a cost between the cells of a grid, whose spacing may be arrays."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from cusink.bridges.options import learnt_grid
from cusink.costs import grid

__all__ = ["Grid"]


class Grid:
    """The cost between the cells of a grid whose spacing has a gradient: `cusink.Grid` for all that is a number.

    Losses are differentiable once, backwards, in the spacing.

    Parameters
    ----------
    shape : tuple of int
        Cells along each axis: one, two or three axes.
    metric : {"sqeuclidean", "euclidean", "cityblock"}
        Between the centres of cells.
    spacing : array or float, or tuple of these
        Distance between neighbouring cells, for all axes or for each. In a tuple an axis of n cells may have n - 1
        distances, such as the differences of coordinates.
    periodic : bool or tuple of bool
        Whether the last cell of an axis is the neighbour of its first. The spacing of such an axis is a number.

    Raises
    ------
    TypeError, ValueError
        As `cusink.Grid` does, and for arrays of other shapes, or along an axis that is periodic.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cusink.jax import Grid, sinkhorn_loss
    >>> a, b = jnp.eye(3)[0], jnp.eye(3)[2]
    >>> slope = jax.grad(lambda width: sinkhorn_loss(a, b, Grid(3, spacing=width), eps=0.1))(2.0)
    >>> print(slope.round(4))
    16.0
    """

    def __init__(
        self, shape: int | tuple[int, ...], metric: str = "sqeuclidean", *, spacing: Any = 1.0, periodic: Any = False
    ) -> None:
        self.kind, self.own = learnt_grid(shape, metric, spacing, periodic, jax.Array)

    @property
    def arrays(self) -> dict[str, jax.Array]:
        """The distances (n - 1,) along each axis that has an array, by the name of the input."""
        counts = self.kind.cells
        return {name: jnp.broadcast_to(x.reshape(-1), counts[int(name[-1])] - 1) for name, x in self.own.items()}

    def __repr__(self) -> str:
        return self.kind.shown


Grids: TypeAlias = grid.Grid | Grid
