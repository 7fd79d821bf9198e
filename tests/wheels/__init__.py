"""What is unpacked from wheels beside the environment: CuPy for CUDA 12 and 13, and compilers and tools of CUDA 13.

``scripts/test`` unpacks them into ``.cache/wheels`` (`ensure_wheels` in ``scripts/_environment.sh``), as the two CuPy
cannot be installed side by side. They are asked in processes of their own; nothing else imports them.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("CUSINK_WHEELS") or ROOT / ".cache" / "wheels").absolute()
NAMES = ("cuda12", "cuda13")


def folder(name):
    """Return the folder of the wheels for one release of CUDA; skip the test, or fail it, where there is none."""
    if (FOLDER / name / "cupy").is_dir():
        return FOLDER / name
    if os.environ.get("CUSINK_REQUIRE_WHEELS", "0") not in {"", "0"}:
        pytest.fail(f"CUSINK_REQUIRE_WHEELS is set, and {FOLDER / name} holds no CuPy")
    pytest.skip(f"no CuPy in {FOLDER / name}: ./scripts/test unpacks it")


def tool(name):
    """Return the path of a tool of CUDA 13, as ``nvdisasm``."""
    return next(iter((folder("cuda13") / "nvidia").glob(f"*/bin/{name}")))


def compiler(name):
    """Return the path of the NVRTC that belongs to a CuPy."""
    return next(iter((folder(name) / "nvidia").glob("*/lib/libnvrtc.so.1?")))


@functools.cache
def ask(name, script, question):
    """Run a script of this folder with the CuPy of a wheel; it reads JSON text and prints JSON."""
    library = compiler(name).parent
    # The compiler looks for its second library on the path, as it lies in no usual place.
    environment = os.environ | {"PYTHONPATH": str(folder(name)), "LD_LIBRARY_PATH": str(library)}
    command = [sys.executable, "-W", "error", str(Path(__file__).parent / script), str(compiler(name))]
    done = subprocess.run(command, input=question, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{script} with the CuPy for {name}: {done.stderr[-3000:]}")
    return json.loads(done.stdout)
