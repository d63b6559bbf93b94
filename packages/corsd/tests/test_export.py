"""Every exported form gives the net's own outputs, at any batch size, and carries what a user has to know."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from corsd.config import TrainConfig
from corsd.export import describe, export
from corsd.nets import open_net
from corsd.train import train_cell
from corsd.trained import Trained, open_trained
from safetensors import safe_open
from safetensors.torch import load_file

SIZES = (1, 3, 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("runs") / "one"
    config = TrainConfig(width=8, images_per_class=24, batch_size=24, epochs=1, device="cpu", augment="none")
    train_cell(config, 0, out)
    return open_trained(out)


def batch(size: int) -> torch.Tensor:
    return torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(size))


def logits(trained: Trained, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return trained.net(images)


def test_safetensors_load_into_a_fresh_net_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    export(trained, "safetensors", out)
    net = open_net("small:resnet10", 10, 1, 8).eval()
    assert set(load_file(out)) == set(net.state_dict())
    net.load_state_dict(load_file(out))
    with torch.no_grad():
        for size in SIZES:
            assert torch.equal(net(batch(size)), logits(trained, batch(size)))
    with safe_open(out, "pt") as file:
        assert file.metadata() == describe(trained)


def test_onnx_agrees_under_onnxruntime(trained: Trained, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    out = tmp_path / "net.onnx"
    export(trained, "onnx", out)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for size in SIZES:
        (found,) = session.run(["logits"], {"images": batch(size).numpy()})
        expected = logits(trained, batch(size)).numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map == describe(trained)


def test_torch_export_gives_the_same_numbers(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "net.pt2"
    export(trained, "torch_export", out)
    extra = {"metadata.json": ""}
    program = torch.export.load(out, extra_files=extra).module()
    for size in SIZES:
        with torch.no_grad():
            assert torch.equal(program(batch(size)), logits(trained, batch(size)))
    assert json.loads(extra["metadata.json"]) == describe(trained)


def test_metadata_say_how_to_use_the_net(trained: Trained) -> None:
    found = describe(trained)
    assert json.loads(found["class_names"]) == list("0123456789")
    preprocess = json.loads(found["preprocess"])
    assert preprocess["size"] == 8
    assert preprocess["mean"] == list(trained.preprocess.mean)
    result = json.loads((trained.folder / "result.json").read_text())
    assert json.loads(found["test_accuracy_percent"]) == result["accuracy"]


def test_the_missing_extra_is_named(trained: Trained, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'corsd\[onnx\]'"):
        export(trained, "onnx", tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_wrong_places_and_forms_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose safetensors, onnx, torch_export"):
        export(trained, "tflite", tmp_path / "net")
    with pytest.raises(ValueError, match="there is no folder"):
        export(trained, "safetensors", tmp_path / "nowhere" / "net")


MORE = """
from typing import NamedTuple
from torch import nn


class Answer(NamedTuple):
    features: object
    logits: object


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, images):
        features = self.layer2(self.layer1(images)).mean((2, 3))
        answer = Answer(features, self.fc(features))
        return answer if KIND == "tuple" else answer._asdict()
"""


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_a_net_that_answers_with_more_is_trained_judged_and_exported_by_its_logits(kind: str, tmp_path: Path):
    (tmp_path / "more.py").write_text(f"KIND = {kind!r}\n{MORE}")
    config = TrainConfig(
        model=f"{tmp_path / 'more.py'}:Net", method="deep_supervision", images_per_class=6, batch_size=20, epochs=1,
        device="cpu", augment="none",
    )  # fmt: skip
    result = train_cell(config, 0, tmp_path / "run")
    assert 0 <= result["accuracy"] <= 100
    assert result["stage_accuracy"]["net"] == pytest.approx(result["accuracy"])
    found = open_trained(tmp_path / "run")
    images = batch(5)
    with torch.no_grad():
        answer = found.net.eval()(images)
    expected = answer["logits"] if kind == "dict" else answer.logits
    export(found, "torch_export", tmp_path / "net.pt2")
    exported = torch.export.load(tmp_path / "net.pt2").module()(images)
    torch.testing.assert_close(exported, expected)
    export(found, "onnx", tmp_path / "net.onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (values,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)
