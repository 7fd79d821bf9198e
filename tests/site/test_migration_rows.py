"""Rows of docs/migration.md as they are printed: the call on the left and the one on the right are run, and agree."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy import sqrt

import cusink

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migration.md"

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the other libraries

POT = [  # the first call of the row
    "ot.sinkhorn(a, b, M, reg)",
    "ot.sinkhorn2(a, b, M, reg)",
    "ot.sinkhorn2(a, B, M, reg)",
    "ot.solve_sample(X, Y, a, b, reg=reg, debias=True).value",
    "ot.solve_bary_sample(Xs, n, weights_of_each, w, X_b_init=X0, reg=reg).X",
    "ot.bregman.free_support_sinkhorn_barycenter(Xs, weights_of_each, X0, reg, weights=w)",
    "ot.bregman.empirical_sinkhorn(x, y, reg)",
    "ot.bregman.convolutional_barycenter2d(images, reg, weights)",
    "ot.unbalanced.sinkhorn_unbalanced(a, b, M, reg, reg_m)",
]
WITHIN = [  # the right side encloses the left
    "ot.emd2(a, b, M)",
    "ot.solve(M, a, b, unbalanced=rho).value",
    'ot.unbalanced.mm_unbalanced2(a, b, M, reg_m, div="kl", returnCost="total")',
    'ot.unbalanced.lbfgsb_unbalanced2(a, b, M, 0, reg_m, regm_div="kl", returnCost="total")',
]
GEOMLOSS = [  # the beginning of the row, and the loss
    ('SamplesLoss("sinkhorn", p=2, blur=s)`', 'SamplesLoss("sinkhorn", p=2, blur=s)'),
    ('SamplesLoss("sinkhorn", p=1, blur=s)`', 'SamplesLoss("sinkhorn", p=1, blur=s)'),
    ("debias=False`, p = 2 |", 'SamplesLoss("sinkhorn", p=2, blur=s, debias=False)'),
    ("debias=False`, p = 1 |", 'SamplesLoss("sinkhorn", p=1, blur=s, debias=False)'),
    ('SamplesLoss("gaussian", blur=s)`', 'SamplesLoss("gaussian", blur=s)'),
    ('SamplesLoss("laplacian", blur=s)`', 'SamplesLoss("laplacian", blur=s)'),
    ('SamplesLoss("energy")`', 'SamplesLoss("energy")'),
]
OTT = "linear.solve(geom, a, b, tau_a=ta, tau_b=tb)"


def printed(beginning):
    """Return the first code in the right cell of the row whose left cell begins with this."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(f"| `{beginning}")]
    assert len(rows) == 1, f"{len(rows)} rows begin with {beginning}"
    cells = re.split(r"(?<!\\)\|", rows[0])
    return re.search("`([^`]+)`", cells[2])[1]


def names():
    """Return what the rows' names stand for."""
    rng = np.random.default_rng(0)
    corners = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    points = [np.tile(corners, (n, 1)) + 0.3 * rng.normal(size=(4 * n, 2)) for n in (3, 2)]
    x, y = rng.normal(size=(2, 8, 2))
    a, b = rng.dirichlet(np.ones(8), size=2)
    given = {"a": a, "b": b, "x": x, "y": y, "X": x, "Y": y, "M": rng.random((8, 8)), "C": rng.random((8, 8))}
    given |= {"B": rng.dirichlet(np.ones(8), size=3).T, "reg": 0.5, "reg_m": 0.3, "rho": 0.3, "eps": 0.2, "small": 1e-3}
    given |= {"Xs": points, "weights_of_each": [np.full(len(p), 1 / len(p)) for p in points], "w": np.array([0.4, 0.6])}
    given |= {"X0": corners + 0.1, "n": 4, "s": 1.0, "ta": 0.9, "tb": 0.8, "np": np, "sqrt": sqrt, "h": 6, "K": 2}
    given |= {"images": rng.dirichlet(np.ones(36), size=2).reshape(2, 6, 6), "weights": np.array([0.4, 0.6])}
    return {name: getattr(cusink, name) for name in cusink.__all__} | given


def run(code, **more):
    """Evaluate a call of the page."""
    given = names() | more
    if "Grid((h, w)" in code:
        given["w"] = 6  # the width there, not a share
    return eval(code, given)


@pytest.mark.parametrize("left", POT)
def test_a_row_of_pot(left):
    ot = pytest.importorskip("ot")
    ours, theirs = run(printed(f"{left}`")), run(left, ot=ot)
    ours = ours.barycenter.reshape(6, 6) if isinstance(ours, cusink.Barycenter) else ours
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=5e-3 if "bary" in left else 1e-6)


@pytest.mark.parametrize("left", WITHIN)
def test_bounds_enclose_a_row_of_pot(left):
    ot = pytest.importorskip("ot")
    low, high = run(printed(f"{left}`"))
    assert low - 1e-6 <= run(left, ot=ot) <= high + 1e-6 and high - low < 0.01


@pytest.mark.parametrize(("beginning", "left"), GEOMLOSS)
def test_a_row_of_geomloss(beginning, left):
    torch, geomloss = pytest.importorskip("torch"), pytest.importorskip("geomloss")

    def criterion(*given, **options):
        return geomloss.SamplesLoss(*given, scaling=0.99, backend="tensorized", **options)

    theirs = run(left, SamplesLoss=criterion)(*map(torch.as_tensor, (names()[name] for name in "axby")))
    np.testing.assert_allclose(run(printed(beginning)), float(theirs), rtol=2e-3)


def test_the_row_of_unbalanced_transport_of_ott():
    linear, geometry = (pytest.importorskip(f"ott.{name}") for name in ("solvers.linear", "geometry.geometry"))
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        given = names()
        out = run(OTT, linear=linear, geom=geometry.Geometry(given["C"], epsilon=given["eps"]))
        np.testing.assert_allclose(run(printed(f"{OTT}`")).plan(), out.matrix, atol=1e-3)
