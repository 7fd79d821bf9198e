"""Wheel, sdist, editable install and bare checkout hold every kernel; the shell sets up ``.venv``.

``scripts/test`` goes on from here and runs against the installed wheel what could differ there.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"]
TOP = ["pyproject.toml", "setup.cfg", "MANIFEST.in", "LICENSE", *PAGES]
FOLDERS = ["cusink", "kernels", "tests", "scripts", "docs", ".ci"]
LISTING = (
    "import cusink; from cusink.backends.cupy import loader; print(cusink.__file__, *loader.kernel_files(), sep='\\n')"
)


def names(folder, *patterns):
    top = ROOT / folder
    return sorted(str(path.relative_to(top)) for pattern in patterns for path in top.rglob(pattern))


def call(*command, cwd, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finds_all_kernels(output, place):
    """Whether LISTING printed a package under `place` and all kernels of this checkout."""
    package, *kernels = output.split("\n")[:-1]
    assert kernels == names("kernels", "*.cu") and kernels
    return Path(package).is_relative_to(place)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a copy of the checkout, and the sdist and the wheel that were built in it."""
    pytest.importorskip("setuptools", reason="pip install setuptools, to build without a network")
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "checkout"
    copy.mkdir()
    for name in TOP:
        shutil.copy(ROOT / name, copy)
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name,
            copy / name,
            ignore=shutil.ignore_patterns("__pycache__", ".*_cache", "auto_gallery", "generated"),
        )
    build = "from setuptools import build_meta as b; b.build_sdist('..'); b.build_wheel('..')"
    call(sys.executable, "-c", build, cwd=copy)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return copy, sdist, wheel


def test_the_wheel_holds_the_package_and_the_kernels_and_nothing_else(built, tmp_path):
    """A folder that setup.cfg does not list would be missing here."""
    with zipfile.ZipFile(built[2]) as wheel:
        held = [name for name in wheel.namelist() if ".dist-info/" not in name]
        wheel.extractall(tmp_path)
    wanted = [f"cusink/{name}" for name in names("cusink", "*.py", "py.typed")]
    wanted += [f"cusink/kernels/{name}" for name in names("kernels", "*.cu", "*.cuh")]
    assert sorted(held) == sorted(wanted)
    # scripts/test runs against the wheel only what could differ there, as the files are the same to the last byte.
    for name in held:
        source = ROOT / name.removeprefix("cusink/") if name.startswith("cusink/kernels/") else ROOT / name
        assert (tmp_path / name).read_bytes() == source.read_bytes(), name
    assert finds_all_kernels(call(sys.executable, "-c", LISTING, cwd=tmp_path), tmp_path)
    (licence,) = tmp_path.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_text().startswith("MIT License")


def test_the_sdist_holds_all_that_is_needed_to_build_and_to_test(built):
    with tarfile.open(built[1]) as sdist:
        held = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    wanted = {path.relative_to(built[0]).as_posix() for name in [*TOP, *FOLDERS] for path in [built[0] / name]}
    wanted |= {path.relative_to(built[0]).as_posix() for name in FOLDERS for path in (built[0] / name).rglob("*")}
    assert {name for name in wanted if (built[0] / name).is_file()} <= held
    assert not [name for name in held if "__pycache__" in name or name.endswith(".pyc")]


def test_an_editable_install_finds_the_kernels_of_the_checkout(built, tmp_path):
    # A new environment that sees NumPy and SciPy, and into which the editable wheel is unpacked, as pip does it.
    call(sys.executable, "-m", "venv", "--without-pip", "environment", cwd=tmp_path)
    (site,) = tmp_path.glob("environment/lib/python*/site-packages")
    for name in ("numpy", "numpy.libs", "scipy", "scipy.libs"):
        source = Path(np.__file__).parents[1] / name
        if source.exists():
            (site / name).symlink_to(source)
    build = "import sys; from setuptools import build_meta as b; b.build_editable(sys.argv[1])"
    call(sys.executable, "-c", build, tmp_path, cwd=built[0])
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    python = tmp_path / "environment" / "bin" / "python"
    assert finds_all_kernels(call(python, "-c", LISTING, cwd=tmp_path), built[0])


def test_a_bare_checkout_finds_its_kernels(built):
    assert finds_all_kernels(call(sys.executable, "-c", LISTING, cwd=built[0]), built[0])


# The shell that sets up .venv


def test_a_compiler_is_brought_where_there_is_none_that_runs(shell, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "python: $*"; [ "$2" = pip ]\n')  # ziglang is not there, or cut short
    python.chmod(0o755)
    assert shell("ensure_compiler", g__="exit 0").stdout == ""
    done = shell(f"PATH={tmp_path}/nothing; ensure_compiler")
    assert done.returncode == 0, done.stderr
    assert "python: -m pip install" in done.stdout and "ziglang==" in done.stdout


@pytest.fixture
def shell(tmp_path):
    """Run lines of bash after sourcing scripts/_environment.sh, with stub programs first on the path."""
    tools = tmp_path / "tools"
    tools.mkdir()

    def run(script, **stubs):
        for name, text in stubs.items():
            stub = tools / ("g++" if name == "g__" else name.replace("_", "-"))
            stub.write_text(f"#!/bin/bash\n{text}\n")
            stub.chmod(0o755)
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"source '{ROOT}/scripts/_environment.sh'\n{script}", "demo"],
            cwd=tmp_path,
            env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ("rows", "extra"),
    [
        ("580.65.06, 9.0", "cuda13"),
        ("595.10, 12.0", "cuda13"),
        ("550.54.15, 9.0", "cuda12"),
        ("525.60.13, 7.5", "cuda12"),
        ("580.65.06, 7.0", "cuda12"),  # CUDA 13 has no Volta
        ("580.65.06, 9.0\n580.65.06, 6.1", "cuda12"),
        ("470.82.01, 7.5", ""),
        ("No devices were found", ""),
        ("", ""),
    ],
)
def test_the_driver_and_the_gpus_choose_cupy(shell, rows, extra):
    done = shell("cuda_extra", nvidia_smi=f"printf '{rows}\n'")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, extra, "")


def test_no_driver_or_a_broken_one_means_numpy(shell):
    done = shell("cuda_extra", nvidia_smi="echo NVIDIA-SMI has failed; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_python_that_is_too_old_or_a_stub_is_passed_over(shell):
    stubs = dict.fromkeys(["python3", "python3.14", "python3.13", "python3.12"], "exit 127")
    done = shell("find_python", **stubs, **{"python3.11": "exit 0"})
    assert done.returncode == 0 and done.stdout.endswith("/tools/python3.11\n")


def test_no_python_is_one_clear_line(shell):
    every = ["python", "python3", *(f"python3.{minor}" for minor in range(11, 20))]
    done = shell("ensure_environment demo", **dict.fromkeys(every, "exit 1"))
    assert done.returncode == 2
    assert done.stderr == "demo: needs Python 3.11 or newer; name it in PYTHON if it is not on the path\n"


PYTHON = f"""
case "$*" in
    "-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "venv" >>log ;;
    "-m pip"*) echo "pip ${{@: -1}}" >>log; [[ ! -e offline ]] ;;
    --version) echo Python 3.x ;;
    *) exec '{sys.executable}' "$@" ;;
esac"""


@pytest.fixture
def log(tmp_path):
    """Return a function that lists the calls of the stub Python since it was last called."""
    (tmp_path / "scripts").mkdir()
    for name in ["pyproject.toml", "setup.cfg", "scripts/_environment.sh"]:
        shutil.copy(ROOT / name, tmp_path / name)

    def read():
        lines = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
        (tmp_path / "log").unlink(missing_ok=True)
        return lines

    return read


def test_the_environment_is_made_once_and_again_when_something_changed(shell, log, tmp_path):
    stubs = {"python3": PYTHON, "nvidia_smi": "exit 9"}
    assert shell("ensure_environment demo", **stubs).returncode == 0
    assert log() == ["venv", "pip .[demo]"]
    done = shell("ensure_environment demo", **stubs)
    assert (done.returncode, done.stdout, log()) == (0, "", [])
    assert shell("ensure_environment test", **stubs).returncode == 0
    assert log() == ["pip .[test]"]  # one environment for both
    (tmp_path / ".venv" / "installed-demo").unlink()
    assert shell("ensure_environment demo", **stubs).returncode == 0
    assert log() == []  # all of demo is in test
    (tmp_path / "pyproject.toml").write_text("# another\n")
    assert shell("ensure_environment demo", **stubs).returncode == 0
    assert log() == ["pip .[demo]"]
    stubs["nvidia_smi"] = "echo 580.65.06, 9.0"  # a GPU was put in
    assert shell("ensure_environment demo", **stubs).returncode == 0
    assert log() == ["pip .[demo,cuda13]"]


def test_without_a_network_the_message_is_clear_and_nothing_counts_as_done(shell, log, tmp_path):
    stubs = {"python3": PYTHON, "nvidia_smi": "exit 9"}
    (tmp_path / "offline").touch()
    done = shell("ensure_environment demo", **stubs)
    assert done.returncode == 1 and log() == ["venv", "pip .[demo]"]
    assert "check the\n  network" in done.stderr and "PIP_INDEX_URL" in done.stderr
    (tmp_path / "offline").unlink()
    assert shell("ensure_environment demo", **stubs).returncode == 0
    assert log() == ["venv", "pip .[demo]"]


def test_a_python_without_venv_says_what_to_install(shell, log):
    done = shell("ensure_environment demo", python3=PYTHON.replace("mkdir", "exit 1; mkdir"), nvidia_smi="exit 9")
    assert done.returncode == 1 and "apt install python3-venv" in done.stderr


def test_an_environment_of_the_users_own_is_not_touched(shell, log, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "precious").touch()
    done = shell("ensure_environment demo", python3=PYTHON, nvidia_smi="exit 9")
    assert done.returncode == 1 and log() == [] and "rm -r .venv" in done.stderr
    assert (tmp_path / ".venv" / "precious").exists()


def test_another_python_gets_a_new_environment(shell, log):
    assert shell("ensure_environment demo", python3=PYTHON, nvidia_smi="exit 9").returncode == 0
    assert log() == ["venv", "pip .[demo]"]
    other = PYTHON.replace("--version)", "*base_prefix*) echo 3.99 /elsewhere ;;\n    --version)")
    assert shell("ensure_environment demo", python3=other, nvidia_smi="exit 9").returncode == 0
    assert log() == ["venv", "pip .[demo]"]


def test_the_version_is_written_once():
    """Elsewhere it is read from cusink/version.py, but in CITATION.cff, which has no way to."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "cusink" / "version.py").read_text())[1]
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version
    said = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(.+?)\](.*\n){3}", said, re.MULTILINE)  # of a release the heading has the version
    assert newest[1] == version or (newest[1] == "Unreleased" and f"\nThis will be {version}, " in newest[0])
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


def test_no_message_installs_the_package_by_its_name():
    """It is not on PyPI: a message names what is missing, or, in a checkout, ``.[extra]``."""
    texts = [
        *ROOT.glob("cusink/**/*.py"),
        *ROOT.glob("scripts/**/*.py"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "README.md",
    ]
    told = re.compile(r"pip install [^`\n]*\bcusink\b(?!\.)")
    found = {str(path.relative_to(ROOT)): told.findall(path.read_text(encoding="utf-8")) for path in texts}
    assert not {name: messages for name, messages in found.items() if messages}
