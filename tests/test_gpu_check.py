"""tools/gpu.sh runs to its end where no card is, and says of each check what came of it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """The Python part of tools/gpu.sh."""
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.spec_from_file_location("_gpu", BENCHMARKS / "core/gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_script_ends_well_without_a_card(tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": sys.executable,
        "OUT": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(["sh", "tools/gpu.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["device"] == "cpu"
    assert {name: check["status"] for name, check in record["checks"].items()} == {
        "tests": "skipped",
        "steps": "done",
        "guidance": "done",
        "marching": "skipped",
        "object": "done",
    }
    assert record["checks"]["tests"]["skipped"] >= 4
    assert "needs a CUDA device" in record["checks"]["marching"]["reason"]
    assert record["checks"]["steps"]["steps"]["in_batch"]["ratio"] > 1
    assert "mesh.glb" in record["checks"]["object"]["files"]


def test_a_check_that_fails_or_hangs_is_a_line_of_the_record_and_the_others_go_on(
    gpu, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(gpu, "CHECKS", {"one": (None, 1.0), "two": (None, 1.0)})
    outcomes = {"one": {"status": "failed", "reason": "took more than 1 s"}, "two": {"status": "done"}}
    monkeypatch.setattr(gpu, "apart", lambda name, limit, quick: outcomes[name])
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "gpu.json")])
    assert gpu.main() == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["checks"] == outcomes
    assert "one: failed: took more than 1 s" in capsys.readouterr().out


def test_a_check_is_a_process_whose_error_and_limit_are_told(gpu, monkeypatch):
    assert "invalid choice" in gpu.apart("nothing of the kind", 60.0, True)["reason"]

    def too_long(*_arguments, timeout, **_options):
        raise subprocess.TimeoutExpired("gpu", timeout)

    monkeypatch.setattr(subprocess, "run", too_long)
    assert gpu.apart("steps", 3.0, True) == {
        "status": "failed",
        "reason": "took more than 3 s",
        "seconds": 3.0,
    }
