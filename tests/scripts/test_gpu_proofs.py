"""The steps that prove on a GPU, with stand-ins for its tools: what they find is kept, told apart, and complete."""

import json
import os
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "gpu_truth.py").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from benchmarks.gpu import counters, proofs, verdicts, workload  # noqa: E402

TESTS = """
import time, warnings
import pytest

@pytest.mark.parametrize("k", range(8))
def test_quick(k):
    warnings.warn("CuPy will change", DeprecationWarning)
    assert k != 5, "five is wrong"

def test_left_out_by_its_mark():
    pass
"""
HANGS = """
def test_slow():
    time.sleep(100)
"""


def run_tests(folder, text, processes=3, limit=600):
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nmarkers = gpu: x\n")
    file = folder / "test_some.py"
    file.write_text(
        text.replace("@pytest", "@pytest.mark.gpu\n@pytest").replace("def test_slow", "@pytest.mark.gpu\ndef test_slow")
    )
    return list(proofs.run_tests([str(file)], processes, limit))


def test_processes_share_the_tests_out_by_count(tmp_path):
    rows = run_tests(tmp_path, TESTS)
    assert [row["tests"] for row in rows if "tests" in row] == [3, 3, 2]
    assert all(row["finished"] for row in rows if "tests" in row)
    assert sum(row.get("passed", 0) for row in rows) == 7  # a warning is no failure
    (failed,) = [row for row in rows if "test" in row]
    assert failed["test"].endswith("test_quick[5]") and "five is wrong" in failed["said"]
    assert [row["count"] for row in rows if "warning" in row] == [8]
    assert "test_quick[5]: failed" in verdicts.judge("tests", {"status": "ran", "rows": rows})


def test_tests_that_hang_cost_no_outcome(tmp_path, monkeypatch):
    """Time runs out when all the others have ended."""

    def clock():
        noted = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
        return 1e9 * (noted.count('"outcome"') == 8 and '"finished"' in noted)

    monkeypatch.setattr(proofs.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(proofs.time, "perf_counter", clock)
    rows = run_tests(tmp_path, TESTS + HANGS, processes=2)
    counts = [(row["tests"], row.get("passed", 0), row["finished"]) for row in rows if "tests" in row]
    assert counts == [(5, 4, False), (4, 3, True)]
    assert any("five is wrong" in row.get("said", "") for row in rows)
    assert "did not end, after 4 of 5" in verdicts.judge("tests", {"status": "ran", "rows": rows})


def tool(folder, monkeypatch, name, code):
    """Put a tool on the path, which is a script of Python."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{code}")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


SANITIZER = """
name, parts = sys.argv[2], sys.argv[7:]
for part in parts:
    print("part", part, "float32", flush=True)
    if name == "racecheck" and part == "near":
        print("========= Error: Race reported between Write access at tile_bounds")
        print("========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)")
        sys.exit(7)
    if name == "initcheck" and part == "ragged":
        time.sleep(100)
print("========= ERROR SUMMARY: 0 errors")
"""


def test_each_tool_runs_each_part_and_what_it_finds_is_told(tmp_path, monkeypatch):
    tool(tmp_path, monkeypatch, "compute-sanitizer", SANITIZER)
    rows = list(proofs.sanitizers(False, limit=15))
    assert len(rows) == 12
    for name in proofs.TOOLS:
        assert sorted(" ".join(row["parts"] for row in rows if row["tool"] == name).split()) == sorted(workload.PARTS)
    wrong = {row["tool"]: row for row in rows if row["status"] != "clean"}
    assert wrong.keys() == {"racecheck", "initcheck"}
    assert wrong["racecheck"]["status"] == "errors" and wrong["racecheck"]["last_part"] == "near"
    assert "tile_bounds" in wrong["racecheck"]["said"] and wrong["racecheck"]["errors"] == 3
    assert wrong["initcheck"]["status"] == "took too long" and wrong["initcheck"]["last_part"] == "ragged"
    verdict = verdicts.judge("sanitizers", {"status": "ran", "rows": rows})
    assert "racecheck stored points near: errors" in verdict and "initcheck" in verdict


def test_errors_count_whatever_the_exit_status():
    assert proofs.told(0, "part small float32\n========= ERROR SUMMARY: 2 errors\n")["status"] == "errors"
    assert proofs.told(1, "part small float32\nTraceback\n")["status"] == "failed"
    assert proofs.told(0, "part small float32\n")["status"] == "failed"  # no tool has said anything


HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device",'
    '"CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)


def line(number, kernel, grid, metric, value):
    """Return a line of ncu's CSV."""
    launch = f'"{number}","7","python3","h","{kernel}","1","7","(128, 1, 1)","({grid}, 1, 1)","0","9.0"'
    return f'{launch},"Command line profiler metrics","{metric}","x","{value}"'


CSV = "\n".join(
    (
        "==PROF== Connected to process 7",
        "part of what the program says",
        HEAD,
        line(0, "softmin_rows_tiled", 512, "gpu__time_duration.sum", "81,248"),
        line(0, "softmin_rows_tiled", 512, "sm__inst.avg", "2.75"),
        line(1, "plan_sum(float*, int)", 64, "gpu__time_duration.sum", "1,000,000"),
        line(1, "plan_sum(float*, int)", 64, "sm__inst.avg", "n/a"),
    )
)


def test_a_table_of_ncu_is_a_row_for_each_launch():
    first, second = counters.table(CSV)
    assert first["kernel"] == "softmin_rows_tiled" and first["grid"] == "(512, 1, 1)"
    assert first["gpu__time_duration.sum"] == 81248 and first["sm__inst.avg"] == 2.75
    assert second["kernel"] == "plan_sum" and second["gpu__time_duration.sum"] == 1e6
    assert second["sm__inst.avg"] == "n/a" and counters.table("==ERROR== nothing") == []


NCU = """
import pathlib, time
given, part = sys.argv, sys.argv[-1]
assert given[given.index("--kernel-name") + 1].startswith("regex:^(softmin|")
if part == "small":
    print("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")
    sys.exit(1)
if "tensor_op_hmma" in " ".join(given):
    print("==ERROR== Failed to find metric sm__inst_executed_pipe_tensor_op_hmma.sum")
    sys.exit(1)
pathlib.Path(given[given.index("--log-file") + 1]).write_text(pathlib.Path(__file__).with_name("csv").read_text())
if part == "pairs":
    time.sleep(100)
"""


def test_ncu_is_asked_for_our_kernels_and_what_it_lacks_is_told(tmp_path, monkeypatch):
    tool(tmp_path, monkeypatch, "ncu", NCU)
    (tmp_path / "csv").write_text(CSV)
    rows = list(counters.profile(False, limit=5))
    seen = [row["kernel"] for row in rows if row["part"] == "dense" and "kernel" in row]
    assert seen == ["softmin_rows_tiled", "plan_sum"]
    lacking = {row["part"]: row for row in rows if "missing" in row}
    assert lacking["dense"]["missing"] == ["softmin_columns", "logit_update"]
    assert lacking["small"]["status"] == counters.NOT_PERMITTED
    assert [row["kernel"] for row in rows if row["part"] == "pairs" and "kernel" in row] == seen  # kept
    verdict = verdicts.judge("profile", {"status": "ran", "rows": rows})
    assert "dense lacks softmin_columns, logit_update" in verdict and "ERR_NVGPUCTRPERM" in verdict


def test_the_filter_keeps_the_kernels_that_a_part_must_show():
    """What CuPy itself launches before them is left out; the whole script tries this on the emulated device."""
    for _, wanted in counters.PARTS.values():
        assert all(counters.re.match(counters.FILTER, name) for name in wanted)
    for name in ("cupy_copy__float32_float32", "cupy_isfinite__float32_bool", "void at::native::softmin", "reduce"):
        assert not counters.re.match(counters.FILTER, name)


def test_lines_that_were_cut_are_left_out(tmp_path):
    path = tmp_path / "rows"
    path.write_text(json.dumps({"a": 1}) + '\n{"a": ')
    assert proofs.lines_of(path) == [{"a": 1}]
    assert proofs.lines_of(tmp_path / "none") == []
