"""Every example and notebook runs, with few steps, in a process and a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAID = {  # the few steps that an example is given here, and what it must say, a regular expression
    "corsd_loop.py": ("3", "with CORSD: "),
    "corsd_lightning.py": ("3", "accuracy "),
    "corsd_early_exit.py": ("2", "threshold 1.01: "),
    "corsd_export.py": ("0.5", "of 500 test images right"),
    "fsd_renderer.py": ("3", "balls.gif"),
    "fsd_loop.py": ("4", "resumed bit for bit"),
    "fsd_prior.py": ("2", "2 calls of the network"),
    "fsd_2d.py": ("5", "largest difference"),
    "calib_attach.py": ("2", "kept: step"),
    "calib_domains.py": ("1", "glare: "),
    "calib_serve.py": ("1", "alpha 0.0: largest difference"),
    # Of ten classes: its classifier was trained, or this would be near 10 %.
    "calib_own_data.py": ("2", r"source before ([89]\d\.\d|100\.0) %"),
    "notebooks/try_corsd.py": ("2", "cross-entropy "),
    "notebooks/try_fsd.py": ("2", ""),
    "notebooks/try_calib.py": ("2", "classifier unchanged: True"),
}


def test_every_example_is_listed_and_short() -> None:
    found = {str(path.relative_to(EXAMPLES)): path for path in EXAMPLES.rglob("*.py")}
    assert set(found) == set(SAID)
    lengths = {name: len(path.read_text().splitlines()) for name, path in found.items()}
    assert {name: n for name, n in lengths.items() if n >= (120 if "/" in name else 80)} == {}


# One of each method always, the others with the slow tests.
ALWAYS = ("corsd_loop.py", "fsd_loop.py", "calib_attach.py")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in SAID]
)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    steps, said = SAID[name]
    command = [sys.executable, str(EXAMPLES / name), *([] if "/" in name else [steps])]
    settings = {"OMP_NUM_THREADS": "1", "STEPS": steps, "MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(said, done.stdout), done.stdout[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted((EXAMPLES / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_installs_first_and_is_a_notebook(path: Path) -> None:
    notebook = jupytext.read(path)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].startswith("%pip install -q "), "the first code cell installs, as Colab needs it"
    # Before the first release the index might have another's package of that name.
    assert all(word.endswith("-*.whl") for word in code[0].splitlines()[0].split()[3:])
    assert 'device = "cuda" if torch.cuda.is_available() else "cpu"' in code[1]
    assert notebook.cells[0].cell_type == "markdown"
