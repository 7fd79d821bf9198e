#!/usr/bin/env python3
"""Measure all that is claimed about the GPU, in one run of about eight minutes, without network.

Runs under the plain ``python3`` of a machine with an NVIDIA GPU and CuPy; PyTorch, JAX with OTT, compute-sanitizer and
ncu are used where they are there. Every step has a limit of its own and a process of its own: one that fails or hangs
costs no other. The outcome is one JSON file, written anew after every step, and one Markdown table of it.

    python3 scripts/gpu_truth.py --output docs/measurements/gpu-truth
    python3 scripts/gpu_truth.py --tiny          # the same steps on an emulated device, to try the script itself
"""

import argparse
import datetime
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu import truth

ROOT = Path(__file__).resolve().parents[1]
# Steps in their order, and the seconds that each may take: ten minutes if all of them need all of it.
STEPS = {
    "facts": 20,
    "build": 60,
    "transcendental": 15,
    "operators": 90,
    "peers": 50,
    "calls": 40,
    "large": 30,
    "training": 40,
    "tests": 150,
    "sanitizers": 60,
    "profile": 45,
}


def run_step(name, limit, tiny, command=None):
    """Run a step in a process of its own; return what it found, or why it found nothing."""
    command = command or [sys.executable, str(Path(__file__).resolve()), "--step", name, *["--tiny"] * tiny]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        return {"status": "took too long", "limit_s": limit, "said": said[-2000:]}
    seconds = round(time.perf_counter() - started, 2)
    try:
        return {"status": "ran", "seconds": seconds, "found": json.loads(done.stdout.splitlines()[-1])}
    except (IndexError, json.JSONDecodeError):
        return {"status": "failed", "seconds": seconds, "code": done.returncode, "said": done.stderr[-2000:]}


def in_process(name, tiny):
    """Run a step here; return what `run_step` returns."""
    started = time.perf_counter()
    try:
        found = {"status": "ran", "found": truth.STEPS[name](tiny)}
    except Exception:  # whatever a step meets, the others go on
        found = {"status": "failed", "said": traceback.format_exc()[-2000:]}
    return found | {"seconds": round(time.perf_counter() - started, 2)}


def write(output, report):
    """Write the report as JSON and as Markdown."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(truth.markdown(report))


def main(arguments=None):
    """Run the steps; the exit status is 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-truth"), help="path without an ending")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS), help="only these")
    parser.add_argument("--tiny", action="store_true", help="small sizes on an emulated device, in this process")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step:
        with truth.device(given.tiny):
            print(json.dumps(truth.STEPS[given.step](given.tiny)))
        return 0
    if not given.tiny and (reason := truth.missing_gpu()):
        print(f"nothing can be measured: {reason}")
        return 1
    report = {"when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "steps": {}}
    report["device"] = "EMULATED: no number here is a measurement" if given.tiny else "a GPU, see facts"
    for name in given.steps:
        if given.tiny:
            with truth.device(True):
                outcome = in_process(name, True)
        else:
            outcome = run_step(name, STEPS[name], False)
        report["steps"][name] = outcome
        write(given.output, report)
        print(f"{name}: {outcome['status']} in {outcome.get('seconds', STEPS[name])} s", flush=True)
    print(f"wrote {given.output}.json and {given.output}.md")
    return int(any(outcome["status"] != "ran" for outcome in report["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
