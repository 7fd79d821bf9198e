"""Peak memory of a distance matrix, each measurement in a fresh process of its own.

``python memory.py traced|resident QUERIES LIMIT`` is what such a process runs: NumPy's own allocations counted by
tracemalloc, or the growth of the resident set, which also sees what BLAS and the threads take.
"""

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/

from benchmarks.harness import works


def resident(field):
    """VmRSS (now) or VmHWM (the peak) of this process in bytes; Linux only."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def peak(how, work, limit):
    """Bytes that one call takes at most beyond its inputs, and the size of inputs and output."""
    import cusink

    def call(queries, corpus):
        return cusink.distance_matrix(
            queries, corpus, work.C, eps=work.eps, tol=work.tol, max_iter=100_000, memory_limit=limit
        )

    call(work.queries[:2], work.corpus[:5])  # what the first call loads is not the call's memory
    if how == "traced":
        tracemalloc.start()
        out = call(work.queries, work.corpus)
        taken = tracemalloc.get_traced_memory()[1]
    else:
        Path("/proc/self/clear_refs").write_text("5")  # start the peak afresh
        before = resident("VmRSS")
        out = call(work.queries, work.corpus)
        taken = resident("VmHWM") - before
    return {"taken": taken, "inputs": work.queries.nbytes + work.corpus.nbytes + work.C.nbytes, "output": out.nbytes}


def measure_memory(work, limits=(2**18, 2**20, 2**22), times=3):
    """Run the child processes and compare their peaks with ``times`` (inputs + output + one tile).

    The limits are small ones, that a tile of this work reaches: a bound far above what is needed would prove nothing.
    """
    title = f"Peak memory of W2: {len(work.queries)} x {len(work.corpus)} digits, eps {work.eps:g}, float64"
    lines = [
        f"| `memory_limit` (a tile) | inputs, output | peak of NumPy's arrays | peak resident growth | {times} x sum |",
        "|---|---|---|---|---|",
    ]
    entries, targets = [], []
    for limit in limits:
        sizes = {}
        for how in ("traced", "resident"):
            arguments = [sys.executable, __file__, how, str(len(work.queries)), str(limit)]
            child = subprocess.run(arguments, capture_output=True, text=True)
            if child.returncode:
                return {
                    "title": "Peak memory of W2",
                    "note": f"FAILED: {child.stderr[-300:]}",
                    "entries": [],
                    "targets": [],
                }
            sizes[how] = json.loads(child.stdout)
        given = sizes["traced"]["inputs"] + sizes["traced"]["output"]
        # tracemalloc does not see the inputs, which were there before; the output it does.
        total = {how: sizes[how]["taken"] + sizes[how]["inputs"] for how in sizes}
        allowed = times * (given + limit)
        mib = [x / 2**20 for x in (limit, given, total["traced"], total["resident"], allowed)]
        lines.append("| " + " | ".join(f"{x:.2f} MiB" for x in mib) + " |")
        entries.append({"limit": limit, "given": given, "peak": total, "allowed": allowed})
        for how, name in (("traced", "NumPy's allocations"), ("resident", "resident growth")):
            targets.append(
                {
                    "against": f"{name}, tile {limit / 2**20:g} MiB",
                    "wanted": f"<= {allowed / 2**20:.2f} MiB",
                    "measured": f"{total[how] / 2**20:.2f} MiB",
                    "met": total[how] <= allowed,
                }
            )
    return {"title": title, "note": "\n".join(lines), "entries": entries, "targets": targets}


if __name__ == "__main__":
    how, queries, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(peak(how, works.digit_retrieval(0.01, queries=queries), limit)))
