"""What modules hold: tensors as buffers or parameters, and costs made of them."""

from typing import Any

import torch

from cusink.bridges.options import grid_or_refuse
from cusink.torch.arrays import one_tensor


class Holding(torch.nn.Module):
    """A module that holds a cost `C`: a tensor, a grid, or a grid whose spacing has tensors, or None."""

    C: Any

    def _hold(self, **given: Any) -> None:
        """Make tensors buffers, or learn them if they are parameters; what is no tensor is an attribute."""
        for name, x in given.items():
            if isinstance(x, torch.Tensor) and not isinstance(x, torch.nn.Parameter):
                self.register_buffer(name, x)
            else:
                setattr(self, name, x)

    def _hold_cost(self, C: Any, points: str) -> None:
        """Hold a cost; `points` says where points go, which are none."""
        own: dict[str, Any] = getattr(C, "own", {})  # of a grid of tensors
        if hasattr(C, "holding"):
            C = C.holding({})
        elif C is not None and grid_or_refuse(C, "a tensor or a Grid", points) is None:
            one_tensor("C", C)
        self._own_spacing = tuple(own)
        self._hold(C=C, **own)

    def _cost(self) -> Any:
        """Return the cost, with the tensors that the module has now."""
        own = {name: getattr(self, name) for name in self._own_spacing}
        return self.C.holding(own) if own else self.C
