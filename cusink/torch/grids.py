"""`cusink.torch.Grid`: a cost between the cells of a grid, whose spacing may be tensors."""

from typing import Any, TypeAlias

import torch

from cusink.bridges.options import learnt_grid
from cusink.costs import grid
from cusink.torch.arrays import one_tensor

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
    spacing : tensor or float, or tuple of these
        Distance between neighbouring cells, for all axes or for each. In a tuple an axis of n cells may have n - 1
        distances, such as the differences of coordinates.
    periodic : bool or tuple of bool
        Whether the last cell of an axis is the neighbour of its first. The spacing of such an axis is a number.

    Raises
    ------
    TypeError, ValueError
        As `cusink.Grid` does, and for tensors of other shapes, or along an axis that is periodic.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import Grid, sinkhorn_loss
    >>> width = torch.tensor(2.0, requires_grad=True)
    >>> a, b = torch.eye(3)[0], torch.eye(3)[2]
    >>> loss = sinkhorn_loss(a, b, Grid(3, spacing=width), eps=0.1)
    >>> loss.backward()
    >>> loss.item(), width.grad
    (16.0, tensor(16.))
    """

    def __init__(
        self, shape: int | tuple[int, ...], metric: str = "sqeuclidean", *, spacing: Any = 1.0, periodic: Any = False
    ) -> None:
        self.kind, self.own = learnt_grid(shape, metric, spacing, periodic, torch.Tensor)
        for x in self.own.values():
            one_tensor("spacing", x)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The distances (n - 1,) along each axis that has a tensor, by the name of the input."""
        counts = self.kind.cells
        return {name: x.reshape(-1).expand(counts[int(name[-1])] - 1) for name, x in self.own.items()}

    def holding(self, own: dict[str, Any]) -> "Grid":
        """Return the same grid with other tensors in the place of its own.

        Parameters
        ----------
        own : dict of tensors
            By the names of those that the grid has, such as "spacing_0".

        Returns
        -------
        Grid
            The grid.
        """
        made: Grid = object.__new__(Grid)
        made.kind, made.own = self.kind, own
        return made

    def __repr__(self) -> str:
        return self.kind.shown


Grids: TypeAlias = grid.Grid | Grid
