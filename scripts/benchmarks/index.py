#!/usr/bin/env python3
"""Measure an index: searches that stop early, one query after a load, and the growth with the collection.

anytime   `Index.search` of images among all others: in full, with `solve_at_most` and with `candidates` that faiss
          proposes by plain distances of the bins; recall of the 10 nearest, the share that is proved, and the time.
exact     the same search beside a loop of POT's `emd2`, whose neighbours are those of the unregularised distance.
load      one query by an index that was mapped from the disk beside a call of `cusink.nearest`, and the peak of the
          resident set, read by the process itself before and after.
growth    time and solved pairs of a query among 1 000 to 1 000 000 mixtures of two digits; exponents are fitted.

Times are CPU time of the process with one worker, medians of rounds in turns. At the end stands what was to be reached,
and whether it was. An answer of a full search is compared
with that of the whole matrix for some of the queries before anything is timed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from benchmarks.harness.timing import machine, print_targets, reached

K, TOL, ROUNDS = 10, 1e-6, 3
# name: (cells of a side, metric, value, eps of the largest cost, queries, whether a full search is slow)
ANYTIME = {
    "8x8 reg_cost": (8, "sqeuclidean", "reg_cost", 0.01, 40, False),
    "8x8 cost, eps .01": (8, "sqeuclidean", "cost", 0.01, 40, False),
    "8x8 cost, eps .003": (8, "sqeuclidean", "cost", 0.003, 40, False),
    "14x14 cost, eps .003": (14, "euclidean", "cost", 0.003, 10, True),
}
SHARES = (0.01, 0.02, 0.05, 0.1)
JUDGED = "solve_at_most 5%"
EXACT_ROWS, EXACT_PAIRS = 2, 100  # queries whose neighbours emd2 finds, pairs that it is timed on
ROWS = ["anytime", "exact", "load", "growth"]
SIZES = (1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)


def images(side):
    """Return the 1797 handwritten digits on side x side cells, in an order drawn at random."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    found = load_digits().images[np.random.default_rng(0).permutation(1797)]
    if side != 8:
        found = np.stack([np.clip(zoom(image, side / 8, order=1), 0, None) for image in found])
    found = found.reshape(len(found), -1)
    return found / found.sum(axis=1, keepdims=True)


def mixtures(side, count, seed=1):
    """Return mixtures of two digits each, in shares drawn at random."""
    rng, single = np.random.default_rng(seed), images(side)
    first, second = rng.integers(len(single), size=(2, count))
    share = rng.random((count, 1))
    return share * single[first] + (1 - share) * single[second]


def cost(side, metric="sqeuclidean", dtype=np.float64):
    import cusink

    C = cusink.cost_matrix(np.indices((side, side)).reshape(2, -1).T.astype(float), metric=metric)
    return (C / C.max()).astype(dtype)


def medians(runs, rounds=ROUNDS):
    """Return the median CPU time of each run, the runs in turns."""
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: float(np.median(each)) for name, each in times.items()}


def recall(indices, want):
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(indices, want, strict=True)]))


def anytime(name, quick):
    import cusink

    side, metric, value, eps, queries, slow = ANYTIME[name]
    queries = 5 if quick else queries
    weights, C = images(side), cost(side, metric)
    A, B = weights[:queries], weights[100:]
    index = cusink.Index(B, C, eps=eps, value=value, tol=TOL)
    proposed = proposals(A, B)
    full = index.search(A, K, full_output=True, workers=1)
    matrix = cusink.distance_matrix(A[:2], B, C, eps=eps, value=value, tol=TOL, workers=1)
    assert np.array_equal(full.indices[:2], np.argsort(matrix, axis=1, kind="stable")[:, :K]), "a wrong full search"

    searches = {"full": lambda: index.search(A, K, full_output=True, workers=1)}
    for share in SHARES:
        most = int(share * len(B))
        searches[f"solve_at_most {share:.0%}"] = lambda most=most: index.search(
            A, K, solve_at_most=most, full_output=True, workers=1
        )
        searches[f"candidates, faiss {share:.0%}"] = lambda most=most: index.search(
            A, K, candidates=proposed(most), full_output=True, workers=1
        )
    found = {each: run() for each, run in searches.items()}
    times = medians(searches) | medians({"faiss alone": lambda: proposed(K)})
    rows = [
        {
            "search": each,
            "recall": recall(result.indices, full.indices),
            "proved": float(result.proved.mean()),
            "solved": result.finished / (len(A) * len(B)),
            "seconds": times[each],
            "times faster": times["full"] / times[each],
        }
        for each, result in found.items()
    ]
    alone = {"search": "faiss alone", "recall": recall(proposed(K), full.indices), "proved": 0.0, "solved": 0.0}
    rows.append(alone | {"seconds": times["faiss alone"], "times faster": times["full"] / times["faiss alone"]})
    print(f"\n### {name}: {len(A)} x {len(B)} digits, {value}, the {K} nearest\n")
    print("| search | recall | rows proved | pairs solved | CPU time | times faster |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['search']} | {row['recall']:.3f} | {row['proved']:.0%} | {row['solved']:.1%} | "
            f"{1e3 * row['seconds']:.0f} ms | {row['times faster']:.1f} |",
            flush=True,
        )
    judged = next(row for row in rows if row["search"] == JUDGED)
    measured, met = f"{judged['recall']:.3f}", judged["recall"] >= 0.99
    if slow:
        measured, met = f"{measured} at {judged['times faster']:.1f} x", met and judged["times faster"] >= 3
    wanted = "recall >= .99" + (" at >= 3 x the speed of the full search" if slow else "")
    return {
        "title": f"{name}, {JUDGED}: recall",
        "rows": rows,
        "targets": [reached("full search", wanted, measured, met)],
    }


def proposals(A, B):
    """Return a function of a count: so many items for each row of A, the nearest by the distance of their bins."""
    import faiss

    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatL2(B.shape[1])
    flat.add(B.astype(np.float32))
    queries = A.astype(np.float32)
    return lambda count: flat.search(queries, count)[1]


def exact(quick, name="14x14 cost, eps .003"):
    """Time `nearest` beside `emd2` on some of its pairs, and compare the neighbours of some queries."""
    import ot

    import cusink

    side, metric, value, eps, queries, _ = ANYTIME[name]
    rows, pairs = (1, 5) if quick else (EXACT_ROWS, EXACT_PAIRS)
    weights, C = images(side), cost(side, metric)
    A, B = weights[:queries], weights[100:160] if quick else weights[100:]

    def emd2(i, j):
        a, b = A[i] > 0, B[j] > 0
        return ot.emd2(A[i, a], B[j, b], np.ascontiguousarray(C[np.ix_(a, b)]))

    some = np.random.default_rng(0).integers((len(A), len(B)), size=(pairs, 2))
    runs = {
        "nearest": lambda: cusink.nearest(A, B, C, k=K, eps=eps, value=value, tol=TOL, workers=1),
        "emd2": lambda: [emd2(i, j) for i, j in some],
    }
    found = runs["nearest"]()[1][:rows]
    far = np.array([[emd2(i, j) for j in range(len(B))] for i in range(rows)])
    share = recall(found, np.argsort(far, axis=1, kind="stable")[:, :K])
    times = medians(runs)
    scaled = times["emd2"] / pairs * len(A) * len(B)
    ratio, title = scaled / times["nearest"], f"{name}: {len(A)} x {len(B)} digits, `nearest` beside `emd2`"
    last = np.take_along_axis(far, found, axis=1).max(axis=1) / np.sort(far, axis=1)[:, K - 1] - 1
    print(f"\n### {title}\n\n| | CPU time |\n|---|---|\n| nearest | {times['nearest']:.2f} s |")
    print(f"| POT `emd2`, non-empty bins, {pairs} pairs, scaled | {scaled:.1f} s |")
    print(
        f"\nOf the neighbours of {rows} queries {share:.1%} are those of `emd2`; the furthest of the others is", end=" "
    )
    print(f"{max(last.max(), 0):.1e} further than its k-th.", flush=True)
    wanted = reached(
        "emd2", ">= 20 x faster, same neighbours", f"{ratio:.1f} x, {share:.1%} of them", ratio >= 20 and share == 1
    )
    return {"title": title, "times": times, "scaled": scaled, "share": share, "targets": [wanted]}


CHILD = """
import sys, re, numpy as np, cusink
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
q, C = np.load(sys.argv[2]), np.load(sys.argv[3])
cusink.Index(np.repeat(q, 99, axis=0) , C, eps=0.01, value="reg_cost").search(q, 5, workers=1)
before = peak()
index = cusink.Index.load(sys.argv[1], verify=False)
index.search(q, 10, workers=1)
print(peak() - before)
"""


def load(count, side=14):
    import cusink

    B, C = mixtures(side, count), cost(side)
    q, options = mixtures(side, 1, seed=2), {"eps": 0.01, "value": "reg_cost", "tol": TOL}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        cusink.Index(B, C, **options).save(path)
        index = cusink.Index.load(path)
        near = cusink.nearest(q, B, C, k=K, **options)
        found = index.search(q, K)
        assert np.array_equal(found[1], near[1]) and np.allclose(found[0], near[0], rtol=1e-12), "another answer"
        times = medians(
            {
                "Index.search": lambda: index.search(q, K, workers=1),
                "nearest": lambda: cusink.nearest(q, B, C, k=K, workers=1, **options),
                "load": lambda: cusink.Index.load(path),
                "load, not verified": lambda: cusink.Index.load(path, verify=False),
            },
            5,
        )
        np.save(Path(folder) / "q.npy", q)
        np.save(Path(folder) / "C.npy", C)
        code = [sys.executable, "-c", CHILD, str(path), f"{folder}/q.npy", f"{folder}/C.npy"]
        path_of = {"PYTHONPATH": str(Path(cusink.__file__).parents[1])}
        grown = int(subprocess.run(code, capture_output=True, text=True, check=True, env=os.environ | path_of).stdout)
    ratio, size = times["Index.search"] / times["nearest"], grown / B.nbytes
    row = {"title": f"one query: {count} items", "times": times, "grown": grown, "corpus": B.nbytes}
    row["targets"] = [
        reached("a call of nearest", "<= 1/3", f"{ratio:.3f}", ratio <= 1 / 3),
        reached("the items", "<= 1.2 x their memory", f"{size:.2f}", size <= 1.2),
    ]
    print(f"\n### one query among {count} x {side * side}, reg_cost, float64\n\n| | CPU time |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {1e3 * seconds:.0f} ms |")
    print(f"\nsearch / nearest = {ratio:.3f}; the resident set grows by {grown / 1e6:.0f} MB,")
    print(f"of which the items are {B.nbytes / 1e6:.0f} MB: {size:.2f} of them", flush=True)
    return row


def growth(sizes, queries=5):
    import cusink

    C, q = cost(8, dtype=np.float32), mixtures(8, queries, seed=2).astype(np.float32)
    whole, rows = mixtures(8, max(sizes)).astype(np.float32), []
    print(f"\n### {queries} queries among mixtures of digits, 8 x 8, reg_cost, eps .01, float32\n")
    print("| items | CPU time of a query | pairs solved for it | build, a thousand items |\n|---|---|---|---|")
    for size in sizes:
        start = time.process_time()
        index = cusink.Index(whole[:size], C, eps=0.01, value="reg_cost", tol=1e-4)
        built = time.process_time() - start
        found = index.search(q, K, full_output=True, workers=1)
        seconds = medians({"search": lambda index=index: [index.search(row[None], K, workers=1) for row in q]})[
            "search"
        ]
        rows.append({"items": size, "seconds": seconds / queries, "solved": found.finished / queries, "built": built})
        print(
            f"| {size} | {1e3 * seconds / queries:.1f} ms | {rows[-1]['solved']:.0f} | {1e6 * built / size:.1f} ms |",
            flush=True,
        )
    fitted = {
        name: float(np.polyfit(np.log([r["items"] for r in rows]), np.log([r[name] for r in rows]), 1)[0])
        for name in ("seconds", "solved")
    }
    print(f"\nfitted exponents: time {fitted['seconds']:.2f}, pairs solved {fitted['solved']:.2f}", flush=True)
    measured = {"time": fitted["seconds"], "pairs solved": fitted["solved"]}
    targets = [reached(name, "exponent < .8", f"{value:.2f}", value < 0.8) for name, value in measured.items()]
    return {"title": f"growth: to {max(sizes)} items", "rows": rows, "exponents": fitted, "targets": targets}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--works", nargs="+", choices=ANYTIME, default=list(ANYTIME), help="of anytime")
    parser.add_argument("--quick", action="store_true", help="few queries and small collections")
    parser.add_argument("--json", metavar="FILE", help="also write every number to FILE")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # of pairs that do not converge, which both sides have
    facts = machine() | {"time": "CPU time, one worker, medians of rounds in turns"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    done = {}
    if "anytime" in args.rows:
        done["anytime"] = [anytime(name, args.quick) for name in args.works]
    if "exact" in args.rows:
        done["exact"] = exact(args.quick)
    if "load" in args.rows:
        done["load"] = load(2000 if args.quick else 60_000)
    if "growth" in args.rows:
        done["growth"] = growth(SIZES[:2] if args.quick else SIZES)
    others = [outcome for row, outcome in done.items() if row != "anytime"]
    print_targets([*done.get("anytime", []), *others])
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": facts, "done": done}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
