"""Classifiers by name, with their normalisation inside, and ONNX files of any make as modules."""

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from calib.classifiers import Normalized, OnnxClassifier, open_classifier
from safetensors.torch import save_file
from shared_core.ops.freeze import changed, checksums
from torch import nn

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

FLOAT, UINT8, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT64
WEIGHT = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def onnx_file(
    path: Path, shape=("batch", 3, None, None), kind: int = FLOAT, outputs=("logits",), extra: bool = False
) -> Path:
    """Mean of each channel times a matrix: 4 classes."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    kinds = {
        "logits": (FLOAT, ["batch", 4]),
        "probabilities": (FLOAT, ["batch", 4]),
        "label": (INT64, ["batch"]),
    }
    inputs = [helper.make_tensor_value_info("images", kind, list(shape))]
    if extra:
        inputs.append(helper.make_tensor_value_info("threshold", FLOAT, []))
        nodes.append(helper.make_node("Add", ["label_", "threshold"], ["unused"]))
        nodes.insert(0, helper.make_node("Identity", ["threshold"], ["label_"]))
    graph = helper.make_graph(
        nodes,
        "net",
        inputs,
        [helper.make_tensor_value_info(name, *kinds[name]) for name in outputs],
        [
            onnx.numpy_helper.from_array(WEIGHT, "weight"),
            onnx.numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def images(batch: int = 5) -> torch.Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def expected(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3)) @ torch.from_numpy(WEIGHT)


def test_normalized_puts_the_normalisation_inside() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    found = Normalized(nn.Identity(), mean, std)(images())
    for channel in range(3):
        wanted = (images()[:, channel] - mean[channel]) / std[channel]
        assert torch.allclose(found[:, channel], wanted)
    with pytest.raises(ValueError, match="one number per channel, std above 0"):
        Normalized(nn.Identity(), mean, (0.1, 0.0, 0.1))


@pytest.mark.parametrize("name", ["small:dtn", "small:lenet"])
def test_small_nets_open_in_eval_mode(name: str) -> None:
    net = open_classifier(name, 7, channels=1)
    assert not any(module.training for module in net.modules())
    assert net(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_weights_are_read_and_must_fit_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = open_classifier("small:lenet", 7)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    again = open_classifier("small:lenet", 7, weights=tmp_path / "net.safetensors")
    assert changed(checksums(net), checksums(again)) == []
    with pytest.raises(ValueError, match="a layer without its weights would never learn"):
        open_classifier("small:lenet", 8, weights=tmp_path / "net.safetensors")


def test_functions_and_torchvision_open(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\ndef build(): return nn.Flatten()\n")
    assert isinstance(open_classifier(f"{tmp_path / 'mine.py'}:build"), nn.Flatten)
    assert open_classifier("torchvision:squeezenet1_1", 3)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ValueError, match="small:dtn, small:lenet"):
        open_classifier("small:vgg", 10)
    with pytest.raises(ValueError, match="none of small:dtn, small:lenet, torchvision:NAME"):
        open_classifier("vgg", 10)


def test_an_onnx_file_answers_as_its_formula(tmp_path: Path) -> None:
    net = open_classifier(str(onnx_file(tmp_path / "net.onnx")))
    x = images().requires_grad_(True)
    assert torch.allclose(net(x), expected(images()), atol=1e-6)
    assert not net(x).requires_grad
    assert net(images(0)).shape == (0, 4)
    with pytest.raises(ValueError, match="holds its own weights"):
        open_classifier(str(tmp_path / "net.onnx"), pretrained=True)


def test_bytes_are_rounded_as_a_camera_gives_them(tmp_path: Path) -> None:
    net = OnnxClassifier(onnx_file(tmp_path / "net.onnx", kind=UINT8))
    bytes_ = torch.randint(256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    # On the spot, and a little beside it.
    for shift in (0.0, 1e-3, -1e-3):
        found = net((bytes_ / 255 + shift).clamp(0, 1))
        assert torch.allclose(found, expected(bytes_.float()), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_fixed_batch_is_run_as_often_as_needed(tmp_path: Path, count: int) -> None:
    net = OnnxClassifier(onnx_file(tmp_path / "net.onnx", shape=(2, 3, 8, 8)))
    assert torch.allclose(net(images(count)), expected(images(count)), atol=1e-6)
    with pytest.raises(ValueError, match=r"height 9; net\.onnx takes height 8 only"):
        net(torch.zeros(1, 3, 9, 8))
    with pytest.raises(ValueError, match="takes channels 3 only"):
        net(torch.zeros(1, 1, 8, 8))


def test_probabilities_become_their_logarithm(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", outputs=("label", "probabilities"))
    net = OnnxClassifier(path)
    assert torch.allclose(net(images()).softmax(1), expected(images()).softmax(1), atol=1e-6)


def test_several_outputs_need_a_choice(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", outputs=("probabilities", "logits", "label"))
    with pytest.raises(ValueError, match="probabilities, logits, label: say which one"):
        OnnxClassifier(path)
    assert torch.allclose(OnnxClassifier(path, "logits")(images()), expected(images()), atol=1e-6)
    with pytest.raises(ValueError, match="no output 'scores'; it has probabilities, logits, label"):
        OnnxClassifier(path, "scores")
    with pytest.raises(ValueError, match="gives no floats"):
        OnnxClassifier(onnx_file(tmp_path / "label.onnx", outputs=("label",)))


def test_what_is_no_image_classifier_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"takes 2 inputs \(images, threshold\)"):
        OnnxClassifier(onnx_file(tmp_path / "two.onnx", extra=True))
    with pytest.raises(ValueError, match=r"takes tensor\(int64\)"):
        OnnxClassifier(onnx_file(tmp_path / "int.onnx", kind=INT64))
    with pytest.raises(ValueError, match="there is no file"):
        OnnxClassifier(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match="cannot be opened as an ONNX model"):
        OnnxClassifier(tmp_path / "text.onnx")


def test_checksums_and_copies_know_the_file(tmp_path: Path) -> None:
    one = OnnxClassifier(onnx_file(tmp_path / "one.onnx"))
    other = OnnxClassifier(onnx_file(tmp_path / "other.onnx", kind=UINT8))
    assert changed(checksums(one), checksums(other)) == ["_extra_state"]
    for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301
        assert changed(checksums(one), checksums(again)) == []
        assert torch.equal(again(images()), one(images()))
    with pytest.raises(ValueError, match="another ONNX file"):
        one.load_state_dict(other.state_dict())


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = onnx_file(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'calib-uda\[onnx\]'"):
        open_classifier(str(path))


def onnx_of(net: nn.Module, path: Path, **more) -> Path:
    torch.onnx.export(
        net.eval(), (torch.zeros(2, 3, 8, 8),), path, verbose=False, dynamic_shapes=({0: "n"},), **more
    )
    return path


@pytest.mark.parametrize("name", ["m.onnx.data", "deep/er/weights.bin"])
def test_the_digest_is_of_every_file_of_a_model(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxscript")
    for folder in ("a", "b"):
        (tmp_path / folder / name).parent.mkdir(parents=True)
        onnx_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 64, bias=False)), tmp_path / "one.onnx")
        onnx.save(
            onnx.load(tmp_path / "one.onnx"), tmp_path / folder / "m.onnx", save_as_external_data=True,
            location=name, size_threshold=1000,
        )  # fmt: skip
    before = OnnxClassifier(tmp_path / "a" / "m.onnx")
    assert changed(checksums(before), checksums(OnnxClassifier(tmp_path / "a" / "m.onnx"))) == []
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    after = OnnxClassifier(tmp_path / "a" / "m.onnx")
    assert (tmp_path / "a" / "m.onnx").read_bytes() == (tmp_path / "b" / "m.onnx").read_bytes()
    assert changed(checksums(before), checksums(after)) == ["_extra_state"]
    (tmp_path / "a" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"keeps weights in {name}, which is not there: copy"):
        OnnxClassifier(tmp_path / "a" / "m.onnx")


class Rounded(nn.Module):
    """Softmax in 8 bits: rows sum to 1 within a few 256ths."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.softmax(x.mean((2, 3)) * 6, 1) * 256).round() / 256


def flat_images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, 8)


def test_what_an_answer_means_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    path, x = onnx_of(Rounded(), tmp_path / "q.onnx"), flat_images(64)
    net = OnnxClassifier(path)
    together = net(x)
    assert net.outputs == "probabilities"
    assert torch.equal(torch.cat([net(image[None]) for image in x]), together)
    assert torch.equal(copy.deepcopy(net)(x), together)
    wanted = Rounded()(x)
    assert torch.allclose(together.softmax(1), wanted / wanted.sum(1, keepdim=True), atol=1e-5)
    assert torch.allclose(OnnxClassifier(path, outputs="logits")(x), wanted, atol=1e-6)


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Identity()])
def test_one_column_is_a_binary_classifier(tmp_path: Path, last: nn.Module) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    net = OnnxClassifier(onnx_of(nn.Sequential(inner, last), tmp_path / "b.onnx"))
    x = images(6)
    assert net(x).shape == (6, 2)
    assert torch.allclose(net(x).softmax(1)[:, 1], inner(x)[:, 0].sigmoid(), atol=1e-6)
    assert net.outputs == ("probabilities" if isinstance(last, nn.Sigmoid) else "logits")


def test_one_column_that_may_be_either_has_to_be_said(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3), keepdim=True).flatten(1)

    path = onnx_of(Mean(), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"one column, here from 0\.4.*: say outputs='probabilities' or"):
        OnnxClassifier(path)(images())
    assert torch.equal(OnnxClassifier(path, outputs="logits")(images())[:, 0], torch.zeros(5))
    with pytest.raises(ValueError, match="outputs is 'odds'; choose auto, logits, probabilities"):
        OnnxClassifier(path, outputs="odds")
