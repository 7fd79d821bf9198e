#!/usr/bin/env python3
"""Measure all that is claimed about the GPU, in one run of at most eight minutes, without network.

Runs under the plain ``python3`` of a machine with an NVIDIA GPU and CuPy; PyTorch, JAX with OTT, compute-sanitizer and
ncu are used where they are there. Every step has a limit of its own and a process of its own: one that fails or hangs
costs no other, and what it had found by then is kept. The outcome is one JSON file, written anew after every step, and
one Markdown of it, with a verdict on every step; the exit status is 1 if any of them is not "passed".

    python3 scripts/gpu_truth.py --output docs/measurements/gpu-truth
    python3 scripts/gpu_truth.py --commit 0123abc  # of a copy without its history
    python3 scripts/gpu_truth.py --tiny            # the same steps on an emulated device, to try the script itself
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu import proofs, truth, verdicts
from benchmarks.gpu.kernels import COMMIT

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 480  # seconds that all steps may take together
# Steps in their order, and the seconds that each may take. Those of one line run at once: nothing is timed in them.
PHASES = (
    {"facts": 15},
    {"build": 50},
    {"transcendental": 15},
    {"operators": 80},
    {"peers": 45},
    {"calls": 30},
    {"large": 25},
    {"training": 40},
    {"tests": 140, "sanitizers": 140},
    {"profile": 40},
)
STEPS = {name: seconds for phase in PHASES for name, seconds in phase.items()}
# JAX would take three quarters of the memory of the device at its first call, and leave CuPy the rest.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Step:
    """A step in a process group of its own; its rows are lines of a file, and outlive it."""

    def __init__(self, name, limit, folder, command=None):
        """Start it; `command` is what runs in place of this script, and is told the file of its rows."""
        self.name, self.limit, self.started = name, limit, time.perf_counter()
        self.rows, self.said = folder / f"{name}.jsonl", folder / f"{name}.said"
        command = command or [sys.executable, str(Path(__file__).resolve()), "--step", name, "--rows"]
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [*command, str(self.rows)],
                cwd=ROOT,
                env=os.environ | ENVIRONMENT,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def over(self):
        """Whether it has ended, or its time has."""
        return self.process.poll() is not None or time.perf_counter() - self.started >= self.limit

    def end(self):
        """End it, and whatever it has started; return its outcome."""
        ended = self.process.poll() is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        outcome = {"status": "ran" if ended and code == 0 else "failed" if ended else "took too long"}
        outcome |= {"seconds": round(time.perf_counter() - self.started, 2), "limit_s": self.limit}
        if outcome["status"] != "ran":
            outcome |= {"code": code, "said": self.said.read_text(errors="replace")[-2000:]}
        return outcome | {"rows": proofs.lines_of(self.rows)}


def run_phase(limits, deadline, command=None):
    """Run steps at once, each in its limit and none beyond the deadline; return their outcomes by name."""
    steps, outcomes = [], {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, limit in limits.items():
                if (limit := min(limit, deadline - time.perf_counter())) > 1:
                    steps.append(Step(name, limit, Path(folder), command))
                else:
                    outcomes[name] = {"status": "no time left", "seconds": 0, "rows": []}
            running = list(steps)
            while running:
                for step in [step for step in running if step.over()]:
                    running.remove(step)
                    outcomes[step.name] = step.end()
                time.sleep(0.02)
        finally:  # whatever ends this script ends its steps
            for step in steps:
                step.end()
    return outcomes


def in_process(name, tiny):
    """Run a step here; return its outcome."""
    started, rows, outcome = time.perf_counter(), [], {"status": "ran"}
    try:
        with truth.device(tiny):
            for row in truth.STEPS[name](tiny):
                rows.append(json.loads(line(row)))
    except Exception:  # whatever a step meets, the others go on
        outcome = {"status": "failed", "said": traceback.format_exc()[-2000:]}
    return outcome | {"seconds": round(time.perf_counter() - started, 2), "rows": rows}


def line(row):
    """Return a row as a line of JSON."""
    return json.dumps(row, default=lambda value: value.item() if hasattr(value, "item") else str(value)) + "\n"


def write_rows(name, tiny, path):
    """Run a step, and append each of its rows to a file as soon as it is there."""
    with truth.device(tiny), path.open("a", encoding="utf-8") as file:
        for row in truth.STEPS[name](tiny):
            file.write(line(row))
            file.flush()


def write(output, report):
    """Write the report as JSON and as Markdown."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_name(output.name + ".json").write_text(json.dumps(report, indent=1) + "\n")
    output.with_name(output.name + ".md").write_text(verdicts.markdown(report))


def main(arguments=None):
    """Run the steps; the exit status is 1 if the verdict on one of them is not "passed"."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-truth"), help="path without an ending")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS), help="only these")
    parser.add_argument("--commit", help="the commit that is measured, where git cannot say")
    parser.add_argument("--tiny", action="store_true", help="small sizes on an emulated device, in this process")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step:
        write_rows(given.step, given.tiny, given.rows)
        return 0
    if given.commit:
        os.environ[COMMIT] = given.commit
    deadline = time.perf_counter() + TOTAL
    if not given.tiny and (reason := truth.missing_gpu()):
        print(f"nothing can be measured: {reason}")
        return 1
    if not given.tiny:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through `finally`, which ends the steps
    report = {"when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "steps": {}}
    report["device"] = "EMULATED: no number here is a measurement" if given.tiny else "a GPU, see the facts"
    for phase in PHASES:
        limits = {name: seconds for name, seconds in phase.items() if name in given.steps}
        outcomes = {name: in_process(name, True) for name in limits} if given.tiny else run_phase(limits, deadline)
        for name in limits:
            outcome = outcomes[name]
            report["steps"][name] = outcome | {"verdict": verdicts.judge(name, outcome)}
            print(
                f"{name}: {outcome['status']} in {outcome['seconds']} s, {report['steps'][name]['verdict']}", flush=True
            )
        write(given.output, report)
    print(f"wrote {given.output}.json and {given.output}.md")
    return int(any(step["verdict"] != verdicts.PASSED for step in report["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
