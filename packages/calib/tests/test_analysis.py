"""The analysis of a run: corrections of other kinds, spectra, the score against epsilon."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from calib.analysis import analyse, lines, open_critics
from calib.config import AdaptConfig
from calib.report import report
from calib.run import run as run_adaptation
from calib.samples import sample, score, scores_by_epsilon
from calib.trained import open_test, open_trained
from shared_core.run.checkpoint import CheckpointError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(adapted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(adapted, tmp_path_factory.mktemp("analysed") / "run")


@pytest.mark.slow
def test_the_corrections_have_the_size_that_they_should(run: Path) -> None:
    found = analyse(run, CPU, steps=4)
    result = json.loads((run / "result.json").read_text())
    assert found == json.loads((run / "analysis.json").read_text())
    none, calibrator, attack, signs, equal = found["corrections"]
    assert found["images"] == 32
    assert none["mean_size"] == 0
    assert none["score"] == pytest.approx(result["target_before"])
    assert calibrator["score"] == pytest.approx(result["target_after"])
    assert 0 < calibrator["mean_size"] < found["epsilon"]
    assert 0 < attack["mean_size"] < found["epsilon"]
    # Random signs have the full size, except where the range ends.
    assert 0.7 * found["epsilon"] < signs["mean_size"] <= found["epsilon"] + 1e-6
    # By chance a little more or less.
    assert equal["mean_size"] == pytest.approx(calibrator["mean_size"], rel=0.05)
    assert attack["confusion"] > none["confusion"]
    shown = "\n".join(lines(found))
    assert f"{attack['score']:.2f}" in shown


def test_spectra_and_curve_have_their_ends_right(run: Path) -> None:
    found = analyse(run, CPU, images=8, steps=1)
    assert {len(values) for values in found["spectra"].values()} == {17}
    assert found["epsilon_unit"] == "share of the value range"
    page = report(run).read_text()
    assert (
        "8 target test images, epsilon 0.2 (share of the value range), which is 51 of 255 grey levels."
        in page
    )
    curve = found["by_epsilon"]
    assert curve["epsilon"][0] == 0
    assert curve["epsilon"][-1] == found["epsilon"]
    assert curve["target"][0] == pytest.approx(found["corrections"][0]["score"])
    assert curve["target"][-1] == pytest.approx(found["corrections"][1]["score"])


@pytest.mark.slow
def test_segmentation_is_scored_by_its_own_measure(segmented: Path, tmp_path: Path) -> None:
    run = shutil.copytree(segmented, tmp_path / "run")
    found = analyse(run, CPU, images=16, steps=1)
    result = json.loads((run / "result.json").read_text())
    assert found["measure"] == "mIoU"
    assert found["corrections"][0]["score"] == pytest.approx(result["target_before"])
    assert found["by_epsilon"]["target"][-1] == pytest.approx(result["target_after"], abs=1e-6)


def test_without_critics_there_is_none_to_attack(tiny: dict[str, Any], tmp_path: Path) -> None:
    loss = {"pixel": 0.0, "feature": 0.0, "views": 1.0, "hold": 1.0}
    views = {"count": 2, "threshold": 0.0}
    run_adaptation(AdaptConfig.model_validate({**tiny, "loss": loss, "views": views}), tmp_path / "run")
    found = analyse(tmp_path / "run", CPU, images=8, steps=1)
    assert not any("attack" in row["name"] for row in found["corrections"])
    assert {row["confusion"] for row in found["corrections"]} == {None}
    assert lines(found)[1].endswith(" -")
    page = report(tmp_path / "run").read_text()
    assert "No critic plays" in page
    assert "The critics tell four groups apart" not in page


def test_the_critics_are_those_of_the_last_step(run: Path) -> None:
    critics = open_critics(open_trained(run))
    assert critics.pixel is not None
    assert critics.feature is not None
    assert critics.feature.net[0].in_features == 4


def test_without_a_checkpoint_there_are_no_critics(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError):
        analyse(copy, CPU)


def test_samples_are_spread_over_the_test_set(run: Path) -> None:
    trained = open_trained(run)
    shown = sample(trained, open_test(trained, "target"), CPU, most=5)
    test = open_test(trained, "target")
    assert shown.labels.tolist() == [int(test[place][1]) for place in (0, 8, 16, 23, 31)]
    assert shown.of == 32
    with torch.no_grad():
        assert torch.equal(shown.after, trained.model(shown.pixels).argmax(1))
    assert scores_by_epsilon(trained, shown, [0.0], CPU) == [score(trained, shown.before, shown.labels)]


def test_numbers_below_one_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        analyse(run, CPU, steps=0)
