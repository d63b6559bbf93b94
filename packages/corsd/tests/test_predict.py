"""Prediction reads the net back from its folder and answers as the net itself would."""

from pathlib import Path

import pytest
import torch
from corsd.config import TrainConfig
from corsd.data import open_data
from corsd.predict import predict
from corsd.train import train_cell
from corsd.trained import Trained, open_trained
from PIL import Image
from shared_core.data.images import find_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("runs") / "one"
    config = TrainConfig(width=8, images_per_class=24, batch_size=24, epochs=1, device="cpu", augment="none")
    train_cell(config, 0, out)
    return open_trained(out)


def test_files_get_the_answers_that_the_test_images_get(trained: Trained, tmp_path: Path) -> None:
    test = open_data(trained.config).test
    for place in range(5):
        Image.fromarray(test[place][0][0].numpy()).save(tmp_path / f"{place}.png")
    with torch.no_grad():
        images = torch.stack([test[place][0] for place in range(5)])
        expected = trained.net(trained.preprocess(images)).softmax(1).max(1)
    answers = list(predict(trained, find_images([tmp_path]), CPU, batch_size=2))
    assert [answer["class"] for answer in answers] == [trained.class_names[i] for i in expected.indices]
    assert [a["probability"] for a in answers] == pytest.approx(expected.values.tolist(), rel=1e-5)


def test_a_broken_file_does_not_shift_the_others(trained: Trained, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    Image.new("RGB", (30, 20)).save(tmp_path / "c.png")
    answers = list(predict(trained, find_images([tmp_path]), CPU))
    assert [sorted(answer) for answer in answers] == [
        ["class", "path", "probability"],
        ["error", "path"],
        ["class", "path", "probability"],
    ]
    assert "b.png" in answers[1]["error"]


def test_a_missing_file_is_named(trained: Trained, tmp_path: Path) -> None:
    (answer,) = predict(trained, find_images([tmp_path / "nowhere.png"]), CPU)
    assert "nowhere.png" in answer["error"]


def test_folders_without_a_finished_training_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished training"):
        open_trained(tmp_path)


def test_broken_weights_are_refused(trained: Trained, tmp_path: Path) -> None:
    for name in ("config.yaml", "preprocess.json"):
        (tmp_path / name).write_bytes((trained.folder / name).read_bytes())
    (tmp_path / "net.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="does not hold the weights of this net"):
        open_trained(tmp_path)
