"""
Recall against time
===================

A cheap distance can choose candidates, and transport put them in order. How many candidates are needed? Measured on
scikit-learn's digits: 20 queries among 800, the ten nearest by Sinkhorn distance. ``cusink.nearest`` needs no
candidates: its lower bounds prove which pairs cannot matter, and its recall is 1. Numbers at the dots are those of the
candidates.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

import cusink

images = load_digits().data[:820]
histograms = images / images.sum(axis=1, keepdims=True)
queries, corpus = histograms[:20], histograms[20:]
C = cusink.cost_matrix(np.indices((8, 8)).reshape(2, -1).T) / 98
options = {"eps": 0.02, "tol": 1e-3}

start = time.perf_counter()
right = cusink.nearest(queries, corpus, C, k=10, value="reg_cost", **options)[1]
exact = time.perf_counter() - start

counts, recalls, seconds = (10, 20, 50, 100, 200, 400), [], []
for count in counts:
    start = time.perf_counter()
    found = cdist(queries, corpus).argsort(axis=1)[:, :count]
    values = cusink.sinkhorn(np.repeat(queries, count, axis=0), corpus[found.ravel()], C, **options).reg_cost
    best = np.take_along_axis(found, values.reshape(-1, count).argsort(axis=1)[:, :10], axis=1)
    seconds.append(time.perf_counter() - start)
    recalls.append(np.mean([len(set(b) & set(r)) / 10 for b, r in zip(best, right, strict=True)]))

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(seconds, recalls, "o-", color="#0072b2", label="candidates by L2, put in order by transport")
ax.plot(exact, 1, "D", color="#d55e00", markersize=9, label="cusink.nearest")
for count, second, recall in zip(counts, seconds, recalls, strict=True):
    ax.annotate(str(count), (second, recall), textcoords="offset points", xytext=(6, -14), fontsize=9)
ax.set(xlabel="seconds for 20 queries among 800", ylabel="recall of the ten nearest")
ax.margins(x=0.08, y=0.1)  # room for the numbers of candidates
ax.set_xlim(0, None)
ax.legend(frameon=False, loc="lower right")
ax.grid(color="#e6e6e6")
ax.spines[["top", "right"]].set_visible(False)
