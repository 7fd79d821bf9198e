"""
Recall against time
===================

``cusink.Index`` finds the ten nearest by Sinkhorn distance and proves it: lower bounds tell which pairs cannot matter,
and its recall is 1. A search may also stop early, after ``solve_at_most`` pairs of a query, lowest bounds first. Or it
solves the ``candidates`` alone that a vector index proposes, here faiss by the distance of the pixels. Measured on
scikit-learn's digits: 20 queries among 1700. Numbers at the dots are those of pairs or candidates for a query.
"""

import time

import faiss
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import cusink

images = load_digits().data[np.random.default_rng(0).permutation(1797)][:1720]
histograms = images / images.sum(axis=1, keepdims=True)
queries, corpus = histograms[:20], histograms[20:]
C = cusink.cost_matrix(np.indices((8, 8)).reshape(2, -1).T) / 98
index = cusink.Index(corpus, C, eps=0.003, value="cost", tol=1e-4)
flat = faiss.IndexFlatL2(64)
flat.add(corpus.astype(np.float32))


def proposed(count):
    """Return the `count` nearest of each query, pixel by pixel."""
    return flat.search(queries.astype(np.float32), count)[1]


def timed(search):
    """Return what a search finds, and the least of three CPU times in milliseconds."""
    times = []
    for _ in range(3):
        start = time.process_time()
        found = search()
        times.append(1e3 * (time.process_time() - start))
    return found, min(times)


right, exact = timed(lambda: index.search(queries, 10)[1])


def recall(found):
    """Return the share of the ten nearest that were found."""
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, right, strict=True)])


counts = (10, 20, 40, 80, 160)
limited = [timed(lambda most=count: index.search(queries, 10, solve_at_most=most)[1]) for count in counts]
reranked = [timed(lambda most=count: index.search(queries, 10, candidates=proposed(most))[1]) for count in counts]
alone, instant = timed(lambda: proposed(10))

figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
for results, color, label, offset in (
    (limited, "#0072b2", "solve_at_most, lowest bounds first", (-4, 7)),
    (reranked, "#009e73", "candidates from faiss, put in order by transport", (6, -12)),
):
    ax.plot([ms for _, ms in results], [recall(found) for found, _ in results], "o-", color=color, label=label)
    for count, (found, ms) in zip(counts, results, strict=True):
        ax.annotate(str(count), (ms, recall(found)), textcoords="offset points", xytext=offset, fontsize=9, color=color)
ax.plot(exact, 1, "D", color="#d55e00", markersize=9, label="full search, proved")
ax.plot(instant, recall(alone), "s", color="#595959", markersize=8, label="faiss alone, pixel by pixel")
ax.set(xlabel="CPU time of 20 queries among 1700 [ms]", ylabel="recall of the ten nearest")
ax.margins(x=0.08, y=0.1)  # room for the numbers
ax.set_xlim(-0.03 * exact, None)
figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=9)
ax.grid(color="#e6e6e6")
ax.spines[["top", "right"]].set_visible(False)
