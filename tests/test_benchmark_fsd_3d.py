"""fsd's renderer fits real photographs, and its benchmarks of speed and memory run on small sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
VIEWS = ROOT.parent / "shared" / "data" / "spot_views_128.npz"


def run(script: str, out: Path) -> dict:
    """The JSON of a quick run."""
    command = [sys.executable, "-m", f"benchmarks.{script}", "--out", out, "--quick"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert {figure["met"] for figure in record["figures"]} <= {None}
    return record


@pytest.mark.slow
@pytest.mark.skipif(not VIEWS.is_file(), reason="spot_views_128.npz is not in ../shared/data")
def test_a_short_fit_of_real_views_is_recognisable_from_new_sides(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.fsd import spot as fsd_spot

    torch.set_num_threads(1)
    train, test = fsd_spot.views("train"), fsd_spot.views("test")
    blank = fsd_spot.psnr(torch.ones_like(test.color), fsd_spot.on_white(test))
    assert blank == pytest.approx(11.8, abs=0.1)
    scene = fsd_spot.fit(train, {0: 24, 100: 48}, steps=400, batch=2048)
    found = fsd_spot.judge(scene, test)
    assert found["psnr"] > 20
    assert found["psnr_mask"] > 15
    assert found["silhouette_iou"] > 0.9
    assert fsd_spot.mesh_iou(scene, [test]) > 0.9


@pytest.mark.slow
@pytest.mark.skipif(not VIEWS.is_file(), reason="spot_views_128.npz is not in ../shared/data")
def test_the_fit_is_reported(tmp_path: Path) -> None:
    record = run("fsd.spot", tmp_path / "out.json")
    assert [figure["name"] for figure in record["figures"]] == ["seconds", "whole image", "inside the mask"]
    assert record["psnr"] > record["white_image"] == pytest.approx(11.8, abs=0.1)


@pytest.mark.slow
def test_occupancy_asks_less_for_the_same_picture(tmp_path: Path) -> None:
    record = run("fsd.occupancy", tmp_path / "out.json")
    queries, agreement, _ = record["figures"]
    # counts, so true at any size
    assert queries["ratio"]["median"] > 1.2
    assert agreement["difference"]["median"] > 40


@pytest.mark.slow
def test_memory_of_both_fields_is_measured(tmp_path: Path) -> None:
    record = run("fsd.memory", tmp_path / "out.json")
    peaks = {f["name"]: f["difference"]["median"] for f in record["figures"]}
    assert 0 < peaks["grid peak"] < 2
    assert peaks["hash peak"] > peaks["hash render"] > 0
