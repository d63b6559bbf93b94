"""A calibrator for a classifier without gradients: through a student, or with pixels only; judged on the real one."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from calib.attachment import attach
from calib.blackbox import distil_surrogate, gives_gradient
from calib.calibrator import Calibrator
from calib.classifiers import OnnxClassifier
from torch import nn
from torch.utils.data import TensorDataset

CLASSES = 10


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's 1,797 real digits, 8 by 8 pixels, in [0, 1], in an order of their own."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    pixels = torch.from_numpy(found.images[order]).float() / 16
    return pixels[:, None], torch.from_numpy(found.target[order]).long()


def darker(x: torch.Tensor) -> torch.Tensor:
    """The new camera: low contrast on a bright ground."""
    return 0.3 + 0.55 * x


def small_net(width: int = 16) -> nn.Sequential:
    layers = [
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(18 * width, CLASSES))


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).float().mean())


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    x, y = digits()
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(200):
        places = torch.randint(1200, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[places]), y[places]).backward()
        optimizer.step()
    return net.eval()


class Int8(nn.Module):
    """torch's own int8 arithmetic: the net, quantised after training."""

    def __init__(self, net: nn.Module, example: torch.Tensor) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # torch announces that its int8 tools move to another package.
            warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
            warnings.filterwarnings("ignore", "Please use quant_min and quant_max", UserWarning)
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

            prepared = quantize_fx.prepare_fx(net, get_default_qconfig_mapping("x86"), (example,))
            prepared(example)
            self.net = quantize_fx.convert_fx(prepared)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def int8(teacher: nn.Module, folder: Path) -> nn.Module:
    if "x86" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no int8 engine for x86")
    return Int8(teacher, torch.cat([digits()[0][:200], darker(digits()[0][:200])]))


def onnx_only(teacher: nn.Module, folder: Path) -> nn.Module:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra onnx is not installed")
    torch.onnx.export(
        nn.Sequential(teacher, nn.Softmax(1)).eval(),
        (torch.zeros(2, 1, 8, 8),),
        folder / "vendor.onnx",
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        verbose=False,
        external_data=False,
    )
    return OnnxClassifier(folder / "vendor.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("make", [int8, onnx_only])
def test_a_black_box_is_adapted_through_a_student(teacher: nn.Module, tmp_path: Path, make) -> None:
    import calib

    black_box = make(teacher, tmp_path)
    x, y = digits()
    source, target, test = x[:1200], darker(x[:1200]), slice(1200, None)
    assert not gives_gradient(black_box, source[:4])
    before = accuracy(black_box, darker(x[test]), y[test])
    torch.manual_seed(12)
    student = distil_surrogate(black_box, source, target, small_net(), steps=250, learning_rate=3e-3)
    assert student.agreement_source > 85
    assert gives_gradient(student.net, source[:4])
    torch.manual_seed(2)
    calibrator = Calibrator(channels=1, epsilon=0.5, width=8, blocks=0)
    calib.adapt(
        attach(student.net, calibrator),
        TensorDataset(source, y[:1200]),
        TensorDataset(target, torch.zeros(1200)),
        steps=200,
        learning_rate=2e-3,
        weights=calib.Weights(source=1.0),
        patches=2,
        ema=0.9,
        validate_every=50,
        validation_images=300,
        source_tolerance=5.0,
        device="cpu",
    )
    model = attach(black_box, calibrator)
    after = accuracy(model, darker(x[test]), y[test])
    print(
        before, student.agreement_source, student.agreement_target, after, accuracy(model, x[test], y[test])
    )
    assert after > before + 5
    assert accuracy(model, x[test], y[test]) > accuracy(black_box, x[test], y[test]) - 5
    model.verify()


def test_pixels_alone_need_no_gradient(teacher: nn.Module, tmp_path: Path) -> None:
    import calib

    black_box = int8(teacher, tmp_path)
    x, y = digits()
    torch.manual_seed(2)
    calibrator = Calibrator(channels=1, epsilon=0.5, width=4, blocks=1)
    settings = {
        "steps": 60,
        "learning_rate": 3e-3,
        "ema": None,
        "validate_every": 30,
        "validation_images": 200,
    }
    model, domains = (
        attach(black_box, calibrator),
        (TensorDataset(x[:600], y[:600]), TensorDataset(darker(x[:600]), torch.zeros(600))),
    )
    with pytest.raises(ValueError, match=r"gives no gradient .*calib\.blackbox\.distil_surrogate"):
        calib.adapt(model, *domains, **settings, device="cpu")
    report = calib.adapt(
        model, *domains, **settings, weights=calib.Weights(feature=0.0), selection="last", device="cpu"
    )
    assert report.chosen_step == 60
    assert report.classifier_unchanged
    # What the pixel critic sees, the values, came nearer to the source's.
    moved = model.calibrator(darker(x[600:])).detach()
    assert (moved.mean() - x[600:].mean()).abs() < (darker(x[600:]).mean() - x[600:].mean()).abs()


class Rounded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (10 * x).round().mean((2, 3))


class Cut(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.detach().flatten(1))


class Inference(nn.Sequential):
    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def test_gradients_are_computed_not_believed() -> None:
    torch.manual_seed(0)
    x, flat = torch.rand(2, 1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert gives_gradient(flat, x)
    assert gives_gradient(nn.Sequential(flat, nn.Softmax(1)), x)
    assert gives_gradient(flat.requires_grad_(False), x)
    for without in (Rounded(), Cut(64, 3), Inference(flat)):
        assert not gives_gradient(without, x)
    with torch.no_grad():
        assert gives_gradient(flat, x)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gives_gradient(flat, torch.rand(2, 1, 9, 9))


def test_an_int8_layer_announces_a_gradient_that_it_does_not_have() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        from torch.ao.quantization import quantize_dynamic

        net = quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {nn.Linear}, dtype=torch.qint8)
    assert not gives_gradient(net, torch.rand(2, 1, 8, 8))


def test_each_image_is_asked_for_once_and_the_student_is_frozen() -> None:
    asked = []

    def predict(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return torch.stack([20 * x[:, 0, 0, 0], torch.full((len(x),), 10.0)], 1)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    source, target = torch.rand(230, 1, 8, 8), torch.rand(50, 1, 8, 8)
    found = distil_surrogate(predict, source, target, net, steps=300, learning_rate=0.03)
    assert sum(asked) == 280
    assert found.agreement_source > 80
    assert not found.net.training
    assert not any(p.requires_grad for p in found.net.parameters())


def test_what_cannot_be_distilled_is_refused(as_a_user) -> None:
    x, net = torch.rand(4, 1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="same number of classes"):
        distil_surrogate(lambda x: torch.zeros(len(x), 2), x, x, net, steps=1)
    with pytest.raises(
        ValueError, match=r"4 source images with shape \(4, 3\) and values that are not finite"
    ):
        distil_surrogate(lambda x: torch.full((len(x), 3), torch.nan), x, x, net, steps=1)
    with pytest.raises(ValueError, match=r"one column, here from 0 to 0, .*: say outputs='probabilities'"):
        distil_surrogate(lambda x: torch.zeros(len(x)), x, x, net, steps=1)
    with pytest.raises(ValueError, match="the target domain has 1 images"):
        distil_surrogate(lambda x: torch.zeros(len(x), 3), x, x[:1], net, steps=1)
    with pytest.raises(ValueError, match="steps=0"):
        distil_surrogate(lambda x: torch.zeros(len(x), 3), x, x, net, steps=0)
