"""A run: one seed, several, resumed; the classifier that it trains can be used again."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml
from calib import run, supervised
from calib.cli import main
from calib.config import AdaptConfig, LossWeights, Training
from calib.data import open_domains
from calib.evaluate import evaluate_classifier
from calib.reevaluate import lines, reevaluate
from calib.source_classifier import is_trained_here, origin, the_classifier
from calib.summary import cautions, sentence
from calib.trained import open_trained
from PIL import Image
from shared_core.ops.freeze import changed, checksums, digest
from shared_core.run.config import ConfigError
from shared_core.run.folder import RunFolderError
from shared_core.run.result import check_result

TINY = {
    "classifier": "file", "channels": 3, "steps": 4, "batch_size": 8, "validate_every": 2, "validation_images": 12,
    "width": 2, "blocks": 1, "device": "cpu", "threads": 1, "log_every": 1,
}  # fmt: skip

NET = """
from torch import nn
def net(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(4 * 49, num_classes))
"""


@pytest.fixture
def config(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {}
    for domain, shift in (("day", 0), ("night", 90)):
        for split in ("train", "test"):
            labels = np.arange(24) % 3
            images = (
                generator.integers(0, 60, (24, 16, 16, 3)) + 50 * labels[:, None, None, None] + shift // 2
            )
            arrays[f"x_{domain}_{split}"], arrays[f"y_{domain}_{split}"] = images.astype(np.uint8), labels
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "net.py").write_text(NET)
    names = {"source": f"npz:{tmp_path / 'data.npz'}#day", "target": f"npz:{tmp_path / 'data.npz'}#night"}
    return AdaptConfig(**{**TINY, **names, "classifier": f"{tmp_path / 'net.py'}:net"})


def test_one_seed_is_an_ordinary_run_folder(config, tmp_path):
    result = run.run(config, tmp_path / "run")
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text()) == result
    check_result(result, run.schema())
    assert result["classifier_unchanged"] is True
    wanted = ("config.yaml", "env.json", "metrics.jsonl", "report.html", "adaptation.json", "evaluation.json")
    assert all((folder / name).is_file() for name in wanted)
    with pytest.raises(RunFolderError, match="finished run"):
        run.run(config, folder)


def test_several_seeds_are_cells_and_means(config, tmp_path):
    result = run.run(config.model_copy(update={"seeds": [3, 4]}), tmp_path / "run")
    cells = [
        json.loads((tmp_path / "run" / "cells" / f"seed{s}" / "result.json").read_text()) for s in (3, 4)
    ]
    assert [cell["seed"] for cell in cells] == [3, 4]
    assert result["target_after"] == pytest.approx(sum(cell["target_after"] for cell in cells) / 2)
    assert result["target_after_sd"] >= 0
    assert result["cells"] == cells


def test_baselines_are_rows_that_say_what_they_touch(config, tmp_path):
    methods = ["moment_matching", "surest_view", "bn_adapt", "dann", "target_supervised"]
    rows = run.run(config.model_copy(update={"baselines": methods}), tmp_path / "run")["baselines"]
    touched = ["nothing", "nothing", "buffers", "new model", "new model"]
    assert [(row["method"], row["touched"]) for row in rows] == list(zip(methods, touched, strict=True))
    assert "surest view" in (tmp_path / "run" / "report.html").read_text()


def test_a_net_from_a_file_is_as_it_comes_and_seems_untrained(config, tmp_path, capsys):
    result = run.run(config, tmp_path / "run")
    assert result["classifier_origin"] == f"has the weights that {config.classifier} gives it"
    assert not (tmp_path / "run" / "classifier.safetensors").exists()
    assert result["classifier_near_chance"] is True
    said = capsys.readouterr().err
    assert f"the classifier has the weights that {config.classifier} gives it" in said
    page = (tmp_path / "run" / "report.html").read_text()
    for place in (said, page, " ".join(cautions(result))):
        assert "THE CLASSIFIER SEEMS UNTRAINED" in place


TRAINED = {"train_classifier": True, "training": Training(epochs=20.0, batch_size=8, learning_rate=3e-3)}


def test_a_function_in_a_file_is_trained_on_the_source_where_the_run_is_told_to(config, tmp_path, capsys):
    result = run.run(config.model_copy(update=TRAINED), tmp_path / "run")
    # Of three classes, by brightness.
    assert result["source_before"] > 80
    assert result["classifier_near_chance"] is False
    wanted = f"was trained on the source first, from the weights that {config.classifier} gives it"
    assert result["classifier_origin"] == wanted
    page = (tmp_path / "run" / "report.html").read_text()
    assert "It was trained on the source first" in page
    for place in (capsys.readouterr().err, page):
        assert "UNTRAINED" not in place
    # It is the one that is opened again.
    opened = open_trained(tmp_path / "run").model.classifier
    assert digest(checksums(opened)) == result["classifier_digest"]


def test_a_run_that_was_stopped_while_its_classifier_learned_goes_on(config, tmp_path, monkeypatch):
    trained = config.model_copy(update=TRAINED)
    whole = run.run(trained, tmp_path / "whole")
    as_floats, calls = supervised.as_floats, []

    def told_at_the_seventh(images):
        calls.append(images)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGTERM)
        return as_floats(images)

    monkeypatch.setattr(supervised, "as_floats", told_at_the_seventh)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        run.run(trained, out)
    assert stopped.value.code == 143
    assert not (out / "classifier.safetensors").exists()
    result = run.run(trained, out, resume=True)
    assert result["classifier_digest"] == whole["classifier_digest"]
    assert result["target_after"] == whole["target_after"]
    assert not (out / "classifier-checkpoints").exists()


@pytest.mark.slow
def test_a_named_net_without_weights_is_trained_on_the_source(config, tmp_path):
    training = Training(epochs=20.0, batch_size=8, learning_rate=1e-3)
    changes = {"classifier": "torchvision:resnet18", "image_size": 32, "training": training}
    named = config.model_copy(update=changes)
    domains, cpu = open_domains(named), torch.device("cpu")
    net = the_classifier(named, domains, 0, tmp_path, cpu)
    assert evaluate_classifier(net, domains.source_test, 3, cpu)["accuracy"] > 80
    again = the_classifier(named, domains, 0, tmp_path, cpu)
    assert changed(checksums(net), checksums(again)) == []


@pytest.mark.parametrize(
    ("values", "trained"),
    [
        ({"classifier": "small:lenet"}, True),
        ({"classifier": "small:lenet", "pretrained": True}, True),
        ({"classifier": "small:lenet", "weights": "a.safetensors"}, False),
        ({"classifier": "torchvision:resnet18"}, True),
        ({"classifier": "torchvision:resnet18", "pretrained": True}, False),
        ({"classifier": "torchvision:resnet18", "pretrained": True, "train_classifier": True}, True),
        ({"classifier": "timm:vit_tiny_patch16_224"}, True),
        ({"classifier": "timm:vit_tiny_patch16_224", "weights": "a.safetensors"}, False),
        ({"classifier": "net.py:build"}, False),
        ({"classifier": "net.py:build", "train_classifier": True}, True),
        ({"classifier": "model.onnx"}, False),
    ],
)
def test_which_classifiers_a_run_trains(values, trained):
    assert is_trained_here(AdaptConfig(**values)) is trained
    assert origin(AdaptConfig(**values)).startswith("was trained" if trained else "has ")


@pytest.mark.slow
def test_a_trained_classifier_serves_as_the_weights_of_another_run(config, tmp_path):
    small = config.model_copy(
        update={"classifier": "small:lenet", "image_size": 32, "training": Training(epochs=1, batch_size=8)}
    )
    first = run.run(small, tmp_path / "first")
    weights = tmp_path / "first" / "classifier.safetensors"
    second = run.run(small.model_copy(update={"weights": weights, "seeds": [5]}), tmp_path / "second")
    assert second["classifier_digest"] == first["classifier_digest"]
    assert second["target_before"] == first["target_before"]
    assert not (tmp_path / "second" / "classifier.safetensors").exists()


def test_a_classifier_without_gradient_is_adapted_with_pixels_or_through_a_surrogate(config, tmp_path):
    (tmp_path / "closed.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Closed(nn.Module):\n"
        "    def forward(self, x):\n"
        "        with torch.no_grad():\n"
        "            m = x.mean((1, 2, 3))\n"
        "            return torch.stack([-m, 0 * m, m], 1)\n"
        "def net():\n    return Closed()\n"
    )
    closed = config.model_copy(update={"classifier": f"{tmp_path / 'closed.py'}:net", "image_size": 32})
    result = run.run(closed, tmp_path / "pixels")
    assert result["note"] == "with pixels only: the classifier gives no gradient"
    assert result["parameter_ratio"] is None
    result = run.run(closed.model_copy(update={"surrogate_steps": 3}), tmp_path / "surrogate")
    assert result["note"].startswith("through a surrogate")
    assert result["classifier_unchanged"] is True


@pytest.mark.slow
def test_released_numbers_before_are_of_the_classifier_as_it_came(config, tmp_path):
    plain = run.run(config, tmp_path / "plain")
    released = config.model_copy(update={"compat": "released", "mode": "released"})
    result = run.run(released, tmp_path / "released")
    assert result["classifier_unchanged"] is False
    assert (result["source_before"], result["target_before"]) == (
        plain["source_before"],
        plain["target_before"],
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": "nowhere.onnx"}, "nowhere.onnx"),
        ({"classifier": "nowhere.py:net"}, "nowhere.py"),
        ({"source": "npz:nowhere.npz"}, "there is no file nowhere.npz"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not here"),
        ({"classifier": "torchvision:resnet18", "channels": 1}, "images of 3 channels"),
        (
            {"classifier": "small:lenet", "image_size": 8},
            r"lenet cannot take source images of shape \(2, 3, 8",
        ),
        ({"train_classifier": True, "image_size": 20}, r"net cannot take source images of shape \(2, 3, 20"),
    ],
)
def test_what_cannot_work_is_found_before_anything_starts(config, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run.run(config.model_copy(update=changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return nn.Flatten()", r"answers with shape \(2, 768\); .* it must be \(2, 3\)"),
        (
            "class Two(nn.Linear):\n        def forward(self, x): return 2 * (super().forward(x.flatten(1)),)\n"
            "    return Two(768, 3)",
            "the classifier returns a tuple of .*: say which part the logits are",
        ),
        (
            "return nn.Sequential(nn.Flatten(), nn.Linear(768, 3, dtype=None), nn.Softmax(0)).half()",
            "cannot take",
        ),
        (
            "return nn.Sequential(nn.Flatten(), nn.Linear(768, 3)).requires_grad_(False)",
            "cannot be trained: its answers give no gradient to any weight",
        ),
    ],
)
def test_a_classifier_that_cannot_be_trained_is_refused(config, tmp_path, body, message):
    (tmp_path / "other.py").write_text(f"from torch import nn\ndef net():\n    {body}\n")
    other = {"classifier": f"{tmp_path / 'other.py'}:net", "train_classifier": True}
    with pytest.raises(ConfigError, match=message):
        run.run(config.model_copy(update=other), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_pixel_or_feature_critic_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="there is no critic"):
        run.run(config.model_copy(update={"loss": LossWeights(pixel=0.0, feature=0.0)}), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:vit_tiny_patch16_224"])
def test_large_classifiers_at_224_pixels_run_and_verify(config, tmp_path, spec):
    pytest.importorskip("timm")
    settings = config.model_dump(mode="json")
    # One step of each training.
    settings |= {"image_size": 224, "normalize": "imagenet", "training": {"epochs": 0.01, "batch_size": 2}}
    settings |= {"steps": 1, "batch_size": 2, "validation_images": 3}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    places = ["--config", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "run")]
    assert main(["adapt", "--classifier", spec, *places]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["classifier_unchanged"] is True
    assert result["classifier"] == spec
    assert (tmp_path / "run" / "classifier.safetensors").is_file()


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_target_without_labels_runs_to_its_report_without_a_score(config, tmp_path, seeds, capsys):
    root = tmp_path / "target"
    for number in range(12):
        path = root / "train/unlabelled" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 20 * number, np.uint8)).save(path)
    shutil.copytree(root / "train", root / "test")
    config = config.model_copy(
        update={"target": f"imagefolder:{root}", "seeds": seeds, "baselines": ["moment_matching"]}
    )
    with pytest.warns(UserWarning, match="no score on the target"):
        result = run.run(config, tmp_path / "run")
    check_result(json.loads((tmp_path / "run/result.json").read_text()), run.schema())
    assert result["target_before"] is result["target_after"] is result["baselines"][0]["target_after"] is None
    assert result["source_after"] is not None
    assert any("NO SCORE ON THE TARGET" in said for said in cautions(result))
    assert "no labels to score" in sentence(result)
    report = (tmp_path / "run/report.html").read_text()
    assert "no labels" in report
    assert "nan" not in report.lower().replace("nanometre", "")
    with pytest.warns(UserWarning, match="no score on the target"):
        found = reevaluate(tmp_path / "run", torch.device("cpu"))
    assert found["cells"][0]["target_before"]["accuracy"] is None
    assert "-" in next(line for line in lines(found) if line.startswith("target")).split()
    # What needs no labels is analysed.
    assert main(["analyse", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "No accuracy on the target: " in said
    assert "predicted as without %" in said
    analysis = json.loads((tmp_path / "run/analysis.json").read_text())
    assert [row["score"] for row in analysis["corrections"]] == [None] * len(analysis["corrections"])
    assert analysis["corrections"][0]["kept"] == 100.0
    assert "source" in analysis["by_epsilon"]
    assert "target" not in analysis["by_epsilon"]
    assert all(row["confusion"] is not None and row["mean_size"] >= 0 for row in analysis["corrections"])
    assert {"target", "source"} <= set(analysis["spectra"])
    report = (tmp_path / "run/report.html").read_text()
    assert "Sizes, critics and spectra need no labels" in report
    # Another target with labels is scored.
    again = reevaluate(tmp_path / "run", torch.device("cpu"), target=config.source)
    assert again["cells"][0]["target_before"] == again["cells"][0]["source_before"]


def test_a_target_without_test_images_is_analysed_on_its_training_images(config, tmp_path, capsys):
    data = dict(np.load(tmp_path / "data.npz"))
    root = tmp_path / "target"
    for number, (image, label) in enumerate(zip(data["x_night_train"], data["y_night_train"], strict=True)):
        path = root / f"train/{label}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    config = config.model_copy(update={"target": f"imagefolder:{root}"})
    with pytest.warns(UserWarning, match="has no test images: it gets no score"):
        run.run(config, tmp_path / "run")
    assert main(["analyse", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"]) == 0
    assert "No accuracy on the target: " in capsys.readouterr().out
    analysis = json.loads((tmp_path / "run/analysis.json").read_text())
    assert analysis["images"] == 24
    assert "has no test" in analysis["unscored"]
