"""The sentence example: what it looks up, and its measures beside slow ones."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "examples").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
pytest.importorskip("gensim")
pytest.importorskip("wordllama")
sys.path.insert(0, str(SCRIPTS))

from examples import sentences  # noqa: E402


def test_the_sentences_are_the_ends_of_the_texts():
    corpus = sentences.read_corpus()
    last, first = sentences.read_sentences(corpus)
    assert len(last.texts) == len(first.texts) == 348
    words = [set(text) for text in corpus.texts]
    assert any(set(last.texts[0]) <= text and set(first.texts[0]) <= text for text in words)
    assert "moved" not in first.texts[0] and all(last.texts) and all(first.texts)
    assert {"democrats", "ridgeway"} <= set(first.texts[0]) | set(last.texts[0])


def test_found_counts_the_own_column():
    D = np.array([[0.0, 1, 2], [0, 1, 2], [2, 0, 1]])
    assert sentences.found(D)[0] == pytest.approx(1 / 3)
    assert sentences.found(D)[1] == 1


def test_by_people_is_the_share_of_common_neighbours():
    rng = np.random.default_rng(0)
    D, judged = rng.random((2, 12, 12))
    want = []
    for k in sentences.RANKS:
        shares = []
        for i in range(12):
            others = [j for j in range(12) if j != i]
            near = sorted(others, key=lambda j: D[i, j])[:k]
            alike = sorted(others, key=lambda j: -judged[i, j])[:k]
            shares.append(len(set(near) & set(alike)) / k)
        want.append(np.mean(shares))
    np.testing.assert_allclose(sentences.by_people(D, judged), want)


def test_bad_input_is_one_line(capsys):
    assert sentences.main(["--eps", "-1"]) == 2
    assert capsys.readouterr().err.startswith("sentences: argument --eps")
