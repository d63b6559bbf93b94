"""Every exported form corrects images as the calibrator does, keeps its bound, and says what it is."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from calib.attachment import CalibratedClassifier, attach
from calib.calibrator import Calibrator
from calib.classifiers import Normalized, OnnxClassifier, open_classifier
from calib.export import describe, export, summary
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

BATCHES = (1, 3, 8)
SIZES = ((8, 8), (19, 30))


def calibrator(body: str = "residual", mode: str = "signed", std: float = 0.1, **arguments) -> Calibrator:
    torch.manual_seed(0)
    made = Calibrator(epsilon=0.2, width=4, blocks=2, body=body, mode=mode, **arguments)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=std)
    return made.eval()


def images(batch: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(batch))


def session(model: Path | bytes):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    options = onnxruntime.SessionOptions()
    # It warns that `alpha` has a default and is no constant, which is what is wanted.
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    model = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(path: Path, x: torch.Tensor, alpha: float | None = None) -> torch.Tensor:
    feed = {"images": x.numpy()}
    if alpha is not None:
        feed["alpha"] = np.array(alpha, np.float32)
    return torch.from_numpy(session(path).run(None, feed)[0])


@torch.no_grad()
def plainly(model: nn.Module, x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    return model(x, alpha)


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "calibrator.onnx"
    export(calibrator(), path, "onnx")
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, dict[str, str]]:
    path = tmp_path_factory.mktemp("pt2") / "calibrator.pt2"
    export(calibrator(), path, "torch_export")
    extra = {"metadata.json": ""}
    return torch.export.load(path, extra_files=extra).module(), json.loads(extra["metadata.json"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", BATCHES)
def test_onnx_agrees_under_onnxruntime(residual: Path, batch: int, size: tuple[int, int]) -> None:
    x = images(batch, *size)
    expected = plainly(calibrator(), x)
    assert (expected - x).abs().max() > 0.05
    assert (run(residual, x) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("body", "mode"),
    [
        *(("depthwise", "positive"), ("lowres", "signed"), ("folded", "signed")),
        *(("constant", "signed"), ("residual", "released")),
    ],
)
def test_every_body_and_mode_agrees_under_onnxruntime(tmp_path: Path, body: str, mode: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    made = calibrator(body, mode, channels=1, value_range=(-1.0, 1.0))
    export(made, tmp_path / "calibrator.onnx", "onnx")
    for batch, size in ((1, (8, 8)), (2, (17, 24)), (3, (16, 11))):
        x = 2 * images(batch, *size, channels=1) - 1
        assert (run(tmp_path / "calibrator.onnx", x) - plainly(made, x)).abs().max() < 1e-4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", BATCHES)
def test_torch_export_agrees(program: tuple[nn.Module, dict], batch: int, size: tuple[int, int]) -> None:
    x = images(batch, *size)
    expected = plainly(calibrator(), x)
    assert (program[0](x, torch.tensor(1.0)) - expected).abs().max() < 1e-6
    assert torch.equal(program[0](x, torch.tensor(0.0)), x)
    assert program[1] == describe(calibrator())


@pytest.mark.slow
def test_the_paper_s_calibrator_agrees_under_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    torch.manual_seed(0)
    made = Calibrator(epsilon=0.2, width=8, blocks=9).eval()
    nn.init.normal_(made.body[-1].weight, std=0.1)
    export(made, tmp_path / "calibrator.onnx", "onnx")
    for batch in BATCHES:
        for size in ((32, 32), (21, 50)):
            x = images(batch, *size)
            assert (run(tmp_path / "calibrator.onnx", x) - plainly(made, x)).abs().max() < 1e-4


def test_alpha_is_an_input_that_may_be_left_out(residual: Path) -> None:
    x = images(2, 16, 16)
    (default,) = session(residual).get_overridable_initializers()
    assert default.name == "alpha"
    assert [given.name for given in session(residual).get_inputs()] == ["images"]
    assert torch.equal(run(residual, x), run(residual, x, 1.0))
    assert torch.equal(run(residual, x, 0.0), x)
    assert (run(residual, x, 0.5) - plainly(calibrator(), x, 0.5)).abs().max() < 1e-5
    # Nothing can raise in a graph, so alpha is cut to [0, 1] and cannot widen the bound.
    assert torch.equal(run(residual, x, 7.0), run(residual, x, 1.0))
    assert torch.equal(run(residual, x, -1.0), x)
    assert torch.equal(run(residual, x, float("nan")), x)


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
@pytest.mark.parametrize("size", SIZES)
def test_bound_holds_for_any_alpha_under_torch_export(
    program: tuple[nn.Module, dict], size: tuple[int, int], scale: float
) -> None:
    graph, generator = deepcopy(program[0]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in graph.named_parameters():
            assert ".body." in name
            value.copy_(scale * torch.randn(value.shape, generator=generator))
        x = images(3, *size)
        whole = graph(x, torch.tensor(1.0))
        assert (whole - x).abs().max() > 0.1
        for alpha in (1.5, 1e30, float("inf")):
            assert torch.equal(graph(x, torch.tensor(alpha)), whole)
        assert (whole.double() - x.double()).abs().max() <= 0.2 + np.spacing(np.float32(1))
        for alpha in (-0.0, -1.0, float("nan"), -float("inf")):
            assert torch.equal(graph(x, torch.tensor(alpha)), x)


def test_a_calibrator_that_is_exported_by_hand_keeps_its_bound() -> None:
    made, x = calibrator(), images(2, 16, 16)
    each = torch.export.export(made, (x, torch.tensor([1.0, 1.0]))).module()
    found = each(x, torch.tensor([1.5, float("nan")]))
    assert (found[0] - plainly(made, x)[0]).abs().max() < 1e-6
    assert torch.equal(found[1], x[1])


@pytest.mark.parametrize("wrong", [1.5, -0.01, float("nan"), float("inf")])
def test_images_outside_of_the_range_pass_through(residual: Path, program: tuple, wrong: float) -> None:
    x = images(3, 16, 16)
    expected = plainly(calibrator(), x)
    x[1, 0, 5, 5] = wrong
    for found in (run(residual, x), program[0](x, torch.tensor(1.0))):
        assert torch.equal(found[1].nan_to_num(), x[1].nan_to_num())
        assert (found[[0, 2]] - expected[[0, 2]]).abs().max() < 1e-5


# Each body, and each mode behind a net and behind the constant, whose graph is small.
NETS = (
    *(("residual", "signed"), ("depthwise", "positive"), ("lowres", "released"), ("folded", "signed")),
    *(("constant", "signed"), ("constant", "positive"), ("constant", "released")),
)
# No number in it is round, so that each operation of the graph rounds.
LOW, HIGH = np.float32(-2.118), np.float32(2.64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """One graph for each of NETS, whose weights a test replaces."""
    found = {}
    for body, mode in NETS:
        path = tmp_path_factory.mktemp("nets") / f"{body}-{mode}.onnx"
        export(calibrator(body, mode, channels=1, value_range=(float(LOW), float(HIGH))), path, "onnx")
        found[body, mode] = path
    return found


def with_any_weights(model: Path, scale: float, random: np.random.Generator):
    """A session of the graph with other weights in its body."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    graph = onnx.load(model)
    weights = [value for value in graph.graph.initializer if value.name.startswith("calibrator.body")]
    assert weights
    for value in weights:
        drawn = np.clip(scale * random.standard_normal(list(value.dims)), -3e38, 3e38).astype(np.float32)
        value.CopyFrom(onnx.numpy_helper.from_array(drawn, value.name))
    return session(graph.SerializeToString())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    net=st.sampled_from(NETS),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e6, 1e20, 1e38]),
    size=st.tuples(st.integers(1, 3), st.integers(8, 70), st.integers(8, 70)),
    extreme=st.booleans(),
)
def test_bound_box_and_identity_hold_for_any_net_on_onnx(
    models: dict[tuple[str, str], Path],
    net: tuple[str, str],
    seed: int,
    scale: float,
    size: tuple[int, int, int],
    extreme: bool,
) -> None:
    random = np.random.default_rng(seed)
    opened = with_any_weights(models[net], scale, random)
    batch, height, width = size
    x = random.uniform(LOW, HIGH, (batch, 1, height, width)).astype(np.float32).clip(LOW, HIGH)
    if extreme:
        x = np.where(x > 0, HIGH, LOW)
    x[0, 0, 0, 0] = np.float32(-0.0)
    (found,) = opened.run(None, {"images": x})
    assert found.shape == x.shape
    assert np.isfinite(found).all()
    assert found.min() >= LOW
    assert found.max() <= HIGH
    # In float64, which adds no rounding: epsilon, and one unit in the last place of the range's larger end.
    bound = 0.2 * (float(HIGH) - float(LOW)) + float(np.spacing(HIGH))
    assert np.abs(found.astype(np.float64) - x).max() <= bound
    (off,) = opened.run(None, {"images": x, "alpha": np.array(0, np.float32)})
    # Bit for bit but for the sign of zero: onnxruntime's Where makes 0 of -0, as adding 0 does.
    assert off.tobytes() == (x + np.float32(0)).tobytes()


def attached(size: int = 32) -> CalibratedClassifier:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))
    net(torch.rand(4, 3, size, size))
    return attach(Normalized(net, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), calibrator())


def test_fused_is_the_classifier_behind_the_calibrator(tmp_path: Path) -> None:
    model = attached()
    x = images(3, 32, 32)
    expected = plainly(model, x)
    export(model, tmp_path / "fused.onnx", "onnx", "fused", size=(32, 32))
    export(model, tmp_path / "fused.pt2", "torch_export", "fused", size=(32, 32))
    fused = torch.export.load(tmp_path / "fused.pt2").module()
    for batch in BATCHES:
        x = images(batch, 32, 32)
        expected = plainly(model, x)
        assert (run(tmp_path / "fused.onnx", x) - expected).abs().max() < 1e-4
        assert (fused(x, torch.tensor(1.0)) - expected).abs().max() < 1e-5
        clean = model.classifier(x).detach()
        assert (run(tmp_path / "fused.onnx", x, 0.0) - clean).abs().max() < 1e-5
    model.verify()


def test_fused_safetensors_hold_both_and_the_calibrator_can_be_read_from_them(tmp_path: Path) -> None:
    model = attached()
    export(model, tmp_path / "fused.safetensors", "safetensors", "fused")
    found = Calibrator.from_pretrained(tmp_path / "fused.safetensors")
    x = images(2, 12, 12)
    assert torch.equal(plainly(found, x), plainly(model.calibrator, x))
    with safe_open(tmp_path / "fused.safetensors", "pt") as file:
        for name, value in model.classifier.state_dict().items():
            assert torch.equal(file.get_tensor(f"classifier.{name}"), value)
        assert file.metadata()["classifier_digest"] == describe(model)["classifier_digest"]


@pytest.mark.slow
def test_normalized_is_what_the_net_behind_the_normalisation_takes(tmp_path: Path) -> None:
    model = attached()
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    export(model, tmp_path / "own.onnx", "onnx", "normalized")
    export(
        calibrator(),
        tmp_path / "given.pt2",
        "torch_export",
        "normalized",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    program = torch.export.load(tmp_path / "given.pt2").module()
    for batch in BATCHES:
        for size in SIZES:
            x = images(batch, *size)
            expected = (plainly(model.calibrator, x) - mean) / std
            assert (expected - (x - mean) / std).abs().max() > 0.1
            assert (run(tmp_path / "own.onnx", x) - expected).abs().max() < 1e-4
            assert (program(x, torch.tensor(1.0)) - expected).abs().max() < 1e-5


@pytest.mark.slow
def test_a_fully_convolutional_classifier_is_fused_for_any_size(tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    model = attach(net, calibrator())
    export(model, tmp_path / "fused.onnx", "onnx", "fused")
    for batch in BATCHES:
        for size in SIZES:
            x = images(batch, *size)
            expected = plainly(model, x)
            assert (expected - net(x)).abs().max() > 1e-3
            assert (run(tmp_path / "fused.onnx", x) - expected).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:vit_tiny_patch16_224"])
def test_nets_of_224_pixels_export_fused(tmp_path: Path, spec: str) -> None:
    if spec.startswith("timm"):
        pytest.importorskip("timm", reason="the extra timm is not installed")
    torch.manual_seed(0)
    model = attach(open_classifier(spec, 7), calibrator())
    export(model, tmp_path / "fused.onnx", "onnx", "fused", size=(224, 224))
    for batch in (1, 3):
        x = images(batch, 224, 224)
        expected = plainly(model, x)
        assert (run(tmp_path / "fused.onnx", x) - expected).abs().max() < 1e-4 * expected.abs().max().clamp(1)
    model.verify()


def test_metadata_say_what_the_file_is(residual: Path, tmp_path: Path) -> None:
    metadata = session(residual).get_modelmeta().custom_metadata_map
    assert metadata == describe(calibrator())
    assert json.loads(metadata["epsilon"]) == 0.2
    assert metadata["epsilon_unit"] == "share of the value range"
    assert json.loads(metadata["value_range"]) == [[0.0] * 3, [1.0] * 3]
    outcome = {"source": "digits", "target_before": 50.0, "target_after": 80.0, "seconds": 3.0}
    export(calibrator(), tmp_path / "c.safetensors", metadata=summary(outcome))
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert json.loads(file.metadata()["result"]) == {
            "source": "digits",
            "target_before": 50.0,
            "target_after": 80.0,
        }
        assert file.metadata()["output"] == "calibrated"


def test_export_leaves_the_model_alone_and_no_rubbish_behind(tmp_path: Path) -> None:
    model = attached()
    model.calibrator.train()
    export(model, tmp_path / "fused.onnx", "onnx", "fused", size=(32, 32))
    assert model.calibrator.training
    model.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["fused.onnx"]


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'calib-uda\[onnx\]'"):
        export(calibrator(), tmp_path / "calibrator.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """A classifier whose path depends on the values: no exporter can follow it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if float(x.sum()) > 0 else -x.mean((2, 3))


def test_what_cannot_be_exported_is_refused_with_a_sentence(tmp_path: Path) -> None:
    made, out = calibrator(), tmp_path / "out"
    with pytest.raises(ValueError, match="choose safetensors, onnx, torch_export"):
        export(made, out, "tflite")
    with pytest.raises(ValueError, match="choose calibrator, normalized, fused"):
        export(made, out, what="all")
    with pytest.raises(ValueError, match="there is no folder"):
        export(made, tmp_path / "nowhere" / "out")
    with pytest.raises(ValueError, match="needs a classifier"):
        export(made, out, what="fused")
    with pytest.raises(ValueError, match="needs mean and std"):
        export(made, out, what="normalized")
    with pytest.raises(ValueError, match="one number for each of 3 channels"):
        export(made, out, what="normalized", mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="belong to what='normalized'"):
        export(made, out, mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="start at 8"):
        export(made, out, size=(4, 32))
    with pytest.raises(ValueError, match=r"cannot write fused as torch_export: "):
        export(attach(Branching(), made), out, "torch_export", "fused", size=(16, 16))
    with pytest.raises(ValueError, match=r"one size only, say size=\(height, width\)"):
        export(attached(), out, "torch_export", "fused")
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_classifier_is_not_fused(residual: Path, tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)).eval()
    torch.onnx.export(
        flat,
        (torch.zeros(1, 3, 8, 8),),
        tmp_path / "net.onnx",
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    model = attach(OnnxClassifier(tmp_path / "net.onnx"), calibrator())
    with pytest.raises(ValueError, match="run it in front"):
        export(model, tmp_path / "fused.onnx", "onnx", "fused")
