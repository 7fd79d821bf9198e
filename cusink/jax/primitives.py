"""Works of `cusink.bridges` as primitives of JAX: rules for both modes of differentiation, for maps, and for ``jit``.

``solve`` gives outputs and state. Its derivative is ``push``, linear in the moves of the inputs, whose transpose is
``pull``; the derivative of that is ``product``, a Hessian and its own transpose. Under a map each has one more axis in
front, see `cusink.bridges.works`. Outside ``jit`` arrays are shared with NumPy or CuPy; inside, JAX calls NumPy back.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cusink.bridges.works import TWICE_ONLY, Work, summed_to
from cusink.jax import calls
from cusink.jax.calls import Values

Refusal = Callable[[dict[str, Any]], None]


def outputs_of(work: Work, inputs: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    """Return the outputs of a work."""
    out = solve_p.bind(*(inputs[name] for name in work.ranks), work=work, lead=0, wide=_wide())
    return tuple(out[: len(work.outputs)])


def _wide() -> bool:
    return bool(jax.config.jax_enable_x64)


# ---- derivatives -----------------------------------------------------------------------------------------------


def _zero(x: Any) -> Any:
    """Return the symbolic zero that is the tangent of a value."""
    return ad.Zero(jax.core.ShapedArray(x.shape, x.dtype).to_tangent_aval())


def _moving(work: Work, moves: Values) -> tuple[tuple[str, ...], list[Any]]:
    """Return the names of the inputs that move, and how."""
    pairs = [(name, x) for name, x in zip(work.ranks, moves, strict=True) if type(x) is not ad.Zero]
    return tuple(name for name, _ in pairs), [x for _, x in pairs]


def _jvp_of_solve(primals: Values, tangents: Values, *, work: Work, lead: int, wide: bool) -> tuple[Any, Any]:
    out = solve_p.bind(*primals, work=work, lead=lead, wide=wide)
    count = len(work.outputs)
    moving, moves = _moving(work, tangents)
    moved = push_p.bind(*moves, *primals, *out[count:], work=work, lead=lead, wide=wide, moving=moving)
    return out, [*moved, *map(_zero, out[count:])]


def _jvp_of_pull(primals: Values, tangents: Values, **params: Any) -> tuple[Any, Any]:
    work, count = params["work"], len(params["work"].outputs)
    out, total = pull_p.bind(*primals, **params), None
    if any(type(x) is not ad.Zero for x in tangents[:count]):
        of_cotangents = map(ad.instantiate_zeros, tangents[:count])
        total = pull_p.bind(*of_cotangents, *primals[count:], **params)
    moving, moves = _moving(work, tangents[count : count + len(work.ranks)])
    if moving:
        _refuse_unless_twice(work)
        moved = product_p.bind(*primals[:count], *moves, *primals[count:], **params, moving=moving)
        total = moved if total is None else [x + y for x, y in zip(total, moved, strict=True)]
    return out, [_zero(x) for x in out] if total is None else total


def _jvp_of_push(primals: Values, tangents: Values, **params: Any) -> tuple[Any, Any]:
    work, lead, moving = params["work"], params["lead"], params["moving"]
    out, total = push_p.bind(*primals, **params), None
    count, after = len(moving), len(moving) + len(work.ranks)
    if any(type(x) is not ad.Zero for x in tangents[:count]):
        total = push_p.bind(*map(ad.instantiate_zeros, tangents[:count]), *primals[count:], **params)
    wanted, moves = _moving(work, tangents[count:after])
    if wanted:
        _refuse_unless_twice(work)
        # The Hessian of each output by itself, times the moves, times the tangents.
        (value,), rest = out, {"work": work, "lead": lead, "wide": params["wide"]}
        inputs = [
            _of_each(x, lead, rank, value.shape) if name in wanted else x
            for x, (name, rank) in zip(primals[count:after], work.ranks.items(), strict=True)
        ]
        rows = product_p.bind(
            jnp.ones_like(value), *primals[:count], *inputs, *primals[after:], **rest, wanted=wanted, moving=moving
        )
        moved = jnp.zeros_like(value)
        for name, row, move in zip(wanted, rows, moves, strict=True):
            rank = work.ranks[name]
            terms = row * _of_each(move, lead, rank, value.shape)
            moved += terms.sum(axis=tuple(range(terms.ndim - rank, terms.ndim)))
        total = [moved] if total is None else [total[0] + moved]
    return out, [_zero(x) for x in out] if total is None else total


def _of_each(x: jax.Array, lead: int, rank: int, shape: tuple[int, ...]) -> jax.Array:
    """Return an input with the axes of the outputs, of `shape`, in front of its own `rank`."""
    if x.ndim - rank < len(shape):
        x = jnp.expand_dims(x, lead)
    return jnp.broadcast_to(x, shape + x.shape[x.ndim - rank :])


def _jvp_of_product(primals: Values, tangents: Values, **params: Any) -> tuple[Any, Any]:
    linear = len(params["work"].outputs) + len(params["moving"])
    if any(type(x) is not ad.Zero for x in tangents[linear:]):
        raise NotImplementedError(TWICE_ONLY)
    count = len(params["work"].outputs)
    out = product_p.bind(*primals, **params)
    total = [jnp.zeros_like(x) for x in out]
    for part in (slice(0, count), slice(count, linear)):
        if any(type(x) is not ad.Zero for x in tangents[part]):
            moved = list(primals)
            moved[part] = map(ad.instantiate_zeros, tangents[part])
            total = [x + y for x, y in zip(total, product_p.bind(*moved, **params), strict=True)]
    return out, total


def _transpose_of_push(cts: Values, *args: Any, moving: tuple[str, ...], **params: Any) -> list[Any]:
    count = len(moving)
    unknown = {name: x for name, x in zip(moving, args, strict=False) if ad.is_undefined_primal(x)}
    rest = _with_fronts_of(unknown, args[count:], params["work"], params["lead"])
    found = pull_p.bind(*map(ad.instantiate_zeros, cts), *rest, **params, wanted=tuple(unknown))
    summed = {name: _summed_to(x, unknown[name]) for name, x in zip(unknown, found, strict=True)}
    return [*(summed.get(name) for name in moving), *(None,) * (len(args) - count)]


def _transpose_of_pull(cts: Values, *args: Any, wanted: tuple[str, ...], **params: Any) -> list[Any]:
    count = len(params["work"].outputs)
    pairs = [(name, ct) for name, ct in zip(wanted, cts, strict=True) if type(ct) is not ad.Zero]
    moving = tuple(name for name, _ in pairs)
    found = push_p.bind(*(ct for _, ct in pairs), *args[count:], **params, moving=moving)
    of_cotangents = [
        _summed_to(x, arg) if ad.is_undefined_primal(arg) else None for x, arg in zip(found, args, strict=False)
    ]
    return [*of_cotangents, *(None,) * (len(args) - count)]


def _transpose_of_product(
    cts: Values, *args: Any, wanted: tuple[str, ...], moving: tuple[str, ...], **params: Any
) -> list[Any]:
    count, linear = len(params["work"].outputs), len(params["work"].outputs) + len(moving)
    if any(map(ad.is_undefined_primal, args[:count])):
        raise NotImplementedError(TWICE_ONLY)
    pairs = [(name, ct) for name, ct in zip(wanted, cts, strict=True) if type(ct) is not ad.Zero]
    unknown = {n: x for n, x in zip(moving, args[count:linear], strict=True) if ad.is_undefined_primal(x)}
    moves, names = [ct for _, ct in pairs], tuple(name for name, _ in pairs)
    rest = _with_fronts_of(unknown, args[linear:], params["work"], params["lead"])
    found = product_p.bind(*args[:count], *moves, *rest, **params, wanted=tuple(unknown), moving=names)
    summed = {name: _summed_to(x, unknown[name]) for name, x in zip(unknown, found, strict=True)}
    return [*(None,) * count, *(summed.get(name) for name in moving), *(None,) * (len(args) - linear)]


def _with_fronts_of(moves: dict[str, Any], tensors: Values, work: Work, lead: int) -> list[Any]:
    """Return inputs and state, where inputs have the axes in front that their moves have: gradients have those."""
    out = list(tensors)
    for k, name in enumerate(work.ranks):
        if name in moves:
            front = np.broadcast_shapes(out[k].shape[:lead], moves[name].aval.shape[:lead])
            out[k] = jnp.broadcast_to(out[k], front + out[k].shape[lead:])
    return out


def _summed_to(x: jax.Array, like: Any) -> jax.Array:
    """Return a gradient by an undefined primal, summed over the axes in which that one has size 1."""
    summed: jax.Array = summed_to(x, like.aval.shape)
    return summed


def _refuse_unless_twice(work: Work) -> None:
    if not work.twice:
        raise NotImplementedError(work.once_only)


# ---- maps ------------------------------------------------------------------------------------------------------


def _batched(primitive: Primitive, before: Callable[[dict[str, Any]], int]) -> Callable[..., Any]:
    """Return the rule of a map: one more axis in front, of size 1 in arrays that are not mapped.

    Gradients have the whole axis, and so must their inputs, which come after `before` other arrays.
    """

    def rule(args: Values, dims: Values, *, lead: int, **params: Any) -> tuple[Any, Any]:
        size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
        work, after = params["work"], before(params)
        full = {after + k for k, name in enumerate(work.ranks) if name in params.get("wanted", ())}
        moved = []
        for k, (x, dim) in enumerate(zip(args, dims, strict=True)):
            x = x[None] if dim is None else jnp.moveaxis(x, dim, 0)
            moved.append(jnp.broadcast_to(x, (size, *x.shape[1:])) if k in full else x)
        out = primitive.bind(*moved, lead=lead + 1, **params)
        return out, [0] * len(out)

    return rule


# ---- the primitives --------------------------------------------------------------------------------------------


def _at_once(function: Callable[..., list[Any]], avals: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Return a function of arrays of JAX that shares them with NumPy or CuPy."""

    def call(*args: Any, **params: Any) -> list[Any]:
        wanted = avals(*args, **params)
        on_gpu = any(isinstance(x, jax.Array) and next(iter(x.devices())).platform == "gpu" for x in args)
        if not on_gpu:
            found = function(*map(np.asarray, args), **params)
            return [jnp.asarray(np.asarray(x, aval.dtype)) for x, aval in zip(found, wanted, strict=True)]
        import cupy

        found = function(*(cupy.from_dlpack(x) for x in args), **params)
        return [jnp.from_dlpack(cupy.asarray(x, aval.dtype)) for x, aval in zip(found, wanted, strict=True)]

    return call


def _called_back(
    function: Callable[..., list[Any]], avals: Callable[..., list[Any]], refuse: Refusal
) -> Callable[..., list[Any]]:
    """Return a function of traced arrays that JAX calls back with those of NumPy.

    What does not exist is refused where it is compiled: JAX hides an error of what it calls back in one of its own.
    """

    def call(*args: Any, **params: Any) -> list[Any]:
        refuse(params)
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals(*args, **params)]

        def on_host(*given: Any) -> list[Any]:
            found = function(*map(np.asarray, given), **params)
            return [np.asarray(x, s.dtype) for x, s in zip(found, shapes, strict=True)]

        return list(jax.pure_callback(on_host, shapes, *args))

    return call


def _primitive(
    name: str,
    function: Callable[..., list[Any]],
    avals: Callable[..., list[Any]],
    before: Callable[[dict[str, Any]], int],
    refuse: Refusal = lambda _: None,
) -> Primitive:
    primitive = Primitive(f"cusink_{name}")
    primitive.multiple_results = True
    primitive.def_impl(_at_once(function, avals))
    primitive.def_abstract_eval(avals)
    mlir.register_lowering(primitive, mlir.lower_fun(_called_back(function, avals, refuse), multiple_results=True))
    batching.primitive_batchers[primitive] = _batched(primitive, before)
    return primitive


solve_p = _primitive("solve", calls.run, calls.avals_of_run, lambda _: 0)
pull_p = _primitive("pull", calls.pull, calls.avals_of_pull, lambda params: len(params["work"].outputs))
push_p = _primitive(
    "push",
    calls.push,
    calls.avals_of_push,
    lambda params: len(params["moving"]),
    lambda params: params["work"].refuse_push(params["moving"]),
)
product_p = _primitive(
    "product",
    calls.product,
    calls.avals_of_product,
    lambda params: len(params["work"].outputs) + len(params["moving"]),
    lambda params: params["work"].refuse_product((*params["moving"], *params["wanted"])),
)
for of, jvp in ((solve_p, _jvp_of_solve), (pull_p, _jvp_of_pull), (push_p, _jvp_of_push), (product_p, _jvp_of_product)):
    ad.primitive_jvps[of] = jvp
ad.primitive_transposes[push_p] = _transpose_of_push
ad.primitive_transposes[pull_p] = _transpose_of_pull
ad.primitive_transposes[product_p] = _transpose_of_product
