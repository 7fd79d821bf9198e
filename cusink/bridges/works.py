"""Differentiable works on NumPy or CuPy arrays: outputs, and products with their Jacobians and Hessians.

A work is stateless: what its derivatives need of a solve goes in and out as arrays, so that autograd may keep it, map
over it and compile it. Inputs, outputs and state may have axes in front, of a ``vmap`` of either library, see `run`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cusink.bridges.overflow import finite_or_zero, in_unit, lost, overflowed, with_room
from cusink.checks.arrays import array_module
from cusink.types import Array

Inputs = Mapping[str, Array]  # arrays by the name of the argument
Shapes = Mapping[str, tuple[int, ...]]
Arrays = dict[str, Array]
POSITIVE = frozenset({"a", "b", "A", "eps", "reach"})
SPACING = "spacing_"  # before the number of the axis: the distances (n - 1,) between its n cells
FORWARD = "derivative of forward mode"
TWICE_ONLY = "cusink losses can be differentiated twice only: their Hessians have no derivative"
COMMON = frozenset({"reach", "spacing_0", "spacing_1", "spacing_2"})  # inputs that all problems of a call share

Grouped = Callable[[Sequence[Inputs]], Arrays]  # of inputs, state, cotangents, directions


@dataclass(frozen=True)
class Work(ABC):
    """A function of arrays by name. Inputs of one problem have `ranks` axes, those of a batch one more in front."""

    title: ClassVar[str] = "losses"  # what users call such works
    twice: ClassVar[bool] = False  # whether `product` can be called
    kinds: ClassVar[dict[str, type["Work"]]] = {}  # all works, by name

    def __init_subclass__(cls) -> None:
        Work.kinds[cls.__name__] = cls

    @property
    def once_only(self) -> str:
        """What is said where a second derivative is asked for that no work of this kind has."""
        return f"{self.title} of cusink can be differentiated once only: the gradient has no derivative"

    @property
    @abstractmethod
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these from which the class makes the work again."""

    @property
    @abstractmethod
    def ranks(self) -> dict[str, int]:
        """Axes of each input of one problem, by name and in order."""

    @property
    @abstractmethod
    def outputs(self) -> dict[str, int]:
        """Axes of each output of one problem."""

    @property
    @abstractmethod
    def state(self) -> dict[str, int]:
        """Axes of each array of state of one problem."""

    @property
    def positive(self) -> frozenset[str]:
        """Inputs of which no problem that can be run has zeros only."""
        return POSITIVE

    @abstractmethod
    def shapes(self, given: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of outputs and state, given those of the inputs."""

    @abstractmethod
    def run(self, given: Inputs) -> Arrays:
        """Return outputs and state."""

    @abstractmethod
    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of the inputs in `wanted`, in the shapes of a batch where the outputs have one."""

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return the derivatives of the outputs along directions of some inputs."""
        raise NotImplementedError

    def product(
        self, given: Inputs, state: Inputs, cotangents: Inputs, directions: Inputs, wanted: tuple[str, ...]
    ) -> Arrays:
        """Return the derivatives of what `pull` returns along directions of some inputs."""
        raise NotImplementedError

    def refuse_push(self, moving: Iterable[str]) -> None:
        """Raise if there is no derivative along moves of these inputs; known before there are numbers."""
        refuse_once(moving, FORWARD)

    def refuse_product(self, names: Iterable[str]) -> None:
        """Raise if there is no second derivative by these inputs; known before there are numbers."""
        refuse_once(names, "second derivative")

    def batch(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the axis of the batch of inputs, () where there is none."""
        sizes = [shape[0] for name, shape in shapes.items() if len(shape) > self.ranks.get(name, len(shape))]
        return (max(sizes),) if sizes else ()


def refuse_once(names: Iterable[str], mode: str, *but: str) -> None:
    """Refuse a derivative by prices or spacings that does not exist, `but` by some inputs."""
    for name in names:
        if name not in but and (name == "reach" or name.startswith(SPACING)):
            raise NotImplementedError(
                f"'{name.partition('_')[0]}' has no {mode} here: take its gradient once, backwards, and detach it "
                "elsewhere"
            )


def run(work: Work, lead: int, given: Inputs) -> Arrays:
    """Return outputs and state of inputs that all have `lead` more axes in front, each 1 or the size of a map."""
    ranks = work.outputs | work.state

    def base(groups: Sequence[Inputs]) -> Arrays:
        return work.run(_whole(groups)[0])

    return _mapped(base, lead, [given], [work.ranks], ranks)


def pull(work: Work, lead: int, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
    """Return the gradients of the inputs in `wanted`, in their shapes."""
    ranks = [work.ranks, work.state, work.outputs]

    def base(groups: Sequence[Inputs]) -> Arrays:
        given, state, cotangents = _whole(groups)
        cotangents, unit = with_room(cotangents)
        out = work.pull(given, state, cotangents, wanted)
        return {name: summed_to(x, groups[0][name].shape) for name, x in in_unit(out, unit).items()}

    groups = _that_ran(work, lead, given, state, cotangents)
    if groups is None:
        return _nothing(given, wanted)
    out = _mapped(base, lead, groups, ranks, work.ranks)
    return {name: summed_to(x, given[name].shape) for name, x in out.items()}


def push(work: Work, lead: int, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
    """Return the derivatives of the outputs along directions of some inputs."""
    work.refuse_push(directions)
    ranks = [work.ranks, work.state, work.ranks]

    def base(groups: Sequence[Inputs]) -> Arrays:
        given, state, directions = _whole(groups)
        directions, unit = with_room(directions)
        cleaned = {name: finite_or_zero(x) for name, x in directions.items()}
        out = in_unit(work.push(given, state, cleaned), unit)
        wrong = _not_finite(work, directions)
        return {name: lost(x, work.outputs[name], wrong) for name, x in out.items()}

    groups = _that_ran(work, lead, given, state, directions)
    if groups is None:
        shapes, like = work.shapes({name: x.shape[lead:] for name, x in given.items()}), next(iter(given.values()))
        front = np.broadcast_shapes(*(x.shape[:lead] for group in (given, directions) for x in group.values()))
        return {name: array_module(like).zeros(front + shapes[name], like.dtype) for name in work.outputs}
    return _mapped(base, lead, groups, ranks, work.outputs)


def product(
    work: Work,
    lead: int,
    given: Inputs,
    state: Inputs,
    cotangents: Inputs,
    directions: Inputs,
    wanted: tuple[str, ...],
) -> Arrays:
    """Return the derivatives of the gradients of the inputs in `wanted` along directions of some inputs."""
    work.refuse_product((*directions, *wanted))
    ranks = [work.ranks, work.state, work.outputs, work.ranks]

    def base(groups: Sequence[Inputs]) -> Arrays:
        given, state, cotangents, directions = _whole(groups)
        cotangents, unit = with_room(cotangents)
        directions, of_directions = with_room(directions)
        cleaned = {name: finite_or_zero(x) for name, x in directions.items()}
        out = in_unit(work.product(given, state, cotangents, cleaned, wanted), unit, of_directions)
        wrong = _not_finite(work, directions)
        out = {name: lost(x, work.ranks[name], wrong) for name, x in out.items()}
        return {name: summed_to(x, groups[0][name].shape) for name, x in out.items()}

    every = _that_ran(work, lead, given, state, cotangents, directions)
    if every is None:
        return _nothing(given, wanted)
    out = _mapped(base, lead, every, ranks, work.ranks)
    return {name: summed_to(x, given[name].shape) for name, x in out.items()}


def _not_finite(work: Work, directions: Inputs) -> Array:
    """Return numbers (B,) or () that are not finite where a direction of a problem is not."""
    total: Array = sum(overflowed(x, work.ranks[name]) for name, x in directions.items())
    return total


def summed_to(grad: Array, shape: tuple[int, ...]) -> Array:
    """Return a gradient summed over the axes that were broadcast, in the shape of its input."""
    grad = grad.reshape((1,) * max(len(shape) - grad.ndim, 0) + grad.shape)
    lead = grad.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, k in enumerate(shape) if k == 1 and grad.shape[lead + i] != 1)
    out: Array = (grad.sum(axis=axes) if axes else grad).reshape(shape)
    return out


def _mapped(
    function: Grouped, lead: int, groups: Sequence[Inputs], ranks: Sequence[Mapping[str, int]], of: Mapping[str, int]
) -> Arrays:
    """Call a function of groups of arrays whose axes in front are one, or none.

    Problems that are single below these axes become one batch; batches, and those with `COMMON` inputs of their
    own, are taken one after the other. `ranks` are the axes of each array of one problem, `of` those of the results,
    which have the axes in front too.
    """
    if not lead:
        return function(groups)
    paired = [(name, x, rank[name]) for group, rank in zip(groups, ranks, strict=True) for name, x in group.items()]
    front = np.broadcast_shapes(*(x.shape[:lead] for _, x, _ in paired))
    own = any(name in COMMON and math.prod(x.shape[:lead]) > 1 for name, x, _ in paired)
    if not own and all(x.ndim - lead <= rank for _, x, rank in paired):
        out = function(_one_batch(groups, ranks, front, lead))
        return {
            name: x.reshape((front if x.ndim > of[name] else (1,) * lead) + x.shape[x.ndim - of[name] :])
            for name, x in out.items()
        }
    parts = []
    for k in range(math.prod(front)):
        at = np.unravel_index(k, front)
        parts.append(function([{name: x[_index(at, x.shape)] for name, x in group.items()} for group in groups]))
    xp = array_module(paired[0][1])
    return {name: xp.stack([part[name] for part in parts]).reshape(front + x.shape) for name, x in parts[0].items()}


def _one_batch(
    groups: Sequence[Inputs], ranks: Sequence[Mapping[str, int]], front: tuple[int, ...], lead: int
) -> list[Inputs]:
    """Return groups in which single problems are a batch, of which shared inputs have no axis."""
    given, *others = [{name: _flat(x, front, lead) for name, x in group.items()} for group in groups]
    size = math.prod(front)
    batched = any(x.ndim > rank[n] for g, rank in zip([given, *others], ranks, strict=True) for n, x in g.items())
    if not batched:
        return [given, *others]
    moved = others[-1] if len(others) > 1 and ranks[-1] == ranks[0] else {}
    spread = {name for name, x in moved.items() if x.ndim > ranks[0][name]} | ({"a", "A"} & set(given))
    for group, rank, names in zip([given, *others], ranks, [spread, *others], strict=True):
        for name in names:
            x = group[name]
            if x.ndim == rank[name] and group is not moved:
                xp = array_module(x)
                group[name] = xp.ascontiguousarray(xp.broadcast_to(x, (size, *x.shape)))
    return [given, *others]


def _that_ran(work: Work, lead: int, *groups: Inputs) -> Sequence[Inputs] | None:
    """Return groups in which problems that never ran are another one, of which nothing is asked; None if none ran.

    A map over a condition computes the derivatives of both branches, and JAX gives them zeros for the inputs and the
    state of a branch that was not taken. A problem that ran has no `positive` input that is all zero.
    """
    if not lead:
        return groups
    (given, state), linear = groups[:2], groups[2:]
    idle: Any = False
    for name in work.positive & set(given):
        idle = idle | (given[name] == 0).all(axis=tuple(range(lead, given[name].ndim)))
    for x in state.values():
        idle = idle & (x == 0).all(axis=tuple(range(lead, x.ndim)))
    if not np.ndim(idle) or not idle.any():
        return groups
    if idle.all():
        return None
    xp = array_module(idle)
    at = np.unravel_index(int(idle.argmin()), idle.shape)

    def of_another(x: Array) -> Array:
        shared = tuple(k for k in range(lead) if x.shape[k] == 1)
        own = idle.all(axis=shared, keepdims=True)
        return xp.where(own.reshape(*own.shape, *(1,) * (x.ndim - lead)), x[_index(at, x.shape)], x)

    def nothing(x: Array) -> Array:
        return xp.where(idle.reshape(*idle.shape, *(1,) * (x.ndim - lead)), x.dtype.type(0), x)

    ran = [{name: of_another(x) for name, x in group.items()} for group in (given, state)]
    return [*ran, *({name: nothing(x) for name, x in group.items()} for group in linear)]


def _nothing(given: Inputs, wanted: tuple[str, ...]) -> Arrays:
    """Return gradients of 0."""
    return {name: array_module(given[name]).zeros_like(given[name]) for name in wanted}


def _index(at: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return an index of the axes in front, 0 in those of size 1."""
    return tuple(i if n > 1 else 0 for i, n in zip(at, shape, strict=False))


def _flat(x: Array, front: tuple[int, ...], lead: int) -> Array:
    """Return an array with one axis in place of the leading ones, or none if they are all 1."""
    if math.prod(x.shape[:lead]) == 1:
        return x.reshape(x.shape[lead:])
    xp = array_module(x)
    return xp.ascontiguousarray(xp.broadcast_to(x, front + x.shape[lead:])).reshape((-1, *x.shape[lead:]))


def _whole(groups: Sequence[Inputs]) -> Sequence[Inputs]:
    """Return groups in which the weights have a batch axis where eps is one for each problem (B,)."""
    given, *others = groups
    eps, a = given.get("eps"), given.get("a")
    if eps is None or a is None or eps.ndim == 0 or a.ndim > 1:
        return groups
    xp = array_module(a)
    return [dict(given) | {"a": xp.ascontiguousarray(xp.broadcast_to(a, (len(eps), *a.shape)))}, *others]
