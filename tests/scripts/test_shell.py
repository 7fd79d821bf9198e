"""The shell scripts: no GPU test may be skipped (stubs stand for its tools), and wrong arguments are one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "test-gpu"
if not SCRIPT.exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)


@pytest.fixture
def run(tmp_path):
    """Run a copy of the script whose Python and tools are stubs that print how they were called."""
    checkout, tools = tmp_path / "checkout", tmp_path / "tools"

    def stub(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def call(*arguments, smi="echo 'GPU 0: a stub'", sanitizer=None, python="exit 0"):
        (checkout / "scripts").mkdir(parents=True)
        shutil.copy(SCRIPT, checkout / "scripts")
        (checkout / "scripts" / "_environment.sh").write_text(
            'fail() { echo "$1" >&2; exit 1; }\nensure_environment() { echo "environment: $1"; }\n'
            "find_python() { echo own-python; }\n"
        )
        files = 'case "$1" in scripts/gpu_test_files.py) echo tests/one.py; exit;; esac'
        stub(checkout / ".venv/bin/python", f'{files}\necho "python: $CUSINK_REQUIRE_GPU $*"; {python}')
        stub(tools / "own-python", f'{files}\necho "own python: $PYTHONPATH $*"; {python}')
        stub(tools / "nvidia-smi", smi)
        if sanitizer:
            stub(tools / "compute-sanitizer", sanitizer)
        return subprocess.run(
            [checkout / "scripts" / "test-gpu", *arguments],
            env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "CUDA_HOME": str(tmp_path / "none")},
            capture_output=True,
            text=True,
        )

    return call


@pytest.mark.parametrize("smi", ["exit 9", "echo 'No devices were found'"])
def test_no_gpu(run, smi):
    done = run(smi=smi)
    assert done.returncode == 1
    assert "no NVIDIA GPU to test on" in done.stderr
    assert "python:" not in done.stdout


def test_all_three_runs_need_the_gpu_and_get_the_arguments(run):
    done = run("-k", "softmin", sanitizer='echo "sanitizer: $1 $2 $3 $4"; shift 4; exec "$@"')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "python: 1 -m pytest -m gpu tests/one.py -k softmin" in lines
    assert "environment: test" in lines
    for tool in ("memcheck", "racecheck"):
        assert f"sanitizer: --tool {tool} --error-exitcode 1" in lines
    assert sum(line.endswith("-m gpu -p no:cacheprovider tests/one.py -k softmin") for line in lines) == 2
    assert "All passed" in done.stdout


def test_with_here_nothing_is_installed_and_the_own_python_runs(run, tmp_path):
    done = run("--here", "-k", "softmin", sanitizer='shift 4; exec "$@"')
    assert done.returncode == 0, done.stderr
    assert "environment:" not in done.stdout
    lines = done.stdout.splitlines()
    assert f"own python: {tmp_path / 'checkout'} -m pytest -m gpu tests/one.py -k softmin" in lines
    assert sum(line.endswith("-p no:cacheprovider tests/one.py -k softmin") for line in lines) == 2


def test_files_with_gpu_tests_are_found_and_those_that_lack_a_package_left_out(tmp_path):
    tests = tmp_path / "tests"
    for name, text in {
        "test_one.py": "import pytest\n\ndef test(xp): ...\n",
        "test_host.py": "def test(): ...\n",
        "sub/test_marked.py": "import reference\npytestmark = pytest.mark.gpu\n",
        "test_dask.py": "from no_such_package.part import thing\n\ndef test(xp): ...\n",
        "reference.py": "",
    }.items():
        (tests / name).parent.mkdir(parents=True, exist_ok=True)
        (tests / name).write_text(text)
    (tmp_path / "scripts").mkdir()
    finder = shutil.copy(SCRIPT.parent / "gpu_test_files.py", tmp_path / "scripts")
    done = subprocess.run([sys.executable, finder], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["tests/sub/test_marked.py", "tests/test_one.py"]
    assert done.stderr.splitlines() == ["left out: tests/test_dask.py needs no_such_package"]


def test_a_failing_test_or_sanitizer_fails_the_script(run):
    done = run(python='case "$2" in pytest) exit 1;; esac')
    assert done.returncode == 1
    assert "sanitizer" not in done.stdout + done.stderr


def test_an_error_seen_by_the_sanitizer_fails_the_script(run):
    done = run(sanitizer="exit 1")
    assert done.returncode == 1
    assert "under memcheck" in done.stdout
    assert "under racecheck" not in done.stdout


def test_a_missing_sanitizer_is_no_success(run):
    if shutil.which("compute-sanitizer") or list(Path("/usr/local").glob("cuda-*/bin/compute-sanitizer")):
        pytest.skip("this machine has a compute-sanitizer")
    done = run()
    assert done.returncode == 1
    assert "the GPU tests passed, but compute-sanitizer was not found" in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("docs", ["now"], "options of sphinx-build"),
        ("docs", ["--bogus"], "got '--bogus'"),
        ("docs", ["--jobs"], "got '--jobs'"),
        ("test", ["--quick", "tests"], "--quick takes no other"),
        ("demo", ["--bogus"], "demo: unrecognized arguments: --bogus"),
        ("demo", ["sentences", "--rounds=3"], "demo: unrecognized arguments: --rounds=3"),
        ("demo", ["moon"], "demo: shows digits, sentences or documents"),
        ("bench", ["--bogus"], "bench: unrecognized arguments: --bogus"),
        ("bench", ["suite", "-x"], "bench: unrecognized arguments: -x"),
        ("bench", ["now"], "bench: takes suite, tables or options"),
        ("fuzz", ["--minute", "3", "--bogus"], "fuzz: unrecognized arguments: --bogus"),
        ("mutate", ["--bogus"], "mutate: unrecognized arguments: --bogus"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line_before_any_work(script, arguments, said):
    done = subprocess.run([SCRIPT.parent / script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("benchmarks/sinkhorn.py", ["now"], "sinkhorn: unrecognized arguments: now"),
        ("benchmarks/suite.py", ["--rounds", "0"], "suite: argument --rounds: must be at least 1; got 0"),
        ("examples/documents.py", ["--bogus"], "documents: unrecognized arguments: --bogus"),
        ("benchmarks/tables.py", ["--input", "none.jsonl"], "none.jsonl"),
        ("fuzzing/run.py", ["--minutes", "long"], "argument --minutes"),
        ("mutating/run.py", ["--sample", "some"], "argument --sample"),
    ],
)
def test_wrong_arguments_of_a_program_are_one_line_and_status_2(script, arguments, said):
    command = [sys.executable, SCRIPT.parent / script, *arguments]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("examples/galaxies.py", ["--eps", "-1", "--rounds=2", "--dev", "cpu", "--help", "-h"]),
        ("benchmarks/suite.py", ["--works", "pairs", "--quick"]),
        ("fuzzing/run.py", ["--minutes", "60", "--state", "--", "FILE", "--only=solver"]),
        ("mutating/run.py", ["--sample", "40", "--least", "0.9"]),
    ],
)
def test_options_that_a_program_has_are_let_through(program, arguments):
    check = f"source scripts/_environment.sh; known_options scripts/{program} {' '.join(arguments)}"
    done = subprocess.run(["bash", "-euc", check], cwd=SCRIPT.parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_options_of_docs_are_sphinx_s():
    parser = pytest.importorskip("sphinx.cmd.build").get_parser()
    allowed = (SCRIPT.parent / "docs").read_text().split("case $argument in\n")[1].split("*) fail")[0]
    words = [word.replace("?*=*", "a=b").replace("?*", "2") for word in allowed.split() if word.startswith("-")]
    assert len(words) > 12
    parser.parse_args([*(word.rstrip(")") for word in words), "docs", "site"])
