"""Images beside a grid, and weights that a call normalises: each against the same call on bins of one mass."""

import numpy as np
import pytest

import cusink

RNG = np.random.default_rng(3)
CELLS = (3, 4)
GRID = cusink.Grid(CELLS)
A, B = RNG.integers(0, 9, (2, *CELLS)).astype(np.uint8), RNG.integers(0, 9, (2, *CELLS)).astype(np.uint8)
HOW = {"eps": 0.5, "tol": 1e-9}


def bins(images):
    rows = images.reshape(len(images), -1).astype(float)
    return rows / rows.sum(axis=1, keepdims=True)


def same(image, row):
    assert image.shape[-2:] == CELLS
    np.testing.assert_allclose(image.reshape(row.shape), row, rtol=1e-10, atol=1e-12)


def test_a_solve_and_all_derivatives_of_images_are_those_of_bins():
    of_images = cusink.sinkhorn(A, B, GRID, normalise=True, **HOW)
    of_bins = cusink.sinkhorn(bins(A), bins(B), GRID, **HOW)
    np.testing.assert_allclose(of_images.cost, of_bins.cost, rtol=1e-12)
    for name in "fg":
        same(getattr(of_images, name), getattr(of_bins, name))
    v = RNG.random((2, *CELLS))
    for axis in (0, 1):
        same(of_images.apply(v, axis), of_bins.apply(v.reshape(2, -1), axis))
        same(of_images.barycentric_map(v, axis), of_bins.barycentric_map(v.reshape(2, -1, 1), axis)[..., 0])
    found = cusink.sinkhorn_adjoint(of_images, grad_cost=1.0, grad_f=v)
    wanted = cusink.sinkhorn_adjoint(of_bins, grad_cost=1.0, grad_f=v.reshape(2, -1))
    moved = cusink.sinkhorn_jvp(of_images, da=v), cusink.sinkhorn_jvp(of_bins, da=v.reshape(2, -1))
    same(moved[0].f, moved[1].f)
    curved = cusink.sinkhorn_hvp(of_images, grad_reg_cost=1.0, db=v)
    expected = cusink.sinkhorn_hvp(of_bins, grad_reg_cost=1.0, db=v.reshape(2, -1))
    for name in "ab":
        same(getattr(found, name), getattr(wanted, name))
        same(getattr(curved, name), getattr(expected, name))
    again = cusink.sinkhorn(A, B, GRID, normalise=True, init=(of_images.f, of_images.g), **HOW)
    assert again.n_iter.max() < of_images.n_iter.max()
    known = cusink.SinkhornResult.from_potentials(
        bins(A).reshape(A.shape), bins(B).reshape(B.shape), GRID, eps=0.5, g=of_images.g
    )
    same(known.f, of_bins.f)


def test_one_image_beside_uniform_weights_and_bins_on_the_other_side():
    alone = cusink.sinkhorn(A[0], None, GRID, normalise=True, **HOW)
    assert alone.f.shape == alone.g.shape == CELLS and alone.cost.shape == ()
    mixed = cusink.sinkhorn(A[0], bins(B)[0], GRID, normalise=True, **HOW)
    assert mixed.f.shape == CELLS and mixed.g.shape == (12,)
    volume = cusink.sinkhorn(np.ones((2, 2, 3)), None, cusink.Grid((2, 2, 3)), normalise=True, eps=1.0)
    assert volume.f.shape == (2, 2, 3)
    flat = cusink.sinkhorn(np.ones((1, 5)) / 5, None, cusink.Grid((1, 5)), eps=1.0)
    assert flat.cost.shape == (1,)  # bins where both can be meant


def test_a_divergence_of_images_and_its_derivatives():
    how = HOW | {"reach": 2.0}
    of_images = cusink.sinkhorn_divergence(A, B, GRID, normalise=True, **how)
    of_bins = cusink.sinkhorn_divergence(bins(A), bins(B), GRID, **how)
    for name in ("f", "g", "f_self", "g_self"):
        same(getattr(of_images, name), getattr(of_bins, name))
    v = RNG.random((2, *CELLS))
    pairs = (
        (cusink.sinkhorn_divergence_adjoint(of_images), cusink.sinkhorn_divergence_adjoint(of_bins)),
        (
            cusink.sinkhorn_divergence_hvp(of_images, da=v, db=v),
            cusink.sinkhorn_divergence_hvp(of_bins, da=v.reshape(2, -1), db=v.reshape(2, -1)),
        ),
    )
    for found, wanted in pairs:
        same(found.a, wanted.a)
        same(found.b, wanted.b)


def test_a_barycenter_of_images():
    of_images = cusink.barycenter(A, GRID, normalise=True, **HOW)
    of_bins = cusink.barycenter(bins(A), GRID, **HOW)
    same(of_images.barycenter, of_bins.barycenter)
    grad = RNG.random(CELLS)
    found = cusink.barycenter_adjoint(of_images, grad_barycenter=grad)
    wanted = cusink.barycenter_adjoint(of_bins, grad_barycenter=grad.reshape(-1))
    same(found.A, wanted.A)


def test_measures_are_normalised_one_by_one():
    points, counts = RNG.random((7, 2)), np.array([1, 2, 3, 4, 5, 6, 7])
    clouds = cusink.Measures([0, 3, 7], counts, points)
    found = cusink.sinkhorn(clouds, clouds, "sqeuclidean", eps=0.1, normalise=True)
    wanted = cusink.sinkhorn(clouds.normalised(), clouds.normalised(), "sqeuclidean", eps=0.1)
    np.testing.assert_array_equal(found.cost, wanted.cost)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cusink.sinkhorn(A[:, :2], B, GRID, eps=1.0),
            r"'a' must have shape \(3, 4\) or \(B, 3, 4\) to match C",
        ),
        (lambda: cusink.sinkhorn(A, B[0].T, GRID, eps=1.0), r"'b' must .* or 12 bins in the place .* got \(4, 3\)"),
        (lambda: cusink.sinkhorn_divergence(A[None], B, GRID, eps=1.0), r"'a' must have shape .* got \(1, 2, 3, 4\)"),
        (lambda: cusink.barycenter(A[0], GRID, eps=1.0), r"'A' must have shape \(K, 3, 4\) or \(B, K, 3, 4\)"),
        (lambda: cusink.distance_matrix(A[0], B, GRID, eps=1.0), r"'A' must have shape \(Q, 3, 4\)"),
        (lambda: cusink.sinkhorn(A * 0, B, GRID, eps=1.0, normalise=True), "'a' must have a positive sum; row 0"),
        (lambda: cusink.sinkhorn(A, B * 2, GRID, eps=1.0), "normalise=True divides each by its sum"),
    ],
)
def test_bad_images_and_masses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
