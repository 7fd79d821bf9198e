"""The tour of the gallery is a notebook as it stands: jupytext reads it, and a kernel of Jupyter runs all its cells."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

TOUR = Path(__file__).resolve().parents[2] / "docs" / "gallery" / "plot_1_tour.py"
RUN = """
import json, sys
import jupytext, nbclient
notebook = jupytext.read(sys.argv[1], fmt="py:percent")
nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
print(json.dumps([dict(cell) for cell in notebook.cells]))
"""


def test_the_tour_runs_as_a_notebook(tmp_path):
    if not TOUR.exists():
        pytest.skip("the pages are not beside the tests")
    own = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    environment = {name: x for name, x in os.environ.items() if name != "MPLBACKEND"} | own
    command = [sys.executable, "-c", RUN, str(TOUR)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    code = TOUR.read_text(encoding="utf-8")
    assert len(cells) == code.count("# %%") + 1  # and the heading
    assert any("SinkhornResult(" in output.get("text", "") for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
