"""The distance matrix and the digits of scripts/examples/: what they compute, and what they say."""

import sys
from pathlib import Path

import numpy as np
import pytest
import reference

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from examples import binwise, matrix  # noqa: E402
from examples import digits as demo  # noqa: E402

# The distance matrix of two files


def test_the_matrix_of_two_files_of_images(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 9, (count, 3, 4)) for count in (2, 6)]
    for name, array in zip(("queries.npy", "corpus.npy"), images, strict=True):
        np.save(name, array)
    matrix.main(["queries.npy", "corpus.npy", "--eps", "0.05", "-o", "D.npy"])
    cells = np.array([(i, j) for i in range(3) for j in range(4)])
    C = ((cells[:, None] - cells) ** 2).sum(axis=2) / 13
    A, B = (x.reshape(len(x), -1) / x.sum(axis=(1, 2))[:, None] for x in images)
    want = np.array([[reference.optimum(a, b, C, 0.05)[0] for b in B] for a in A])
    np.testing.assert_allclose(np.load("D.npy"), want, rtol=0, atol=1e-5)
    assert f"D.npy: 2 x 6; nearest to the first query: {np.argsort(want[0])[:5].tolist()}" in capsys.readouterr().out


# The retrieval demonstration


def test_the_split_is_the_documented_one():
    queries, query_digits, corpus, corpus_digits = demo.split_digits()
    assert queries.shape == (100, 64) and corpus.shape == (1697, 64)
    np.testing.assert_allclose(np.concatenate([queries, corpus]).sum(axis=1), 1, rtol=1e-12)
    assert len(np.unique(np.concatenate([queries, corpus]), axis=0)) == 1797
    assert set(query_digits) == set(corpus_digits) == set(range(10))


def test_the_distances_are_their_definitions():
    a, b = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]])
    got = {name: distance(a, b) for name, distance in binwise.BINWISE.items()}
    assert got["L1"].tolist() == [[0.5, 0.0]]
    np.testing.assert_allclose(got["L2"], [[np.sqrt(2) / 4, 0.0]])
    np.testing.assert_allclose(got["chi-square"], [[0.0625 / 0.75 + 0.25, 0.0]])
    np.testing.assert_allclose(got["Hellinger"], [[np.sqrt(1 - np.sqrt(0.125) - 0.5), 0.0]], atol=1e-12)


def test_the_demonstration_tells_what_a_plain_search_finds(tmp_path, capsys, monkeypatch):
    ot = pytest.importorskip("ot")
    queries, query_digits, corpus, corpus_digits = demo.split_digits()
    some = [np.flatnonzero(query_digits == digit)[0] for digit in range(10)]
    few = (queries[some], query_digits[some], corpus[:40], corpus_digits[:40])
    monkeypatch.setattr(demo, "split_digits", lambda: few)
    picture = tmp_path / "new" / "sheet.png"
    arguments = ["--device", "cpu", "--dtype", "float64", "--tol", "1e-6", "--output", str(picture)]
    assert demo.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Picture: {picture}" and picture.read_bytes().startswith(b"\x89PNG")
    assert "400 of 400 pairs converged" in "".join(lines) and any("per thousand pairs" in line for line in lines)
    printed = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in lines[-7:-2]}

    cells = np.array([(i, j) for i in range(8) for j in range(8)])
    C = ((cells[:, None] - cells) ** 2).sum(axis=2) / 98

    def by_pot(a, b):
        # POT's plain iteration is right here, if it does not see the empty bins.
        inside = C[np.ix_(a > 0, b > 0)]
        return (ot.sinkhorn(a[a > 0], b[b > 0], inside, 0.01, stopThr=1e-9, numItermax=10000) * inside).sum()

    distances = {
        "Sinkhorn": by_pot,
        "L2": lambda a, b: ((a - b) ** 2).sum(),
        "L1": lambda a, b: abs(a - b).sum(),
        "chi-square": lambda a, b: sum((x - y) ** 2 / (x + y) for x, y in zip(a, b, strict=True) if x + y > 0),
        "Hellinger": lambda a, b: ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(),
    }
    assert list(printed) == list(distances)
    for name, distance in distances.items():
        hits = []
        for a, digit in zip(few[0], few[1], strict=True):
            order = sorted(range(40), key=lambda i: distance(a, few[2][i]))
            hits.append([corpus_digits[i] == digit for i in order[:10]])
        expected = [np.mean([row[:k] for row in hits]) for k in (1, 5, 10)]
        np.testing.assert_allclose(printed[name], expected, rtol=0, atol=5.1e-4, err_msg=name)


def test_every_digit_against_all_others(tmp_path, capsys, monkeypatch):
    queries, query_digits, *_ = demo.every_digit()
    assert queries.shape == (1797, 64)
    few = (queries[:40], query_digits[:40])
    monkeypatch.setattr(demo, "every_digit", lambda: few * 2)
    arguments = ["--all", "--device", "cpu", "--dtype", "float64", "--output", str(tmp_path / "sheet.png")]
    assert demo.main(arguments) == 0
    out = capsys.readouterr().out
    assert "40 images against each other = 820 pairs" in out and "820 of 820 pairs converged" in out
    printed = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in out.splitlines()[-7:-2]}
    apart = abs(few[0][:, None] - few[0]).sum(axis=2) + np.diag(np.full(40, np.inf))
    hits = few[1][np.argsort(apart, axis=1, kind="stable")] == few[1][:, None]
    np.testing.assert_allclose(printed["L1"], [hits[:, :k].mean() for k in (1, 5, 10)], rtol=0, atol=5.1e-4)


def test_the_demonstration_refuses_bad_input_in_one_line(capsys):
    assert demo.main(["--eps", "-1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("digits: argument --eps") and err.count("\n") == 1


def test_the_picture_counts_right_and_wrong_neighbours(tmp_path):
    queries, query_digits, corpus, corpus_digits = demo.split_digits()
    paths = [tmp_path / "right.png", tmp_path / "wrong.png"]
    found = np.array([[0, 1, 2], [3, 4, 5]])
    for path, offset in zip(paths, (0, 1), strict=True):
        digits = np.arange(10)[corpus_digits].copy()
        digits[found] = (query_digits[:2, None] + offset) % 10
        demo.draw(path, queries[:2], query_digits[:2], corpus, digits, found, 0.01)
    import matplotlib.image

    from cusink.plot import style as draw

    def share(path, colour):
        rgb = matplotlib.image.imread(path)[..., :3]
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return (abs(rgb - wanted).max(axis=2) < 0.02).mean()

    assert share(paths[0], draw.RIGHT) > 0.003 and share(paths[0], draw.WRONG) == 0
    assert share(paths[1], draw.WRONG) > 0.003 and share(paths[1], draw.RIGHT) == 0
