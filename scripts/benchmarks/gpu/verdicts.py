"""What a report of ``gpu_truth.py`` says: a verdict on each step, and Markdown."""

from benchmarks.gpu import counters, proofs, training
from benchmarks.gpu.kernels import NOT_INSTALLED, NOT_MEASURED

PASSED, TOLD = "passed", 5  # faults that a verdict names
# Units in the last place by which CUDA's own functions may be off the rounded value, and half a one for the rounding.
MOST = {"exp2_ulp": 2.5, "log2_ulp": 1.5}
NEAR_1 = {"float32": 1.5 * 2.0**-26, "float64": 1.5 * 2.0**-55}  # the same, of logarithms of up to 2^-3
SHORT_LOG = 2.0**-22
FACTS = ("device", "driver", "driver_cuda", "nvrtc", "cupy", "capability", "commit", "python", "machine")
# Rows that are no fault: a peer that is not there, or a device without the tensor cores for it.
EXPECTED = {"measured", "clean", "emulated", NOT_INSTALLED, "not on tensor cores", training.NO_DEVICE}
# The first row of the numbers that are to be reached: what, at most how many ms on the device.
GOALS = (("forward_and_reg_cost", 0.25), ("forward_and_cost", 0.25))
FLAT = 1000  # problems up to which the same time is wanted


def named(row):
    """Return a few words that tell a row from the others."""
    keys = ("operator", "what", "products", "tool", "parts", "part", "test", "file", "detail", "B", "n", "dtype")
    return " ".join(str(row[key]) for key in keys if row.get(key) not in (None, ""))


def by_status(rows):
    """Return the rows whose status is no success."""
    return [f"{named(row)}: {row['status']}" for row in rows if row.get("status", "measured") not in expected(row)]


def expected(row):
    """Return the words that are no fault in a row."""
    return EXPECTED | {row["status"]} if str(row.get("status", "")).startswith(NOT_INSTALLED) else EXPECTED


def built(rows):
    """Return what did not build, and what uses local memory."""
    faults = [f"{named(row)}: {row['error']}" for row in rows if "error" in row]
    for row in rows:
        for name, kernel in row.get("kernels", {}).items():
            if kernel.get("local_size_bytes"):
                faults.append(f"{name} {row['dtype']}: {kernel['local_size_bytes']} bytes of local memory")
    return faults


def functions(rows):
    """Return which functions of the device are off by more than they may be."""
    faults = []
    for row in rows:
        most = MOST | {"log2_absolute_near_1": NEAR_1.get(row.get("dtype"))} | {"short_log_absolute": SHORT_LOG}
        faults += [
            f"{key} {row.get('dtype', '')}: {row[key]:.3g} > {most[key]:.3g}"
            for key in row
            if key in most and not row[key] <= most[key]
        ]
    return faults


def beside_peers(rows):
    """Return what of our own did not run; a peer that fails is no fault."""
    ours = [row for row in rows if row["what"].startswith(("here", "points"))]
    return [f"{named(row)}: {row['ms']}" for row in ours if isinstance(row["ms"], str)]


def tested(rows):
    """Return the tests that failed, and processes that did not end or ran none."""
    faults = [f"{row['test']}: {row['outcome']}" for row in rows if "test" in row]
    processes = [row for row in rows if "tests" in row]
    for row in processes:
        if not row["finished"]:
            faults.append(
                f"process {row['process']} of the tests did not end, after {row.get('passed', 0)} of {row['tests']}"
            )
    if not any(row.get("passed") for row in processes):
        faults.append("no test has passed")
    return faults


def sanitized(rows):
    """Return what the tools found, and what did not run."""
    found = [f"{named(row)}: {row['status']}" for row in rows if row["status"] not in ("clean", "emulated")]
    whole = len(proofs.TOOLS) * len(proofs.SHARES)
    if len(rows) < whole and not any(row["status"] == "emulated" for row in rows):
        found.append(f"{len(rows)} of {whole} runs have ended")
    return found


def counted(rows):
    """Return the hot kernels that ncu did not see."""
    faults = [f"{row['part']} lacks {', '.join(row['missing'])}: {row['status']}" for row in rows if "missing" in row]
    seen = {row.get("part") for row in rows}
    if any(row.get("status") == NOT_INSTALLED for row in rows):
        return ["ncu is not installed"]
    return faults + [f"{part} was not profiled" for part in counters.PARTS if part not in seen]


JUDGES = {
    "build": built,
    "transcendental": functions,
    "peers": beside_peers,
    "tests": tested,
    "sanitizers": sanitized,
    "profile": counted,
}


def judge(name, outcome):
    """Return the verdict on a step: "passed", or "FAILED: " and why."""
    faults = [] if outcome["status"] == "ran" else [outcome["status"]]
    if not outcome["rows"]:
        faults.append("nothing was found")
    faults += JUDGES.get(name, by_status)(outcome["rows"])
    if not faults:
        return PASSED
    more = f", and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
    return "FAILED: " + "; ".join(fault[:200] for fault in faults[:TOLD]) + more


def rows_of(report, name):
    """Return what a step has found."""
    return report["steps"].get(name, {}).get("rows", [])


def goals(report):
    """Return the goals of one small problem: (name, at most, reached)."""
    found = {row["B"]: row for row in rows_of(report, "calls")}
    lines = []
    for name, most in GOALS:
        ms = found.get(1, {}).get(f"{name}_device_ms")
        lines.append((f"{name}, B = 1, by events", f"{most} ms", NOT_MEASURED if ms is None else f"{ms:.3g} ms"))
        many = found.get(FLAT, {}).get(f"{name}_device_ms")
        ratio = NOT_MEASURED if not ms or many is None else f"{many / ms:.3g} x"
        lines.append((f"the same, B = {FLAT} beside B = 1", "flat", ratio))
    return lines


def cell(value):
    """Return a value as a cell of a table, in which no character ends it."""
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")[:300]


def table(head, rows):
    """Return the lines of a table."""
    lines = ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows]


def of_rows(title, rows, without=()):
    """Return a heading, and a table of rows with a column for each key that any of them has."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in without]
    return ["", f"## {title}", *table(keys, [[row.get(key) for key in keys] for row in rows])] if rows else []


def markdown(report):
    """Return a report as Markdown: the device, a verdict on each step, and what each has found."""
    lines = [f"# GPU truth, {report['when']}", "", report["device"]]
    if rows := rows_of(report, "facts"):
        lines += table(("fact", "value"), [(key, rows[0][key]) for key in FACTS if key in rows[0]])
    steps = [(name, step["status"], step.get("seconds"), step["verdict"]) for name, step in report["steps"].items()]
    lines += ["", "## Verdicts", *table(("step", "outcome", "seconds", "verdict"), steps)]
    if rows_of(report, "calls"):
        lines += ["", "## Goals of one small problem", *table(("what", "at most", "reached"), goals(report))]
    lines += of_rows("Errors of exp2 and log2", rows_of(report, "transcendental"))
    rows = [row for row in rows_of(report, "operators") if "operator" in row]
    shown = ("of_copy", "of_exp", "predicted_ms", "bound_by", "error", "allowed")
    keys = ("operator", "cost", "detail", "B", "n", "m", "d", "dtype", "iterations", "status", "ms", *shown)
    if rows:
        lines += ["", "## Operators, beside what is predicted by count for this device"]
        lines += table(keys, [[row.get(key) for key in keys] for row in rows])
    for name in ("peers", "calls", "large", "training"):
        lines += of_rows(name.capitalize(), rows_of(report, name))
    rows = rows_of(report, "tests")
    lines += of_rows("GPU tests, by process", [row for row in rows if "tests" in row], ("last_words",))
    lines += of_rows("GPU tests that did not pass", [row for row in rows if "test" in row])
    lines += of_rows("Warnings in the GPU tests", [row for row in rows if "warning" in row])
    lines += of_rows("Sanitizers", rows_of(report, "sanitizers"), ("said",))
    lines += of_rows("Counters of ncu", rows_of(report, "profile"))
    return "\n".join(lines) + "\n"
