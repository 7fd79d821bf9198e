"""Kernel distances of histograms: over points that are given as a cost, and over the cells of grids."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import cusink  # noqa: E402
import cusink.torch as bridge  # noqa: E402

KERNELS = ("gaussian", "laplace", "energy", "exponential", "distance")


def images(*shape):
    torch.manual_seed(1)
    return torch.rand(2, *shape, dtype=torch.float64).flatten(1).softmax(1).reshape(2, *shape)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("spacing", [(0.5, 2.0), ((0.5, 1.5, 0.25), 2.0)])
def test_images_over_a_grid_are_weighted_cells(kernel, spacing):
    a, b = images(4, 5)
    rows = np.cumsum([0, *np.broadcast_to(spacing[0], 3)])
    cells = np.stack(np.meshgrid(rows, 2.0 * np.arange(5), indexing="ij"), -1).reshape(-1, 2)
    want = cusink.kernel_distance(cells, a.numpy().ravel(), cells, b.numpy().ravel(), kernel=kernel, scale=0.7)
    loss = bridge.KernelDistance(kernel, 0.7)
    of_tensors = tuple(torch.tensor(x, dtype=torch.float64) for x in spacing)
    grids = [cusink.Grid((4, 5), spacing=spacing), bridge.Grid((4, 5), spacing=of_tensors)]
    for C in grids:
        for given in ((a, b), (a.flatten(), b.flatten()), (torch.stack([a, a]), torch.stack([b, b]))):
            np.testing.assert_allclose(loss(*given, C), want, rtol=1e-12, atol=1e-15)


def test_a_spacing_and_weights_are_learnt():
    a, b = (x.clone().requires_grad_() for x in images(3, 4))
    spacing = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    loss = bridge.KernelDistance("gaussian", 0.8)
    assert torch.autograd.gradcheck(
        lambda a, b, spacing: loss(a, b, bridge.Grid((3, 4), spacing=(spacing, 1.0))), (a, b, spacing)
    )


def test_histograms_over_clouds():
    a, b = images(6)
    x, y = torch.rand(2, 6, 3, dtype=torch.float64)
    loss = bridge.KernelDistance("energy")
    assert loss(a, b, bridge.PointCloud(x, y)) == loss(a, x, b, y)
    assert loss(a, b, bridge.PointCloud(x)) == loss(a, x, b, x)


def test_what_is_no_set_of_points_is_refused():
    a, b = images(6)
    loss = bridge.KernelDistance()
    with pytest.raises(TypeError, match="'C' must be a cusink.torch.PointCloud, .*; got torch.Tensor"):
        loss(a, b, torch.rand(6, 6))
    with pytest.raises(ValueError, match="no axis of a grid is periodic"):
        loss(a, b, cusink.Grid(6, periodic=True))
    with pytest.raises(TypeError, match="'a' must be a tensor"):
        loss(None, b, cusink.Grid(6))
    with pytest.raises(ValueError, match="'a' must have shape"):
        loss(a[:5], b, cusink.Grid(6))
