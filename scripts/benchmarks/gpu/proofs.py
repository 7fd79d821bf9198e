"""The steps of ``gpu_truth.py`` that prove: the GPU tests, and a call of every kernel under the four sanitizers."""

import collections
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu import kernels as bench
from benchmarks.gpu import workload

ROOT = workload.ROOT
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# What one process of a tool runs, so that four times as many share the work.
SHARES = (
    ("small", "large", "documents", "halves"),
    ("stored", "points", "near"),
    ("sums", "ragged", "grids", "unbalanced"),
)
PROCESSES = 12  # of tests, at most
SAID = 40  # failures and warnings that are told in full


def environment():
    """Return the environment of a process that works on this checkout."""
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"}


def gpu_test_files():
    """Return the files of tests that have GPU tests and can be imported here, and what was said of the others."""
    command = [sys.executable, str(ROOT / "scripts" / "gpu_test_files.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr.splitlines()


def pytest_command(files, mark="gpu"):
    """Return the command that runs the tests of these files; what libraries warn of is no failure of a kernel."""
    plugin = ["-p", "no:cacheprovider", "-p", "benchmarks.gpu.outcomes"]
    return [sys.executable, "-m", "pytest", "-q", "-m", mark, "-W", "default", *plugin, *files]


def begin_tests(files, processes, folder, mark="gpu"):
    """Start all processes; return each with the file of its outcomes."""
    begun = []
    for k in range(processes):
        outcomes, said = folder / f"{k}.jsonl", folder / f"{k}.said"
        named = {"GPU_TRUTH_PART": f"{k}/{processes}", "GPU_TRUTH_OUTCOMES": str(outcomes)}
        named |= {"CUSINK_REQUIRE_GPU": "1"} if mark == "gpu" else {}
        with said.open("w") as file:
            process = subprocess.Popen(
                pytest_command(files, mark), cwd=ROOT, env=environment() | named, stdout=file, stderr=subprocess.STDOUT
            )
        begun.append((process, outcomes, said))
    return begun


def lines_of(path):
    """Return the lines of a file of JSON; the last one may be cut."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def run_tests(files, processes, limit, mark="gpu"):
    """Yield each failure as it happens; then the warnings, and a row for each process."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        begun = begin_tests(files, processes, Path(name), mark)
        told, ended = collections.Counter(), False
        try:
            while not ended and time.perf_counter() - started < limit:
                time.sleep(0.2)
                ended = all(process.poll() is not None for process, *_ in begun)
                for k, (_, outcomes, _) in enumerate(begun):
                    lines = lines_of(outcomes)
                    for line in lines[told[k] :]:
                        if line.get("outcome", "passed") != "passed":
                            yield {"process": k, **line}
                    told[k] = len(lines)
        finally:
            for process, *_ in begun:
                process.kill()
                process.wait()
        warnings = collections.Counter()
        for k, (process, outcomes, said) in enumerate(begun):
            lines = lines_of(outcomes)
            warnings.update(line["warning"] for line in lines if "warning" in line)
            counts = collections.Counter(line["outcome"] for line in lines if "outcome" in line)
            row = {"process": k, "tests": next((line["tests"] for line in lines if "tests" in line), None)}
            row |= {"finished": any("finished" in line for line in lines), "code": process.returncode, **counts}
            yield row if row["finished"] else row | {"last_words": said.read_text(errors="replace")[-1500:]}
        for warning, count in warnings.most_common(SAID):
            yield {"warning": warning, "count": count}


def gpu_tests(tiny, limit=130):
    """Yield the outcomes of the GPU tests: several processes at once, each with as many of the tests."""
    files, left_out = gpu_test_files()
    yield {"files": files, "left_out": left_out}
    if tiny:  # there is no GPU: only that they are found, and shared out
        yield from run_tests(["tests/benchmarks/test_predict.py"], 2, 60, mark="not gpu")
        return
    yield from run_tests(files, min(PROCESSES, os.cpu_count() or 1), limit)


def tool_command(tool, share):
    """Return the command that runs parts of the workload under a tool of compute-sanitizer, or None without it."""
    path = shutil.which("compute-sanitizer") or next(
        iter(sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))), None
    )
    if path is None:
        return None
    script = str(Path(workload.__file__).resolve())
    return [str(path), "--tool", tool, "--error-exitcode", "7", sys.executable, script, *share]


def under(tool, share, limit):
    """Run parts under a tool; return a row, of what was done when time ran out too."""
    row, started = {"tool": tool, "parts": " ".join(share)}, time.perf_counter()
    if (command := tool_command(tool, share)) is None:
        return row | {"status": bench.NOT_INSTALLED}
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        try:
            done = subprocess.run(
                command, env=environment(), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=limit
            )
            row["code"] = done.returncode
        except subprocess.TimeoutExpired:
            row["code"] = None
        file.seek(0)
        return row | {"seconds": round(time.perf_counter() - started, 1)} | told(row["code"], file.read())


def told(code, said):
    """Return what a tool has found: its status, the part that it was in, its errors and their number."""
    # "ERROR SUMMARY: 2 errors", or "RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)"
    summary = re.findall(r"SUMMARY: (?:\d+ hazards? displayed \()?(\d+) error", said)
    parts = re.findall(r"^part (\w+)", said, re.MULTILINE)
    found = {"errors": int(summary[-1]) if summary else None, "last_part": parts[-1] if parts else None}
    if code is None:
        return found | {"status": "took too long", "said": said[-1500:]}
    if code == 0 and found["errors"] == 0:
        return found | {"status": "clean"}
    first = said.find("=========")
    return found | {
        "status": "errors" if code == 7 or found["errors"] else "failed",
        "said": said[max(first, 0) :][:3000],
    }


def sanitizers(tiny, limit=130):
    """Yield what each of the four tools says of a call of every kernel, with a third of them in a process."""
    if tiny:
        for name in workload.PARTS:
            begun = len(workload.LAUNCHED)
            workload.run((name,), "float32", say=lambda *_, **__: None)
            yield {"parts": name, "status": "emulated", "kernels": sorted(set(workload.LAUNCHED[begun:]))}
        return
    jobs = [(tool, share) for share in SHARES for tool in TOOLS]
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        for future in concurrent.futures.as_completed([pool.submit(under, *job, limit) for job in jobs]):
            yield future.result()
