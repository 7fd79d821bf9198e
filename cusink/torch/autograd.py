"""Works of `cusink.bridges` as functions of autograd: derivatives of both modes, of second order, and maps over them.

PyTorch's own rules for custom functions hold: `setup_context`, `jvp` and `vmap` let ``torch.func`` compose them. Where
code is being compiled, `cusink.torch.operators` stands in for them.
"""

from typing import Any, Never

import torch

from cusink.bridges.works import TWICE_ONLY, Work
from cusink.torch.calls import chosen, product, pull, push, run
from cusink.torch.refusals import nothing, once, why_once, without_derivatives

Tensors = tuple[torch.Tensor, ...]
Optional = tuple[torch.Tensor | None, ...]


class Solve(torch.autograd.Function):
    """Outputs and state of a work, given ``(work, lead, *inputs)``."""

    @staticmethod
    def forward(work: Work, lead: int, *inputs: torch.Tensor) -> Tensors:
        """Run the work."""
        return run(work, lead, inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep what derivatives need."""
        ctx.work, ctx.lead, *tensors = inputs
        state = output[len(ctx.work.outputs) :]
        ctx.mark_non_differentiable(*state)
        ctx.set_materialize_grads(False)
        # Once these are saved, PyTorch notices if they change in place before backward, as for functions of its own.
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Return gradients."""
        work = ctx.work
        inputs, outputs, state = _parts(work, ctx.saved_tensors)
        wanted = tuple(name for name, need in zip(work.ranks, ctx.needs_input_grad[2:], strict=True) if need)
        if not wanted:
            return (None,) * (2 + len(inputs))
        cotangents = (torch.zeros_like(y) if g is None else g for g, y in zip(grads, outputs, strict=False))
        found = Pull.apply(work, ctx.lead, wanted, *cotangents, *once(work, inputs), *state)
        return None, None, *_spread(work, wanted, found)

    @staticmethod
    def jvp(ctx: Any, *moves: Any) -> tuple[torch.Tensor | None, ...]:
        """Return derivatives along moves."""
        work = ctx.work
        inputs, _, state = _parts(work, ctx.saved_tensors)
        moving, moves = _moving(work, moves[2:])
        found = Push.apply(work, ctx.lead, moving, *moves, *once(work, inputs), *state)
        return *found, *(None,) * len(state)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], work: Work, lead: int, *inputs: torch.Tensor) -> Any:
        """Map over an axis, as one more in front."""
        del info
        tensors = _in_front(inputs, in_dims[2:])
        return Solve.apply(work, lead + 1, *tensors), (0,) * (len(work.outputs) + len(work.state))


class Pull(torch.autograd.Function):
    """Gradients, given ``(work, lead, wanted, *cotangents, *inputs, *state)``, as a function of all they depend on."""

    @staticmethod
    def forward(work: Work, lead: int, wanted: tuple[str, ...], *tensors: torch.Tensor) -> Tensors:
        """Run the work."""
        cotangents, rest = tensors[: len(work.outputs)], tensors[len(work.outputs) :]
        return pull(work, lead, wanted, cotangents, rest[: len(work.ranks)], rest[len(work.ranks) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep what derivatives need."""
        del output
        ctx.work, ctx.lead, ctx.wanted, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Multiply with the Hessian, which is its own transpose."""
        work, count = ctx.work, len(ctx.work.outputs)
        cotangents, inputs, state = _pulled(work, tensors := ctx.saved_tensors)
        moving = tuple(name for name, g in zip(ctx.wanted, grads, strict=True) if g is not None)
        moves = tuple(g for g in grads if g is not None)
        needs = ctx.needs_input_grad[3:]
        wanted = tuple(name for name, need in zip(work.ranks, needs[count:], strict=False) if need)
        if not moving:
            return (None,) * (3 + len(tensors))
        of_cotangents: tuple[Any, ...] = (None,) * count
        if any(needs[:count]):
            of_cotangents = Push.apply(work, ctx.lead, moving, *moves, *inputs, *state)
        of_inputs = _second(work, ctx.lead, wanted, moving, (cotangents, moves, inputs, state))
        return None, None, None, *of_cotangents, *of_inputs, *(None,) * len(state)

    @staticmethod
    def jvp(ctx: Any, *moves: Any) -> tuple[torch.Tensor | None, ...]:
        """Return derivatives along moves."""
        work, count = ctx.work, len(ctx.work.outputs)
        cotangents, inputs, state = _pulled(work, ctx.saved_tensors)
        of_cotangents = moves[3 : 3 + count]
        total: Optional = (None,) * len(ctx.wanted)
        if any(x is not None for x in of_cotangents):
            full = (torch.zeros_like(w) if x is None else x for x, w in zip(of_cotangents, cotangents, strict=True))
            total = Pull.apply(work, ctx.lead, ctx.wanted, *full, *inputs, *state)
        moving, of_inputs = _moving(work, moves[3 + count : 3 + count + len(inputs)])
        if moving:
            found = _product(work, ctx.lead, ctx.wanted, moving, (cotangents, of_inputs, inputs, state))
            total = tuple(y if x is None else x + y for x, y in zip(total, found, strict=True))
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], work: Work, lead: int, wanted: Any, *tensors: torch.Tensor) -> Any:
        """Map over an axis, as one more in front."""
        full = _expanded(work, _in_front(tensors, in_dims[3:]), len(work.outputs), wanted, info.batch_size)
        return Pull.apply(work, lead + 1, wanted, *full), (0,) * len(wanted)


class Push(torch.autograd.Function):
    """Derivatives of the outputs, given ``(work, lead, moving, *moves, *inputs, *state)``."""

    @staticmethod
    def forward(work: Work, lead: int, moving: tuple[str, ...], *tensors: torch.Tensor) -> Tensors:
        """Run the work."""
        moves, rest = tensors[: len(moving)], tensors[len(moving) :]
        return push(work, lead, moving, moves, rest[: len(work.ranks)], rest[len(work.ranks) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep what derivatives need."""
        del output
        ctx.work, ctx.lead, ctx.moving, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return gradients: by the moves, in which the derivative is linear, that is the gradient of the work."""
        work, count = ctx.work, len(ctx.moving)
        tensors = ctx.saved_tensors
        moves, rest = tensors[:count], tensors[count:]
        inputs, state = rest[: len(work.ranks)], rest[len(work.ranks) :]
        needs = ctx.needs_input_grad[3:]
        of_moves: tuple[Any, ...] = (None,) * count
        if any(needs[:count]):
            whole = _whole(work, inputs, dict(zip(ctx.moving, moves, strict=True)), ctx.lead)
            found = Pull.apply(work, ctx.lead, ctx.moving, *cotangents, *whole, *state)
            of_moves = tuple(x.sum_to_size(move.shape) for x, move in zip(found, moves, strict=True))
        wanted = tuple(name for name, need in zip(work.ranks, needs[count:], strict=False) if need)
        of_inputs = _second(work, ctx.lead, wanted, ctx.moving, (cotangents, moves, inputs, state))
        return None, None, None, *of_moves, *of_inputs, *(None,) * len(state)

    @staticmethod
    def jvp(_ctx: Any, *_: Any) -> Never:
        """Refuse forward mode over forward mode."""
        raise RuntimeError(
            "cusink losses cannot be differentiated forwards twice. Take the forward derivative of a gradient, as "
            "torch.func.hessian does"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], work: Work, lead: int, moving: Any, *tensors: torch.Tensor) -> Any:
        """Map over an axis, as one more in front."""
        del info
        return Push.apply(work, lead + 1, moving, *_in_front(tensors, in_dims[3:])), (0,) * len(work.outputs)


class Product(torch.autograd.Function):
    """Derivatives of gradients, given ``(work, lead, wanted, moving, *cotangents, *moves, *inputs, *state)``."""

    @staticmethod
    def forward(
        work: Work, lead: int, wanted: tuple[str, ...], moving: tuple[str, ...], *tensors: torch.Tensor
    ) -> Tensors:
        """Run the work."""
        return product(work, lead, wanted, moving, *_multiplied(work, moving, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep what derivatives need."""
        del output
        ctx.work, ctx.lead, ctx.wanted, ctx.moving, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *back: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return gradients by the moves, in which products are linear: Hessians are their own transposes."""
        work, (cotangents, moves, inputs, state) = ctx.work, _multiplied(ctx.work, ctx.moving, ctx.saved_tensors)
        whole = _whole(work, inputs, dict(zip(ctx.moving, moves, strict=True)), ctx.lead)
        found = Product.apply(work, ctx.lead, ctx.moving, ctx.wanted, *cotangents, *back, *whole, *state)
        of_moves = (x.sum_to_size(move.shape) for x, move in zip(found, moves, strict=True))
        refused = tuple(map(nothing, cotangents)), tuple(map(nothing, inputs))
        return (None,) * 4 + (*refused[0], *of_moves, *refused[1]) + (None,) * len(state)

    @staticmethod
    def jvp(ctx: Any, *moved: Any) -> Tensors:
        """Return derivatives along moves, in which products are linear."""
        work, (cotangents, moves, inputs, state) = ctx.work, _multiplied(ctx.work, ctx.moving, ctx.saved_tensors)
        given = moved[4 + len(cotangents) :]
        along = (torch.zeros_like(v) if x is None else x for x, v in zip(given, moves, strict=False))
        found: Tensors = Product.apply(work, ctx.lead, ctx.wanted, ctx.moving, *cotangents, *along, *inputs, *state)
        return found

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], work: Work, lead: int, wanted: Any, moving: Any, *tensors: torch.Tensor
    ) -> Any:
        """Map over an axis, as one more in front."""
        before = len(work.outputs) + len(moving)
        full = _expanded(work, _in_front(tensors, in_dims[4:]), before, wanted, info.batch_size)
        return Product.apply(work, lead + 1, wanted, moving, *full), (0,) * len(wanted)


Parts = tuple[Tensors, Tensors, Tensors, Tensors]  # cotangents, moves, inputs and state


def _product(work: Work, lead: int, wanted: tuple[str, ...], moving: tuple[str, ...], parts: Parts) -> Tensors:
    """Return derivatives of gradients, that have derivatives by the moves alone."""
    cotangents, moves, inputs, state = parts
    words = (TWICE_ONLY,) * len((*cotangents, *inputs))
    rest = without_derivatives((*cotangents, *inputs), words)
    weights, rest = rest[: len(cotangents)], rest[len(cotangents) :]
    found: Tensors = Product.apply(work, lead, wanted, moving, *weights, *moves, *rest, *state)
    return found


def _second(
    work: Work, lead: int, wanted: tuple[str, ...], moving: tuple[str, ...], parts: Parts
) -> tuple[torch.Tensor | None, ...]:
    """Return derivatives of gradients by the inputs in `wanted`: zeros where there are none, see `once`."""
    refused = {name: nothing(x) for name, x in chosen(work, wanted, parts[2]) if why_once(work, name) is not None}
    names = tuple(name for name in wanted if name not in refused)
    found = dict(zip(names, _product(work, lead, names, moving, parts), strict=True)) if names else {}
    return tuple((found | refused).get(name) for name in work.ranks)


def _spread(work: Work, wanted: tuple[str, ...], found: Tensors) -> tuple[torch.Tensor | None, ...]:
    """Return gradients in the order of the inputs, None for those that are not wanted."""
    by_name = dict(zip(wanted, found, strict=True))
    return tuple(by_name.get(name) for name in work.ranks)


def _moving(work: Work, moves: tuple[Any, ...]) -> tuple[tuple[str, ...], Tensors]:
    """Return the names of the inputs that move, and how."""
    pairs = [(name, x) for name, x in zip(work.ranks, moves, strict=True) if x is not None]
    return tuple(name for name, _ in pairs), tuple(x for _, x in pairs)


def _whole(work: Work, inputs: Tensors, moves: dict[str, torch.Tensor], lead: int) -> Tensors:
    """Return inputs with the `lead` axes of maps that their moves have, too, as the gradients by the moves will."""

    def whole(x: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
        return x.expand(*torch.broadcast_shapes(x.shape[:lead], move.shape[:lead]), *x.shape[lead:])

    return tuple(whole(x, moves[name]) if name in moves else x for name, x in zip(work.ranks, inputs, strict=True))


def _parts(work: Work, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """Return inputs, outputs and state."""
    inputs, rest = tensors[: len(work.ranks)], tensors[len(work.ranks) :]
    return inputs, rest[: len(work.outputs)], rest[len(work.outputs) :]


def _pulled(work: Work, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """Return cotangents, inputs and state."""
    cotangents, rest = tensors[: len(work.outputs)], tensors[len(work.outputs) :]
    return cotangents, rest[: len(work.ranks)], rest[len(work.ranks) :]


def _multiplied(work: Work, moving: tuple[str, ...], tensors: Tensors) -> Parts:
    """Return cotangents, moves, inputs and state."""
    count = len(work.outputs)
    moved = count + len(moving)
    rest = tensors[moved:]
    return tensors[:count], tensors[count:moved], rest[: len(work.ranks)], rest[len(work.ranks) :]


def _in_front(tensors: Tensors, dims: tuple[Any, ...]) -> list[torch.Tensor]:
    """Return tensors with the axis of a map in front, of size 1 in those that are not mapped."""
    return [x.unsqueeze(0) if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, dims, strict=True)]


def _expanded(
    work: Work, tensors: list[torch.Tensor], before: int, wanted: tuple[str, ...], size: int
) -> list[torch.Tensor]:
    """Return tensors in which the inputs in `wanted`, after `before` others, have the whole axis of a map."""
    full = {before + k for k, name in enumerate(work.ranks) if name in wanted}
    return [x.expand(size, *x.shape[1:]) if k in full else x for k, x in enumerate(tensors)]
