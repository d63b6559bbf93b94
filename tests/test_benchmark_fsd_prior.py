"""The benchmark of fsd's small priors: what it says of weights that are there, and of none."""

import json
import sys
from pathlib import Path

import pytest
import torch
from fsd.priors.pixel_pipeline import build_pipeline, write_pipeline
from fsd.world.captions import vocabulary

ROOT = Path(__file__).parents[1]


@pytest.fixture
def fsd_prior(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.fsd import prior as fsd_prior

    return fsd_prior


def test_both_variants_are_judged_in_quick_form(
    fsd_prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    for variant in fsd_prior.VARIANTS:
        words = [*vocabulary(), ","]
        pipeline = build_pipeline(words, variant == "multi-view", channels=(8, 16), text_width=16)
        write_pipeline(pipeline, tmp_path / variant)
    folders = [word for variant in fsd_prior.VARIANTS for word in (f"--{variant}", str(tmp_path / variant))]
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["fsd/prior.py", "--out", str(out), "--quick", *folders])
    fsd_prior.main()
    record = json.loads(out.read_text())
    assert {figure["met"] for figure in record["figures"]} == {None}
    found = {figure["name"]: figure["difference"]["median"] for figure in record["figures"]}
    assert found["multi-view 2d"] == found["camera-free 2d"] == 100
    # fresh weights draw noise
    assert found["camera-free colour"] < 60
    assert {"camera-free kind", "multi-view kind", "multi-view open"} <= set(found)
    assert (
        record["multi-view"]["quality"][0]["pictures"] == 4 * record["camera-free"]["quality"][0]["pictures"]
    )
    assert record["multi-view"]["weights"] != record["camera-free"]["weights"]


def test_goals_are_those_of_the_judged_scale(fsd_prior) -> None:
    first = {"kind": 0.96, "colour": 0.97, "view": 0.8}
    found = {
        "quality": [first, first | {"kind": 0.5}],
        "openness": [
            {"prompt": "a mushroom", "colour_ratio": 0.97},
            {"prompt": "an object", "colour_ratio": 0.91},
        ],
        "agreement": {"agree": 1.0},
    }
    met = {figure["name"]: figure["met"] for figure in fsd_prior.judged("camera-free", found, quick=False)}
    assert met == {
        "camera-free kind": True,
        "camera-free colour": True,
        "camera-free view": False,
        "camera-free open": True,
        "camera-free 2d": True,
    }
    found["openness"][1]["colour_ratio"] = 0.85
    assert not fsd_prior.judged("x", found, quick=False)[3]["met"]


def test_a_prior_that_is_not_there_is_skipped(
    fsd_prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [word for variant in fsd_prior.VARIANTS for word in (f"--{variant}", str(tmp_path / variant))]
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["fsd/prior.py", "--out", str(out), "--quick", *folders])
    fsd_prior.main()
    assert json.loads(out.read_text())["figures"] == []
    assert "there is no multi-view prior" in capsys.readouterr().out
