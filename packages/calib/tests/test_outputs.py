"""Classifiers that answer with dicts, tuples, dataclasses, lists or probabilities, wherever calib uses one."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calib.attachment import attach
from calib.baselines import METHODS, Labelled, Settings, target_supervised
from calib.blackbox import distil_surrogate
from calib.calibrator import Calibrator
from calib.cli import main
from calib.evaluate import evaluate_classifier
from calib.export import export
from calib.segmentation import SegmenterSettings, confusion_over, tiny_segmenter, train_segmenter
from calib.supervised import train_classifier
from PIL import Image
from shared_core.data.arrays import ArrayImages
from shared_core.testing import assert_same_state
from torch import nn


@dataclass
class Record:
    hidden: torch.Tensor
    scores: torch.Tensor


FORMS = {
    "dict": (lambda z: {"loss": None, "logits": z, "hidden": 2 * z}, None),
    "dict by name": (lambda z: {"first": -z, "second": z}, "second"),
    "tuple": (lambda z: (-z, z), 1),
    "dataclass": (lambda z: Record(-z, z), None),
    "list": (lambda z: [z], None),
    "function": (lambda z: {"heads": [-z, z]}, lambda answer: answer["heads"][1]),
}
every_form = pytest.mark.parametrize(("wrap", "output"), FORMS.values(), ids=FORMS)


class Net(nn.Module):
    """Convolution, batch norm and a linear layer; `wrap` makes the answer out of the logits."""

    def __init__(self, wrap=lambda z: z, classes=3):
        super().__init__()
        self.wrap = wrap
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(36, classes)

    def forward(self, x):
        return self.wrap(self.head(self.body(x)))


def net(wrap=lambda z: z, classes=3):
    torch.manual_seed(0)
    return Net(wrap, classes)


def domain(seed, count=24):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.rand(count, 3, 8, 8, generator=generator) + 0.3 * labels[:, None, None, None]
    return Labelled((255 * images).to(torch.uint8), labels)


SOURCE, TARGET, X = domain(0), domain(1), domain(2).images
SHORT = Settings(steps=2, batch_size=8)
CPU = torch.device("cpu")
ALL = {**METHODS, "target_supervised": lambda net, s, t, how, seed: target_supervised(net, TARGET, how, seed)}


@every_form
@pytest.mark.parametrize("method", ALL)
def test_a_baseline_gives_what_it_gives_of_the_plain_net(method, wrap, output):
    plain = ALL[method](net(), SOURCE, TARGET.images, SHORT, 0)
    found = ALL[method](net(wrap), SOURCE, TARGET.images, replace(SHORT, output=output), 0)
    assert torch.equal(found.predict(X), plain.predict(X))
    assert_same_state(found.net.state_dict(), plain.net.state_dict())


@pytest.mark.parametrize("method", ALL)
def test_a_baseline_does_not_take_probabilities_for_logits(method):
    plain = ALL[method](net(), SOURCE, TARGET.images, SHORT, 0)
    found = ALL[method](net(lambda z: z.softmax(1)), SOURCE, TARGET.images, SHORT, 0)
    torch.testing.assert_close(found.predict(X).softmax(1), plain.predict(X).softmax(1), atol=2e-4, rtol=0)


def test_a_baseline_says_what_it_cannot_know():
    with pytest.raises(ValueError, match="say which part the logits are"):
        METHODS["dann"](net(lambda z: (z, z)), SOURCE, TARGET.images, SHORT, 0)
    with pytest.raises(ValueError, match="outputs is 'odds'; choose auto, logits, probabilities"):
        Settings(outputs="odds")


@every_form
def test_training_learns_what_the_plain_net_learns(wrap, output):
    trained = [net(), net(wrap)]
    for one in trained:
        data, part = ArrayImages(*SOURCE), None if one is trained[0] else output
        train_classifier(one, data, 2.0, 8, 1e-2, 0.0, 0, CPU, output=part)
    assert_same_state(*[one.state_dict() for one in trained])


def test_training_through_probabilities_and_one_column():
    plain = train_classifier(net(), ArrayImages(*SOURCE), 2.0, 8, 1e-2, 0.0, 0, CPU)
    soft = train_classifier(net(lambda z: z.softmax(1)), ArrayImages(*SOURCE), 2.0, 8, 1e-2, 0.0, 0, CPU)
    torch.testing.assert_close(plain(X / 255).softmax(1), soft(X / 255), atol=0.02, rtol=0)
    binary = ArrayImages(SOURCE.images, (SOURCE.labels > 0).long())
    one = train_classifier(net(torch.sigmoid, 1), binary, 20.0, 8, 1e-2, 0.0, 0, CPU)
    assert ((one(binary.images / 255)[:, 0] > 0.5) == (binary.labels > 0)).all()


def test_evaluation_takes_the_obvious_part():
    wanted = evaluate_classifier(net().eval(), ArrayImages(*SOURCE), 3, CPU)
    wrapped = net(lambda z: {"aux": -z, "logits": z}).eval()
    assert evaluate_classifier(wrapped, ArrayImages(*SOURCE), 3, CPU) == wanted


class Segmenting(nn.Module):
    """As torchvision's segmentation nets: {"out", "aux"}."""

    def __init__(self):
        super().__init__()
        self.net = tiny_segmenter(2, width=4)

    def forward(self, x):
        scores = self.net(x)
        return {"out": scores, "aux": -scores}


def test_a_segmenter_s_scores_are_found():
    images = torch.randint(256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    # Four steps, which the schedule could not divide.
    masks, how = (images[:, 0] > 128).long(), SegmenterSettings(epochs=2, batch_size=2, crop=(8, 8))
    torch.manual_seed(0)
    plain = tiny_segmenter(2, width=4)
    torch.manual_seed(0)
    wrapped = Segmenting()
    assert train_segmenter(plain, images, masks, how, 0) == train_segmenter(wrapped, images, masks, how, 0)
    assert_same_state(plain.state_dict(), wrapped.net.state_dict())
    assert torch.equal(confusion_over(plain, images, masks), confusion_over(wrapped, images, masks))


def test_a_student_may_answer_with_a_dict():
    x, found = SOURCE.images / 255, []
    for student in (net(), net(lambda z: {"logits": z, "hidden": -z})):
        found.append(distil_surrogate(net().eval(), x, x, student, steps=3, batch_size=8))
    assert_same_state(*[surrogate.net.state_dict() for surrogate in found])
    assert found[0][1:] == found[1][1:]


def read(path, x):
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(x, torch.tensor(1.0))
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["logits"]
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


ONE_COLUMN = {
    "probabilities": (lambda z: z.softmax(1), None),
    "one column": (lambda z: z[:, :1].sigmoid(), None),
}


@pytest.mark.parametrize(("name", "format"), [("fused.onnx", "onnx"), ("fused.pt2", "torch_export")])
@pytest.mark.parametrize(
    ("wrap", "output"), [*FORMS.values(), *ONE_COLUMN.values()], ids=[*FORMS, *ONE_COLUMN]
)
def test_a_fused_export_gives_the_model_s_logits(tmp_path, wrap, output, name, format):
    calibrator = Calibrator(3, 0.2, 2, 1)
    for parameter in calibrator.parameters():
        nn.init.normal_(parameter, std=0.1)
    model = attach(net(wrap), calibrator, output=output).eval()
    export(model, tmp_path / name, format, "fused", size=(8, 8))
    x = X[:5] / 255
    with torch.no_grad():
        wanted = model.logits(x)
        assert wanted.shape == (5, 2 if wanted.shape[1] == 2 else 3)
        torch.testing.assert_close(read(tmp_path / name, x), wanted, atol=1e-5, rtol=1e-5)


FILE = """
from dataclasses import dataclass
from torch import nn, Tensor
@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor
class Net(nn.Module):
    def __init__(self, num_classes, wrap):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head, self.wrap = nn.Linear(4 * 49, num_classes), wrap
    def forward(self, x):
        return self.wrap(self.head(self.body(x)))
def plain(num_classes):
    return Net(num_classes, lambda z: z)
def dictionary(num_classes):
    return Net(num_classes, lambda z: {"hidden": -z, "second": z})
def record(num_classes):
    return Net(num_classes, lambda z: Answer(-z, z))
def pair(num_classes):
    return Net(num_classes, lambda z: (-z, z))
"""


@pytest.mark.parametrize(("function", "output"), [("dictionary", "second"), ("record", None), ("pair", 1)])
def test_a_run_trains_adapts_evaluates_predicts_analyses_and_exports(tmp_path, function, output, capsys):
    arrays = {}
    for prefix, given in (("day", SOURCE), ("dusk", TARGET)):
        for split in ("train", "test"):
            images = np.kron(given.images.permute(0, 2, 3, 1).numpy(), np.ones((1, 2, 2, 1), np.uint8))
            arrays |= {f"x_{prefix}_{split}": images, f"y_{prefix}_{split}": given.labels.numpy()}
    np.savez(tmp_path / "data.npz", **arrays)
    Image.fromarray(arrays["x_day_test"][0]).save(tmp_path / "one.png")
    (tmp_path / "nets.py").write_text(FILE)
    runs, results = {}, {}
    for name, part in (("plain", None), (function, output)):
        runs[name] = str(tmp_path / name)
        settings = {
            "source": f"npz:{tmp_path / 'data.npz'}#day", "target": f"npz:{tmp_path / 'data.npz'}#dusk",
            "classifier": f"{tmp_path / 'nets.py'}:{name}", "train_classifier": True, "output": part,
            "channels": 3, "steps": 3, "batch_size": 8, "validate_every": 2, "validation_images": 12, "width": 2,
            "blocks": 1, "device": "cpu", "threads": 1, "training": {"epochs": 2, "batch_size": 8},
            "loss": {"views": 1.0, "hold": 1.0}, "neighbours": {"count": 3},
            "baselines": [*list(METHODS)[1:], "target_supervised"],
        }  # fmt: skip
        (tmp_path / "settings.yaml").write_text(json.dumps(settings))
        assert main(["adapt", "--config", str(tmp_path / "settings.yaml"), "--out", runs[name]]) == 0
        results[name] = json.loads((Path(runs[name]) / "result.json").read_text())
    same = ("source_before", "source_after", "target_before", "target_after", "chosen_step")
    one, other = ({key: result[key] for key in same} for result in results.values())
    assert one == other
    rows = [[{**row, "seconds": 0} for row in result["baselines"]] for result in results.values()]
    assert rows[0] == rows[1]
    assert not any("not_applicable" in row for row in rows[0])
    said = []
    for run in runs.values():
        capsys.readouterr()
        assert main(["predict", run, str(tmp_path / "one.png")]) == 0
        assert main(["evaluate", run]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["analyse", runs[function], "--images", "6", "--steps", "2"]) == 0
    fused = ["export", runs[function], "--what", "fused", "--format", "torch_export", "--out"]
    assert main([*fused, str(tmp_path / "fused.pt2")]) == 0
    assert read(tmp_path / "fused.pt2", torch.rand(2, 3, 16, 16)).shape == (2, 3)
