"""A run is read back as it was, and refused where it is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from calib.calibrator import Calibrator
from calib.config import AdaptConfig
from calib.reevaluate import FOUR, lines, reevaluate
from calib.run import run
from calib.trained import DRIFTED, cell_folders, open_test, open_trained
from safetensors.torch import load_file, save_file
from shared_core.run.config import ConfigError

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("as_a_user")


def figures(folder: Path) -> list[float]:
    (cell,) = reevaluate(folder, CPU)["cells"]
    return [cell[name]["accuracy"] for name in FOUR]


def recorded(folder: Path) -> list[float]:
    result = json.loads((folder / "result.json").read_text())
    return [result[name] for name in FOUR]


def test_it_is_the_model_of_the_run(adapted: Path) -> None:
    trained = open_trained(adapted)
    assert trained.class_names == ["north west", "north east", "south west", "south east"]
    assert not trained.model.training
    trained.model.verify()
    assert figures(adapted) == recorded(adapted)


def test_so_is_a_segmentation_run(segmented: Path) -> None:
    trained = open_trained(segmented)
    assert trained.segmentation
    assert trained.preprocess is None
    assert figures(segmented) == pytest.approx(recorded(segmented))


@pytest.mark.slow
def test_a_classifier_that_drifted_comes_back_with_its_drift(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = {"classifier": "small:dtn", "compat": "released", "mode": "released", "steps": 3}
    run(AdaptConfig.model_validate(tiny | settings), tmp_path / "out")
    trained = open_trained(tmp_path / "out")
    first, drifted = (load_file(tmp_path / "out" / name) for name in ("classifier.safetensors", DRIFTED))
    # The first file is of the bare net, the second of the classifier with its normalisation.
    first = {name if name in drifted else f"net.{name}": value for name, value in first.items()}
    moved = {name for name in first if not torch.equal(first[name], drifted[name])}
    assert moved
    assert all("running" in name or "num_batches" in name for name in moved)
    state = trained.model.classifier.state_dict()
    assert all(torch.equal(state[name], drifted[name]) for name in moved)
    assert figures(tmp_path / "out") == recorded(tmp_path / "out")
    again = reevaluate(tmp_path / "out", CPU)
    assert not again["cells"][0]["classifier_unchanged"]
    shown = lines(again)
    assert "RELEASED CODE" in shown[0]
    assert any("of the drifted classifier, too" in line for line in shown)
    assert shown[-1] == "classifier unchanged: NO"


def test_evaluating_again_warns_as_the_run_did(adapted: Path, tmp_path: Path) -> None:
    assert reevaluate(adapted, CPU)["cells"][0]["classifier_unchanged"]
    copy = shutil.copytree(adapted, tmp_path / "copy")
    (copy / "files.json").unlink()
    result = json.loads((copy / "result.json").read_text()) | {"oracle": True}
    (copy / "result.json").write_text(json.dumps(result))
    assert "ORACLE" in lines(reevaluate(copy, CPU))[0]
    # Another calibrator was chosen in another run.
    Calibrator(channels=3, width=2, blocks=0).save_pretrained(tmp_path / "fog")
    assert "ORACLE" not in "".join(lines(reevaluate(copy, CPU, calibrator=tmp_path / "fog")))


def test_evaluating_again_judges_by_the_new_figures(adapted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calib import reevaluate as module

    scores = {"source_before": 90.0, "source_after": 90.0, "target_before": 60.0, "target_after": 59.0}
    found = {name: {"accuracy": value} for name, value in scores.items()}
    monkeypatch.setattr(module, "four_numbers", lambda *_: found)
    assert "does harm" in lines(module.reevaluate(adapted, CPU))[0]
    found["target_after"] = {"accuracy": 61.0}
    assert "does harm" not in "".join(lines(module.reevaluate(adapted, CPU)))


def test_another_classifier_is_refused(adapted: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapted, tmp_path / "copy")
    weights = load_file(copy / "classifier.safetensors")
    name = next(name for name in weights if name.endswith("bias"))
    weights[name][0] += 1e-6
    save_file(weights, copy / "classifier.safetensors")
    with pytest.raises(ValueError, match=r"classifier.safetensors is not what this run wrote"):
        open_trained(copy)
    (copy / "files.json").unlink()
    with pytest.raises(ValueError, match=r"is not the one that .* adapted: small:lenet has changed"):
        open_trained(copy)


def test_another_domains_calibrator_takes_its_place(adapted: Path, tmp_path: Path) -> None:
    other = Calibrator(channels=3, epsilon=0.05, width=2, blocks=0)
    other.save_pretrained(tmp_path / "fog")
    assert open_trained(adapted, tmp_path / "fog").model.calibrator.epsilon == 0.05
    Calibrator(channels=1, width=2, blocks=0).save_pretrained(tmp_path / "grey")
    with pytest.raises(ValueError, match="1 channels, the classifier takes 3"):
        open_trained(adapted, tmp_path / "grey")


def test_folders_without_a_finished_adaptation_are_refused(adapted: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished adaptation"):
        open_trained(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        cell_folders(tmp_path)


def test_the_test_images_are_those_that_fit(adapted: Path, segmented: Path) -> None:
    trained = open_trained(adapted)
    image, label = open_test(trained, "target")[3]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert label == 3
    streets = open_trained(segmented)
    with pytest.raises(ValueError, match="gives one label per image"):
        open_test(trained, "target", streets.config.target)
    with pytest.raises(ValueError, match="gives one label per pixel"):
        open_test(streets, "target", trained.config.target)


def test_the_table_says_what_changed() -> None:
    scores = {"source_before": 98.0, "source_after": 97.5, "target_before": 50.0, "target_after": 80.25}
    cell = {"seed": 3, "classifier_unchanged": False, **{k: {"accuracy": v} for k, v in scores.items()}}
    named = {"source": "a", "target": "b", "measure": "mIoU", "cautions": []}
    shown = "\n".join(lines({**named, "cells": [cell]}))
    assert "mIoU % without" in shown
    assert "-0.50" in shown
    assert "+30.25" in shown
    assert "classifier unchanged: NO" in shown
