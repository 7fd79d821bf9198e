"""The document example: the corpus as it is shipped, the tables, the picture, and the benchmark's judgement."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from scipy.spatial.distance import cdist

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "examples").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
pytest.importorskip("gensim")
pytest.importorskip("wordllama")
sys.path.insert(0, str(SCRIPTS))

from examples import documents as lee  # noqa: E402


@pytest.fixture(scope="module")
def corpus():
    return lee.read_corpus()


@pytest.fixture(scope="module")
def smaller(corpus):
    return replace(corpus, texts=corpus.texts[:75])


def exact(corpus, pairs):
    """Return the exact distances by SciPy's linear program: gensim's takes seconds to start."""
    rows, found = lee.shares(corpus), []
    for i, j in pairs:
        (a, x), (b, y) = ((rows[[k]].data.astype(float), corpus.vectors[rows[[k]].indices]) for k in (i, j))
        found.append(reference.exact_cost(a / a.sum(), b / b.sum(), cdist(x, y)))
    return np.array(found), 1.0


def test_the_corpus_is_the_shipped_one(corpus):
    assert len(corpus.texts) == 350 and corpus.vectors.shape == (len(corpus.vocabulary), 256)
    assert corpus.judgements.shape == (50, 50) and (np.diag(corpus.judgements) == 1).all()
    np.testing.assert_array_equal(corpus.judgements, corpus.judgements.T)
    np.testing.assert_allclose(np.linalg.norm(corpus.vectors, axis=1), 1, rtol=1e-5)
    vector = dict(zip(corpus.vocabulary, corpus.vectors, strict=True))
    near, far = vector["police"] @ vector["officers"], vector["police"] @ vector["drought"]
    assert near > far + 0.2


def test_documents_are_the_shares_of_their_words(corpus):
    rows = lee.shares(corpus)
    first = dict(zip((corpus.vocabulary[k] for k in rows[[0]].indices), rows[[0]].data, strict=True))
    words = corpus.texts[0]
    assert first == pytest.approx({word: words.count(word) / len(words) for word in words})
    for table in (rows, lee.tfidf_shares(corpus)):
        np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    plain, weighted = rows[[0]].toarray()[0], lee.tfidf_shares(corpus)[[0]].toarray()[0]
    words = np.flatnonzero(plain)
    words = words[np.argsort((rows > 0).sum(axis=0)[words], kind="stable")]  # those in few texts first
    weighing = weighted[words] / plain[words]
    assert (np.diff(weighing) <= 1e-6).all() and weighing[0] > 2 * weighing[-1]


def test_agreement_rewards_nearness():
    judgements = np.random.default_rng(0).random((50, 50))
    assert lee.agreement(-judgements, judgements) == pytest.approx((1, 1))
    assert lee.agreement(judgements, judgements) == pytest.approx((-1, -1))


def test_the_run_prints_its_tables_and_draws(smaller, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lee, "read_corpus", lambda: smaller)
    monkeypatch.setattr(lee, "exact_distances", exact)
    assert lee.main(["--sample", "4", "--output", str(tmp_path / "deep" / "lee.png")]) == 0
    said = capsys.readouterr().out
    assert "50 x 75 pairs" in said and "3750 converged" in said
    table = {
        line[:44].strip(): line[44:].split() for line in said.splitlines() if line.startswith(("TF", "mean", "Sin"))
    }
    pearson = {name: float(values[0]) for name, values in table.items() if len(values) == 2}
    assert pearson["Sinkhorn, cosine cost, TF-IDF weights"] > pearson["TF-IDF cosine"] > 0.5
    above = [float(part.split("%")[0].split()[-1]) for part in said.split("exact distance by")[1].split(",")[:2]]
    assert 0 < above[0] <= above[1] <= 2
    image = (tmp_path / "deep" / "lee.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 20_000


def test_a_missing_package_is_named(monkeypatch, capsys):
    def missing():
        raise ImportError("No module named 'gensim'")

    monkeypatch.setattr(lee, "read_corpus", missing)
    assert lee.main([]) == 2
    said = capsys.readouterr().err
    assert said == "documents: No module named 'gensim'; ./scripts/demo documents installs what it needs\n"


def test_the_benchmark_tells_wrong_answers(smaller, monkeypatch, capsys):
    """With the costs doubled nothing is timed; with right ones the table has every competitor."""
    from benchmarks import documents as bench

    class Exact:
        def __init__(self, corpus, rows):
            self.corpus = corpus

        def prepare(self, pairs):
            pass

        def gensim(self, pairs):
            return exact(self.corpus, pairs)[0]

        pot = gensim

    monkeypatch.setattr(bench.lee, "read_corpus", lambda: smaller)
    monkeypatch.setattr(bench, "Exact", Exact)
    few = ["--rounds", "1", "--sample", "3"]
    assert bench.main(few) == 0
    said = capsys.readouterr().out
    assert all(f"| {name} |" in said for name in ("cusink", "gensim wmdistance", "POT emd2, costs at hand"))
    real = bench.distances

    def doubled(*args):
        result = real(*args)
        return SimpleNamespace(distances=2 * result.distances, converged=result.converged, n_iter=result.n_iter)

    monkeypatch.setattr(bench, "distances", doubled)
    assert bench.main(few) == 1
    assert "WRONG: off by" in capsys.readouterr().out
