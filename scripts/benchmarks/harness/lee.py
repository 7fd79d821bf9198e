"""The Lee corpus of news texts and its word vectors, as their packages ship them, for the document scripts.

What the texts, the judgements and the vectors are is told by ``examples/documents.py``.
"""

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

JUDGED = 50


@dataclass(frozen=True)
class Corpus:
    """The texts as lists of words, the judged ones first; the vocabulary, its unit vectors, and the judgements."""

    texts: list
    vocabulary: list
    vectors: np.ndarray
    judgements: np.ndarray


def read_corpus():
    """Read the texts, the judgements and the word vectors from the packages that ship them."""
    import wordllama

    folder, lines = _lines()
    texts = [_words(line) for line in lines]
    vocabulary = sorted({word for text in texts for word in text})
    # wordllama looks for its files in a folder for downloads first: this is where they came with the package.
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    vectors = np.asarray(model.embed(vocabulary, norm=True), np.float32)
    upper = np.loadtxt(folder / "similarities0-1.txt")
    return Corpus(texts, vocabulary, vectors, np.triu(upper) + np.triu(upper, 1).T)


def read_sentences(corpus):
    """Return the last sentences of the texts as a Corpus, and their first; a text with fewer than two is left out."""
    sentences = [re.split(r"(?<=[.?!])[\"']?\s+(?=[A-Z\"'])", line.strip()) for line in _lines()[1]]
    ends = [(_words(parts[-1]), _words(parts[0])) for parts in sentences if len(parts) > 1]
    last, first = zip(*[pair for pair in ends if all(pair)], strict=True)
    return replace(corpus, texts=list(last)), replace(corpus, texts=list(first))


def _lines():
    """Return gensim's folder of texts, and the texts, one a line."""
    import gensim

    logging.getLogger("gensim").setLevel(logging.WARNING)  # it notes down every pair of documents
    folder = Path(gensim.__file__).parent / "test" / "test_data"
    files = ("lee.cor", "latin-1"), ("lee_background.cor", "utf-8")
    return folder, [
        line for name, encoding in files for line in (folder / name).read_text(encoding=encoding).splitlines()
    ]


def _words(text):
    from gensim.parsing.preprocessing import STOPWORDS
    from gensim.utils import simple_preprocess

    return [word for word in simple_preprocess(text, max_len=30) if word not in STOPWORDS]


def shares(corpus):
    """Documents as sparse rows over the vocabulary: each word's share of the text."""
    from scipy import sparse

    place = {word: k for k, word in enumerate(corpus.vocabulary)}
    words = [place[word] for text in corpus.texts for word in text]
    texts = np.repeat(np.arange(len(corpus.texts)), [len(text) for text in corpus.texts])
    shape = len(corpus.texts), len(corpus.vocabulary)
    counts = sparse.csr_array(sparse.coo_array((np.ones(len(words), np.float32), (texts, words)), shape=shape))
    return _normalised(counts)


def tfidf_shares(corpus):
    """Return the same with more weight on words that few texts have: times log(1 + texts / texts with the word)."""
    rows = shares(corpus)
    with_word = np.bincount(rows.indices, minlength=rows.shape[1])
    rows.data = rows.data * np.log1p(len(corpus.texts) / with_word[rows.indices]).astype(np.float32)
    return _normalised(rows)


def _normalised(rows):
    from scipy import sparse

    return sparse.csr_array(sparse.diags_array(1 / rows.sum(axis=1)) @ rows)


def word_costs(corpus, metric="euclidean"):
    """Return the cost of moving one word to another, as cusink takes it."""
    import cusink

    return cusink.PointCloud(corpus.vectors, metric=metric)
