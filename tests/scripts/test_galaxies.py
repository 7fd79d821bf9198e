"""The demonstration: its exposures, its histograms, and its tables beside a plain search."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import rel_entr

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "examples").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
pytest.importorskip("skimage")
sys.path.insert(0, str(SCRIPTS))

from examples import binwise, galaxies  # noqa: E402


@pytest.fixture(scope="module")
def sky():
    return galaxies.deep_field()


def test_the_photograph_is_the_shipped_one(sky):
    assert sky.shape == (872, 1000, 3) and sky.dtype == np.uint8
    assert np.median(sky) < 20 and sky.max() == 255  # a black sky, and stars


@pytest.mark.parametrize(("rows", "columns", "step", "move"), [(13, 15, 64, 5), (20, 23, 41, 6)])
def test_fields_stay_inside_after_every_move(sky, rows, columns, step, move):
    corners = galaxies.places(sky, rows, columns, step)
    assert len(np.unique(corners, axis=0)) == rows * columns
    assert (np.diff(np.unique(corners[:, 0])) == step).all() and (np.diff(np.unique(corners[:, 1])) == step).all()
    assert corners.min() - move >= 0
    assert (corners.max(axis=0) + move + galaxies.SIDE <= sky.shape[:2]).all()


def test_an_exposure_is_the_sky_at_a_moved_place(sky, monkeypatch):
    monkeypatch.setattr(galaxies, "NOISE", 0.0)
    corners = np.full((200, 2), 300)
    exposures = galaxies.expose(sky, corners, 2, np.random.default_rng(0))
    places = [
        [(y, x) for y in range(298, 303) for x in range(298, 303) if (sky[y : y + 64, x : x + 64] == one).all()]
        for one in exposures
    ]
    assert all(len(found) == 1 for found in places)
    assert len({found[0] for found in places}) == 25  # every move occurs


def test_histograms_are_the_light_above_the_sky():
    exposure = np.full((1, 64, 64, 3), 7.0, np.float32)
    exposure[0, 10, 13] += 30  # cell (2, 3)
    exposure[0, 63, 0] += 10  # cell (15, 0)
    exposure[0, 40, 40] -= 5  # darker than the sky
    want = np.zeros((16, 16))
    want[2, 3], want[15, 0] = 0.75, 0.25
    np.testing.assert_allclose(galaxies.histograms(exposure, 7.0)[0].reshape(16, 16), want, atol=1e-6)


def plain_sinkhorn(a, b, C, eps):
    """Return <a, f> + <b, g> after many iterations."""
    K, v = np.exp(-C / eps), b.copy()
    for _ in range(200):
        u = a / (K @ v)
        v = b / (u @ K)
    return -eps * (rel_entr(a, u).sum() + rel_entr(b, v).sum())


def plain_with_reach(a, b, C, eps, rho):
    """Return the dual objective of unbalanced transport after many damped iterations."""
    K, v = np.exp(-C / eps), np.ones(len(b))
    for _ in range(400):
        u = (K @ (b * v)) ** (-rho / (rho + eps))
        v = ((a * u) @ K) ** (-rho / (rho + eps))
    left_behind = sum(rho * (w * (1 - x ** (-eps / rho))).sum() for w, x in ((a, u), (b, v)))
    return left_behind + eps * (a.sum() * b.sum() - (a * u) @ K @ (b * v))


def test_the_tables_are_those_of_a_plain_search(sky, tmp_path, capsys, monkeypatch):
    """On few fields, against plain Sinkhorn iterations in float64, and sums over bins."""
    pytest.importorskip("ot")
    monkeypatch.setattr(galaxies, "QUERIES", 12)
    seen = []

    def few(sky, rng):
        fields = galaxies.places(sky, 3, 4, 64)
        names = np.repeat(np.arange(12), 3)
        search = galaxies.Search(
            galaxies.expose(sky, fields, 5, rng),
            np.arange(12),
            galaxies.expose(sky, fields[names], 5, rng),
            names,
            13.0,
        )
        seen.append(search)
        return search

    monkeypatch.setattr(galaxies, "exposures_search", few)
    monkeypatch.setattr(galaxies, "single_search", few)
    picture = tmp_path / "new" / "sky.png"
    assert (
        galaxies.main(["--rounds", "1", "--sample", "3", "--rows", "2", "--device", "cpu", "--output", str(picture)])
        == 0
    )
    said = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "measured on 3 pairs: all 432 would take" in said
    lines = [
        (line[:34].strip(), line[34:].split())
        for line in said.splitlines()
        if line[:34].strip() in (galaxies.PRICED, galaxies.MET, *binwise.BINWISE)
    ]
    assert len(lines) == 12
    printed = {name: [float(number) for number in numbers[:3]] for name, numbers in lines[:6]}

    A, B = (galaxies.histograms(part, 13.0).astype(float) for part in (seen[0].queries, seen[0].corpus))
    C = np.linalg.norm(np.indices((16, 16)).reshape(2, -1).T[:, None] - np.indices((16, 16)).reshape(2, -1).T, axis=2)
    plain = {
        "Sinkhorn with reach": lambda a, b: plain_with_reach(a / a.sum(), b / b.sum(), C, 0.5, 8.0),
        "Sinkhorn": lambda a, b: plain_sinkhorn(a / a.sum(), b / b.sum(), C, 0.5),
        "L2": lambda a, b: ((a - b) ** 2).sum(),
        "L1": lambda a, b: abs(a - b).sum(),
        "chi-square": lambda a, b: ((a - b)[a + b > 0] ** 2 / (a + b)[a + b > 0]).sum(),
        "Hellinger": lambda a, b: ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(),
    }
    for name, distance in plain.items():
        order = np.argsort([[distance(a, b) for b in B] for a in A], axis=1, kind="stable")
        hits = order // 3 == np.arange(12)[:, None]
        want = [hits[:, :k].mean() for k in (1, 5, 10)]
        np.testing.assert_allclose(printed[name], want, atol=6e-4, err_msg=name)
    assert printed["Sinkhorn"][0] >= printed["L2"][0]


@pytest.mark.parametrize(
    "arguments",
    [["--eps", "0"], ["--reach", "-1"], ["--rounds", "0"], ["--rows", "101"], ["--device", "tpu"], ["--rings"]],
)
def test_bad_input_is_one_line(arguments, capsys):
    assert galaxies.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("galaxies: ") and said.err.count("\n") == 1 and said.out == ""


def test_a_missing_scikit_image_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    assert galaxies.main([]) == 2
    assert "; ./scripts/demo installs what it needs" in capsys.readouterr().err
