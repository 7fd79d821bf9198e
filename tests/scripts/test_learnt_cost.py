"""The example that learns a cost: its gradient beside differences, its measures beside slow ones, a small run."""

import sys
from pathlib import Path

import numpy as np
import pytest
import reference

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "examples").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
pytest.importorskip("sklearn")
sys.path.insert(0, str(SCRIPTS))

from examples import learnt_cost  # noqa: E402

EPS = 0.1


@pytest.fixture
def triplets():
    """Images (2, 64), three near ones of each kind, in float64."""
    _, _, images, digits = learnt_cost.draw_images(0)
    images = images.astype(float)
    images /= images.sum(axis=1, keepdims=True)
    first, second = np.flatnonzero(digits == 3)[:4], np.flatnonzero(digits == 8)[:4]
    same = np.stack([images[first[1:]], images[second[1:]]])
    return images[[first[0], second[0]]], same, same[::-1]


def test_the_images_do_not_overlap():
    queries, query_digits, corpus, digits = learnt_cost.draw_images(1)
    assert queries.shape == corpus.shape == (300, 64) and len(query_digits) == len(digits) == 300
    assert len(np.unique(np.concatenate([queries, corpus]), axis=0)) == 600
    assert not np.array_equal(queries, learnt_cost.draw_images(2)[0])


def test_the_cost_is_symmetric_and_its_parameters_are_its_inverse():
    start = learnt_cost.cut(2.0)
    assert start[0, 1] == 0.5 and start[0, 63] == start.max() == 1
    np.testing.assert_allclose(learnt_cost.cost(learnt_cost.parameters(start)), start, rtol=0, atol=1e-14)
    theta = np.full((64, 64), -40.0)  # far down a softplus is still not negative
    assert (learnt_cost.cost(theta) >= 0).all() and (np.diag(learnt_cost.cost(theta)) == 0).all()


def test_the_loss_is_its_definition(triplets, monkeypatch):
    monkeypatch.setattr(learnt_cost, "TOL", 1e-8)
    images, same, other = (array[:1] for array in triplets)
    C = learnt_cost.cut(2.0)

    def d(a, b):
        return reference.optimum(a, b, C, EPS)[1]

    gaps = [d(images[0], s) - d(images[0], o) for s in same[0] for o in other[0]]
    want = np.mean([np.log1p(np.exp(gap / learnt_cost.TEMPERATURE)) for gap in gaps])
    got, _ = learnt_cost.loss_and_gradient(learnt_cost.parameters(C), images, same, other, EPS)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_gradient_is_that_of_differences(triplets, monkeypatch):
    monkeypatch.setattr(learnt_cost, "TOL", 1e-11)
    theta = learnt_cost.parameters(learnt_cost.cut(2.0))
    _, gradient = learnt_cost.loss_and_gradient(theta, *triplets, EPS)
    assert np.array_equal(gradient, gradient.T) and (np.diag(gradient) == 0).all()
    rng = np.random.default_rng(0)
    upper = np.triu(rng.normal(size=(64, 64)), 1)
    step = 1e-4
    # A parameter stands in both triangles, and the gradient counts it once.
    above, below = (
        learnt_cost.loss_and_gradient(theta + sign * step * (upper + upper.T), *triplets, EPS)[0] for sign in (1, -1)
    )
    slope = (gradient * upper).sum()
    assert abs(slope) > 1e-3
    np.testing.assert_allclose((above - below) / (2 * step), slope, rtol=1e-5)


def test_precision_counts_the_nearest():
    D = np.array([[3.0, 1, 2, *range(4, 12)]])
    digits = np.array([5, 7, 5, 5, *[7] * 7])
    got = learnt_cost.precision(D, digits, np.array([5]))
    np.testing.assert_allclose(got[[0, 1, 2, 9]], [0, 1 / 2, 2 / 3, 3 / 10])


def test_near_ones_are_of_the_right_digits(monkeypatch):
    _, _, images, digits = learnt_cost.draw_images(0)
    images, digits = images[:40], digits[:40]
    keep = np.isin(digits, np.flatnonzero(np.bincount(digits) > 2))
    images, digits = images[keep], digits[keep]
    monkeypatch.setattr(learnt_cost, "NEAR_OTHER", 5)
    same, other = learnt_cost.near_ones(images, digits, learnt_cost.cut(2.0), EPS)
    rows = np.arange(len(images))[:, None]
    assert (digits[same] == digits[:, None]).all() and (same != rows).all()
    assert (digits[other] != digits[:, None]).all() and other.shape == (len(images), 5)


def test_a_small_run_learns_and_says_so(tmp_path, capsys, monkeypatch):
    for name, value in {"KNOWN": 80, "HELD_OUT": 20, "EACH": 2, "NEAR_OTHER": 10}.items():
        monkeypatch.setattr(learnt_cost, name, value)
    output = tmp_path / "new" / "picture.png"
    assert learnt_cost.main(["--steps", "12", "--draws", "1", "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in out.splitlines() if line.startswith("| ")}
    assert {"L2", "Euclidean cost", learnt_cost.START, learnt_cost.LEARNT} <= set(rows)

    queries, query_digits, corpus, digits = learnt_cost.draw_images(1)
    D = ((queries[:, None].astype(float) - corpus) ** 2).sum(axis=2)
    hits = digits[np.argsort(D, axis=1, kind="stable")] == query_digits[:, None]
    want = [f" {hits[:, :k].mean():.3f} ± 0.000 " for k in (1, 5, 10)]
    assert rows["L2"] == want

    # What it learnt lowers the loss on the images that it learnt from.
    given = learnt_cost.parse(["--steps", "12"])
    C, losses = learnt_cost.learn(corpus, digits, np.random.default_rng(1), given)
    assert len(losses) == 12 and np.array_equal(C, C.T)
    near = learnt_cost.near_ones(corpus, digits, learnt_cost.cut(2.0), EPS)
    same, other = (corpus[index[:, :2]] for index in near)
    before, after = (
        learnt_cost.loss_and_gradient(learnt_cost.parameters(cost), corpus, same, other, EPS)[0]
        for cost in (learnt_cost.cut(2.0), C)
    )
    assert after < 0.9 * before


def test_bad_input_is_one_line(capsys):
    for arguments in (["--eps", "-1"], ["--steps", "0"]):
        assert learnt_cost.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("learnt_cost: ") and err.count("\n") == 1
