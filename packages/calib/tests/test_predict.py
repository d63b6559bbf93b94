"""Prediction answers as the model itself would, with and without the calibrator."""

from pathlib import Path

import numpy as np
import pytest
import torch
from calib.predict import predict, segment
from calib.trained import Trained, open_test, open_trained
from PIL import Image
from shared_core.data.augment import to_float
from shared_core.data.images import find_images
from torch import nn

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture(scope="module")
def trained(adapted: Path) -> Trained:
    trained = open_trained(adapted)
    # A calibrator of many steps, so that its answers differ from the classifier's.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in trained.model.calibrator.parameters():
            nn.init.normal_(parameter, std=0.5)
    return trained


def files(folder: Path, images: torch.Tensor) -> list[str]:
    for place, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place:02d}.png")
    return find_images([folder])


def test_files_get_the_answers_of_the_model(trained: Trained, tmp_path: Path) -> None:
    test = open_test(trained, "target")
    images = torch.stack([test[place][0] for place in range(12)])
    with torch.no_grad():
        expected = trained.model(to_float(images)).softmax(1).max(1)
        alone = trained.model.classifier(to_float(images)).argmax(1)
    answers = list(predict(trained, files(tmp_path, images), CPU, batch_size=5))
    names = trained.class_names
    assert [answer["class"] for answer in answers] == [names[i] for i in expected.indices]
    assert [answer["class_without"] for answer in answers] == [names[i] for i in alone]
    assert [a["probability"] for a in answers] == pytest.approx(expected.values.tolist(), rel=1e-4)


def test_alpha_zero_is_the_classifier_alone(trained: Trained, tmp_path: Path) -> None:
    paths = files(tmp_path, torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    answers = list(predict(trained, paths, CPU, alpha=0.0))
    assert all(answer["class"] == answer["class_without"] for answer in answers)


def test_a_broken_file_does_not_shift_the_others(trained: Trained, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    Image.new("RGB", (30, 20)).save(tmp_path / "c.png")
    answers = list(predict(trained, find_images([tmp_path]), CPU))
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert "b.png" in answers[1]["error"]


def test_segmentation_writes_a_map_per_image(segmented: Path, tmp_path: Path) -> None:
    trained = open_trained(segmented)
    images = torch.randint(0, 256, (2, 3, 20, 28), dtype=torch.uint8)
    paths = files(tmp_path, images)
    (tmp_path / "torn.png").write_bytes(b"no image")
    answers = list(segment(trained, [*paths, str(tmp_path / "torn.png")], tmp_path / "maps", CPU))
    with torch.no_grad():
        expected = trained.model(to_float(images)).argmax(1)
    for answer, labels in zip(answers[:2], expected, strict=True):
        written = np.asarray(Image.open(answer["map"]))
        assert (written == labels.numpy()).all()
        assert sum(answer["shares"].values()) == pytest.approx(100)
    assert "torn.png" in answers[2]["error"]


def test_each_kind_of_run_has_its_own_answers(trained: Trained, segmented: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write label maps to a folder"):
        next(predict(open_trained(segmented), ["a.png"], CPU))
    with pytest.raises(ValueError, match="has no label maps"):
        next(segment(trained, ["a.png"], tmp_path, CPU))
    with pytest.raises(ValueError, match="two images are called a"):
        next(segment(open_trained(segmented), ["x/a.png", "y/a.png"], tmp_path, CPU))
    with pytest.raises(ValueError, match="alpha is -1"):
        next(predict(trained, ["a.png"], CPU, alpha=-1))
