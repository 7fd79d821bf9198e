#!/usr/bin/env python3
"""Compare news texts by Sinkhorn distance, and the distances with the judgements of people.

The texts are the Lee corpus (Lee, Pincombe and Welsh 2005), which gensim ships: 50 short news texts, 300 more of the
same kind, and how alike people found each two of the 50, on average and scaled to [0, 1]. The word vectors are those
that wordllama ships, 256 numbers for each token; a word's vector is the mean of its tokens', scaled to length 1.
Nothing is downloaded. A document is its words, gensim's stop words left out, each with its share of the text; or with
its share of the TF-IDF weights. Every distance is between two such clouds of words.

The time is that of all 50 x 350 pairs, beside gensim's exact word mover's distance, `wmdistance`, on some of them.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from arguments import Parser
from benchmarks.harness.lee import JUDGED, read_corpus, shares, tfidf_shares, word_costs

import cusink

INK, GREY, BLUE = "#1b1b1b", "#6b6b6b", "#0072b2"


def main(arguments=None):
    """Run the comparison and return its exit status."""
    given = parse(arguments)
    try:
        corpus = read_corpus()
    except ImportError as error:
        print(f"documents: {error}; ./scripts/demo documents installs what it needs", file=sys.stderr)
        return 2
    counts, tfidf = shares(corpus), tfidf_shares(corpus)
    words = np.diff(counts.indptr)
    print(f"{len(corpus.texts)} texts, {JUDGED} of them judged, of {len(corpus.vocabulary)} different words")
    print(f"different words of a text: {words.min()} to {words.max()}, {words.mean():.0f} on average\n")

    found = {
        "TF-IDF cosine": -cosines(tfidf.toarray()),
        "mean-vector cosine": -cosines(counts @ corpus.vectors),
        "mean-vector cosine, TF-IDF weights": -cosines(tfidf @ corpus.vectors),
        "Sinkhorn, Euclidean cost": sinkhorn_distances(counts, corpus, "euclidean", given),
        "Sinkhorn, Euclidean cost, TF-IDF weights": sinkhorn_distances(tfidf, corpus, "euclidean", given),
        "Sinkhorn, cosine cost, TF-IDF weights": sinkhorn_distances(tfidf, corpus, "cosine", given),
    }
    print(f"{'agreement with people, 1225 pairs':<44}{'Pearson':>10}{'Spearman':>10}")
    for name, distances in found.items():
        pearson, spearman = agreement(distances, corpus.judgements)
        print(f"{name:<44}{pearson:10.3f}{spearman:10.3f}")

    start = time.perf_counter()
    result = cusink.distance_matrix(
        counts[:JUDGED], counts, word_costs(corpus), eps=given.eps, tol=given.tol, max_iter=5000, full_output=True
    )
    seconds = time.perf_counter() - start
    pairs = some_pairs(corpus, given.sample)
    exact, exact_seconds = exact_distances(corpus, pairs)
    off = result.distances[tuple(np.transpose(pairs))] / exact - 1
    each, exact_each = seconds / result.distances.size, exact_seconds / len(pairs)
    print(
        f"\nSinkhorn, Euclidean cost, eps {given.eps:g}, marginal error {given.tol:g}: {JUDGED} x "
        f"{len(corpus.texts)} pairs in {seconds:.2f} s, {1e6 * each:.0f} us each; {result.converged.sum()} converged, "
        f"iterations: median {np.median(result.n_iter):.0f}, at most {result.n_iter.max()}"
    )
    print(
        f"gensim wmdistance: {len(pairs)} of the pairs in {exact_seconds:.2f} s, {1e6 * exact_each:.0f} us each, "
        f"{exact_each / each:.1f} times as long; the cost lies above the exact distance by {np.median(off):.2%} in the "
        f"median, {off.max():.2%} at most"
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(given.output, corpus.judgements, found)
    print(f"\nPicture: {given.output}")
    return 0


def parse(arguments):
    """Return the arguments."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=0.019, help="words are up to 2 apart (default: %(default)s)")
    parser.add_argument("--tol", type=float, default=0.01, help="L1 marginal error (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=300, help="pairs for wmdistance (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/lee_documents.png"), help="(default: %(default)s)")
    return parser.parse_args(arguments)


def sinkhorn_distances(rows, corpus, metric, given):
    """Return the distances of the judged texts from each other."""
    costs = word_costs(corpus, metric)
    return cusink.distance_matrix(rows[:JUDGED], None, costs, eps=given.eps, tol=given.tol, max_iter=5000)


def some_pairs(corpus, count):
    """Pairs of a judged text and any other, drawn once."""
    drawn = np.random.default_rng(0).permutation(JUDGED * len(corpus.texts))
    pairs = [divmod(int(k), len(corpus.texts)) for k in drawn]
    return [(i, j) for i, j in pairs if i != j][:count]


def cosines(rows):
    """Return the cosines of the judged rows with each other."""
    rows = rows[:JUDGED] / np.linalg.norm(rows[:JUDGED], axis=1, keepdims=True)
    return rows @ rows.T


def agreement(distances, judgements):
    """Pearson's and Spearman's correlation of nearness with likeness, over all pairs of different texts."""
    from scipy.stats import pearsonr, spearmanr

    pairs = np.triu_indices(JUDGED, 1)
    return pearsonr(-distances[pairs], judgements[pairs])[0], spearmanr(-distances[pairs], judgements[pairs])[0]


def exact_distances(corpus, pairs):
    """Return gensim's exact distances of some pairs of texts, and the seconds that they took without its start."""
    from gensim.models import KeyedVectors

    model = KeyedVectors(corpus.vectors.shape[1])
    model.add_vectors(corpus.vocabulary, corpus.vectors)
    texts = corpus.texts
    model.wmdistance(texts[0], texts[1])
    start = time.perf_counter()
    exact = [model.wmdistance(texts[i], texts[j]) for i, j in pairs]
    return np.array(exact), time.perf_counter() - start


def draw(path, judgements, found):
    """Save the judgements and two distances as matrices, texts in one order, and how one follows the other."""
    from matplotlib.figure import Figure
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    unlike = 1 - judgements
    np.fill_diagonal(unlike, 0)
    order = leaves_list(linkage(squareform(unlike, checks=False), "average", optimal_ordering=True))
    name = "Sinkhorn, cosine cost, TF-IDF weights"
    panels = {
        "how alike people found them": judgements,
        "Sinkhorn distance (less is alike)": -found[name],
        "TF-IDF cosine": -found["TF-IDF cosine"],
    }
    figure = Figure(figsize=(13.6, 4.5), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.95))  # the layout of images leaves no room above titles
    axes = figure.subplots(1, 4)
    pairs = np.triu_indices(JUDGED, 1)
    for panel, (title, matrix) in zip(axes, panels.items(), strict=False):
        low, high = np.quantile(matrix[pairs], [0.02, 0.995])
        image = panel.imshow(matrix[np.ix_(order, order)], cmap="Blues", vmin=low, vmax=high, interpolation="nearest")
        bar = figure.colorbar(image, ax=panel, location="bottom", shrink=0.8, pad=0.04, aspect=30)
        bar.ax.locator_params(nbins=4)
        bar.ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):.2g}")  # a distance is drawn as its negative
        bar.ax.tick_params(labelsize=11, colors=GREY)
        bar.outline.set_visible(False)
        panel.set_title(title, fontsize=14, color=INK)
        panel.set_xticks([])
        panel.set_yticks([])
    axes[0].set_ylabel("50 news texts", color=GREY, fontsize=12)
    figure.supxlabel("Darker is more alike. The texts are in one order in all three.", color=GREY, fontsize=12, x=0.37)
    pearson, spearman = agreement(found[name], judgements)
    axes[3].plot(judgements[pairs], found[name][pairs], ".", color=BLUE, markersize=5, alpha=0.35, markeredgewidth=0)
    axes[3].set_xlabel("judgement of people (0 to 1)", color=GREY, fontsize=12)
    axes[3].set_ylabel("Sinkhorn distance", color=GREY, fontsize=12)
    said = f"Pearson {pearson:.2f}\nSpearman {spearman:.2f}"  # in the corner that has no points
    axes[3].text(0.98, 0.97, said, fontsize=12, color=INK, ha="right", va="top", transform=axes[3].transAxes)
    axes[3].tick_params(labelsize=11, colors=GREY)
    axes[3].set_box_aspect(1)
    for side in ("top", "right"):
        axes[3].spines[side].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
