"""`cusink.torch` and `cusink.jax`: values and gradients beside those of `cusink.sinkhorn` and its adjoint."""

import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.random import Generator

import cusink
from fuzzing import draw as drawing
from fuzzing.case import NAN, RIGHT, SKIPPED, WRONG, Case, Finding, Seen, observe
from fuzzing.claims import UNITS

VALUES = ("cost", "reg_cost", "entropic_cost")
INPUTS = ("a", "b", "C", "eps")
PARAMETERS = (*inspect.signature(cusink.sinkhorn).parameters, "value", "gradient", "reduction")
SHOW = """\
value, library = globals().get("value", "cost"), globals().get("library", "torch")
if library == "torch":
    import torch
    from cusink.torch import sinkhorn_loss
    given = [torch.tensor(v, requires_grad=True) for v in (a, b, C, np.asarray(eps, a.dtype))]
    loss = sinkhorn_loss(*given, value=value, reduction="sum", **options)
    loss.backward()
    grads = [v.grad for v in given]
else:
    import jax
    jax.config.update("jax_enable_x64", True)
    from cusink.jax import sinkhorn_loss
    given = (a, b, C, eps)
    if globals().get("lists"):
        given = [v.tolist() for v in (a, b, C)] + [eps]
        loss, grads = sinkhorn_loss(*given, value=value, reduction="sum", **options), None
    else:
        of = lambda *v: sinkhorn_loss(*v, value=value, reduction="sum", **options)
        loss, grads = jax.value_and_grad(of, (0, 1, 2, 3))(*given)
print(library, loss, grads)
result = cusink.sinkhorn(a, b, C, eps=eps, **options)
grads = cusink.sinkhorn_adjoint(result, **{f"grad_{value}": np.ones_like(result.cost)}, tol=options.get("tol", 1e-6))
print("numpy", getattr(result, value).sum(), grads.a, grads.b, grads.C, grads.eps)
"""


def draw(rng: Generator, seed: int) -> Case:
    """Draw a loss."""
    dtype = drawing.dtype(rng, half=False)
    n, m, B = int(rng.integers(1, 7)), int(rng.integers(1, 7)), int(rng.choice([0, 0, 1, 3]))
    rows, own = max(B, 1), B > 0 and rng.random() < 0.3
    C = drawing.costs(rng, (B, n, m) if own else (n, m), dtype)
    a, b = drawing.weights(rng, rows, n, dtype), drawing.weights(rng, rows, m, dtype)
    options: dict[str, Any] = {
        "eps": float(f"{drawing.scale_of(C) * 10 ** rng.uniform(-2, 0.5):.3g}"),
        "max_iter": 3000,
    }
    extra = {"value": str(rng.choice(VALUES)), "library": str(rng.choice(["torch", "jax"]))}
    equal: tuple[str, ...] = ("a", "b")
    if extra["library"] == "jax" and rng.random() < 0.1:
        extra["lists"] = True
        a, b = np.round(4 * a) + 1, np.round(4 * b) + 1
        a[:, 0] += np.maximum(0, b.sum(axis=1) - a.sum(axis=1))
        b[:, 0] += np.maximum(0, a.sum(axis=1) - b.sum(axis=1))
        C, dtype, equal = np.round(np.clip(5 * C, -100, 100)), "float64", ()
        options["eps"] = float(f"{rng.uniform(0.4, 5):.2g}")
    elif rng.random() < 0.2 and extra["value"] != "entropic_cost":
        options["reach"], equal = float(f"{drawing.scale_of(C) * 10 ** rng.uniform(-1, 1):.2g}"), ()
    arrays, axes = {"a": a, "b": b, "C": C}, {"a": "Bn", "b": "Bm", "C": "Bnm" if own else "nm"}
    if B == 0:
        arrays, axes = {"a": a[0], "b": b[0], "C": C}, {"a": "n", "b": "m", "C": "nm"}
    return Case("bridges", seed, arrays, axes, dtype, options, extra, equal)


def _torch(given: dict[str, Any], value: str, options: dict[str, Any]) -> dict[str, Any]:
    import torch

    from cusink.torch import sinkhorn_loss

    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in given.items()}
    loss = sinkhorn_loss(**tensors, value=value, reduction="sum", **options)
    loss.backward()
    return {"loss": float(loss.detach())} | {k: v.grad.numpy() for k, v in tensors.items()}


def _jax(given: dict[str, Any], value: str, options: dict[str, Any], lists: bool) -> dict[str, Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from cusink.jax import sinkhorn_loss

    def loss(*inputs: Any) -> Any:
        return sinkhorn_loss(*inputs, value=value, reduction="sum", **options)

    if lists:  # of whole numbers, as a user types them
        whole = [[int(x) for x in v] if v.ndim == 1 else v.astype(int).tolist() for v in list(given.values())[:3]]
        return {"loss": float(loss(*whole, float(given["eps"])))}
    total, grads = jax.value_and_grad(loss, (0, 1, 2, 3))(*map(jax.numpy.asarray, given.values()))
    return {"loss": float(total)} | {k: np.asarray(g) for k, g in zip(INPUTS, grads, strict=True)}


def check(case: Case) -> Seen:
    """Take the loss and its gradients in the library and in NumPy."""
    library, value = case.extra.get("library", "torch"), case.extra.get("value", "cost")
    if find_spec(library) is None:
        return Seen(SKIPPED, [])
    arrays, options = case.given(), {k: v for k, v in case.options.items() if k != "eps"}
    given = {**arrays, "eps": np.asarray(case.options["eps"], case.dtype)}

    def call() -> Any:
        if library == "torch":
            return _torch(given, value, options)
        return _jax(given, value, options, bool(case.extra.get("lists")))

    def plain() -> Any:
        result = cusink.sinkhorn(**arrays, eps=float(given["eps"]), **options)
        grads = cusink.sinkhorn_adjoint(
            result, **{f"grad_{value}": np.ones_like(result.cost)}, tol=options.get("tol", 1e-6)
        )
        return result, {k: np.asarray(getattr(grads, k), dtype=np.float64) for k in INPUTS}

    seen, other = observe(call, arrays, PARAMETERS), observe(plain, arrays, PARAMETERS)
    if seen.value is None or other.value is None or seen.value.value is None or other.value.value is None:
        if (seen.value is None or seen.value.value is None) != (other.value is None or other.value.value is None):
            return seen.having(
                [Finding(WRONG, "refused as in NumPy", f"{library}: {seen.outcome}", f"numpy: {other.outcome}")]
            )
        return seen
    found, (result, grads) = seen.value.value, other.value.value
    with np.errstate(all="ignore"):
        findings = list(_compared(case, found, result, grads))
    return Seen(RIGHT, [f for f in seen.findings if f not in other.findings]).having(
        findings, not np.all(result.converged)
    )


def _compared(case: Case, found: dict[str, Any], result: Any, grads: dict[str, np.ndarray]) -> Iterator[Finding]:
    u, value = UNITS[case.dtype][0], case.extra.get("value", "cost")
    each = np.atleast_1d(np.asarray(getattr(result, value), dtype=np.float64))
    pairs = [("the loss", np.asarray(found["loss"]), each.sum(), float(np.abs(each).sum()))]
    for k in INPUTS:
        if k in found:
            wanted = grads[k].sum() if k == "eps" else grads[k]
            size = float(np.abs(grads[k]).max()) * len(each)
            if k == "eps":  # a sum over the plan whose terms may cancel, each of the size of a cost over eps
                size += float(np.abs(np.asarray(result.reg_cost, dtype=np.float64)).sum()) / case.options["eps"]
            pairs.append((f"the gradient by {k}", found[k], wanted, size))
    for name, claim, wanted, size in pairs:
        claim = np.asarray(claim, dtype=np.float64)
        if np.array_equal(claim, wanted, equal_nan=not (np.asarray(result.error) < 1).all()):
            continue  # as NumPy's; only potentials that are none of the problem have gradients that are no numbers
        if not np.isfinite(claim).all():
            yield Finding(NAN, f"{name} is finite", str(claim.tolist()), str(np.asarray(wanted).tolist()))
        elif not np.abs(claim - wanted).max() <= 64 * u * size + 1e-300:
            yield Finding(WRONG, f"{name} is that of NumPy", str(claim.tolist()), str(np.asarray(wanted).tolist()))
