"""calib's speed benchmarks run on small sizes; the race's clock and the released order are what they say."""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PEERS = {"pytorch-adapt": "pytorch_adapt", "skada": "skada"}


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def run(script: str, out: Path, *options: str | Path, **environment: str) -> dict:
    command = [sys.executable, "-m", f"benchmarks.{script}", "--out", out, "--quick", *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
def test_step_is_measured_after_the_orders_agree(tmp_path):
    record = run("calib.step", tmp_path / "out.json")
    assert [figure["name"] for figure in record["figures"]] == ["step", "step without the table"]
    assert record["float64_difference"] < 1e-10
    assert {figure["met"] for figure in record["figures"]} == {None}


@pytest.mark.slow
def test_latency_of_every_body_is_measured_on_both_classifiers(tmp_path):
    from benchmarks.calib import latency as calib_latency

    record = run("calib.latency", tmp_path / "out.json")
    assert list(record["bodies"]) == list(calib_latency.BODIES)
    assert record["bodies"]["residual 8x9"]["parameters"] == 180419
    assert record["bodies"]["residual 4x9"]["parameters"] == 45859
    assert all(body["dtn"] > 0 and body["lenet"] > 0 for body in record["bodies"].values())
    assert [f["name"] for f in record["figures"] if f["goal"] is not None] == [calib_latency.JUDGED]


def test_bodies_of_the_table_are_those_that_the_accuracy_benchmark_trains():
    from benchmarks.calib import accuracy as calib_accuracy
    from benchmarks.calib import latency as calib_latency
    from benchmarks.calib.accuracy_page import BODIES

    named = [pair for its in BODIES.values() for pair in its.items()]
    trained = {row: body for row, body in named if row in calib_accuracy.ROWS}
    assert len(trained) == len(named)
    for row, body in trained.items():
        config, own = calib_accuracy.configuration("usps-mnist", row), calib_latency.BODIES[body]
        assert config.body == own["body"]
        if body != "constant":
            assert (config.width, config.blocks) == (own["width"], own["blocks"])
    judged = calib_latency.JUDGED.removeprefix("dtn ")
    assert judged in {body for row, body in trained.items() if calib_accuracy.ROWS[row][0] == 1}
    kept = json.loads((BENCHMARKS / "results/calib_latency.json").read_text())
    assert [f["name"] for f in kept["figures"] if f["goal"] is not None] == [calib_latency.JUDGED]


def test_the_full_schedule_is_the_presets_own_and_the_second_tier():
    from calib.config import PRESETS

    from benchmarks.calib import accuracy as calib_accuracy

    for pair in ("usps-mnist", "mnist-usps"):
        config, preset = calib_accuracy.configuration(pair, "calibrator full schedule"), PRESETS[pair]()
        changed = {name for name, value in preset.model_dump().items() if getattr(config, name) != value}
        changed -= {"training", "loss", "views", "neighbours", "optim"}
        assert changed == {"data_root", "threads", "device"}
        assert (config.training, config.loss, config.optim) == (preset.training, preset.loss, preset.optim)
    planned = set(calib_accuracy.planned(list(calib_accuracy.PAIRS), 2))
    added = planned - set(calib_accuracy.planned(list(calib_accuracy.PAIRS), 1))
    assert added == {
        (pair, "calibrator full schedule", seed)
        for pair in ("usps-mnist", "mnist-usps")
        for seed in (1, 2, 3)
    }
    # It has the classifier that the paper's schedule trains, not the one of the short rows.
    assert "calibrator full schedule" in calib_accuracy.CLASSIFIERS


@pytest.fixture
def one_thread():
    """As in the measurements; the other tests have their threads back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tmp_path, monkeypatch, one_thread):
    """The accuracy benchmark in folders of its own, with two pairs that take seconds."""
    from calib import translate
    from calib.translate import TranslateSettings

    from benchmarks.calib import accuracy as calib_accuracy

    few = {"steps": 1, "width": 2, "blocks": 1, "batch_size": 2, "validation_images": 20}
    few |= {"training": {"epochs": 1, "batch_size": 2}, "validate_every": 1}
    classes = torch.arange(6, dtype=torch.uint8) % 3
    pairs = {}
    for pair, like, labels in (
        ("digits", "usps-mnist", classes),
        ("streets", "camvid-day-dusk", classes[:, None, None].expand(6, 16, 16)),
    ):
        pairs[pair] = {**calib_accuracy.PAIRS[like], **few, "num_classes": 3}
        for domain in ("source", "target"):
            arrays = {f"x_{part}": np.random.randint(256, size=(6, 16, 16, 3)) for part in ("train", "test")}
            arrays = {name: images.astype(np.uint8) for name, images in arrays.items()}
            file = tmp_path / f"{pair}-{domain}.npz"
            np.savez(file, **arrays, y_train=labels.numpy(), y_test=labels.numpy())
            pairs[pair][domain] = f"npz:{file}"
    for pair, values in pairs.items():
        monkeypatch.setitem(calib_accuracy.PAIRS, pair, values)
    monkeypatch.setattr(calib_accuracy, "RUNS", tmp_path / "runs")
    settings = TranslateSettings(steps=1, width=2, blocks=1, critic_width=2)
    monkeypatch.setitem(translate.PRESETS, "digits", settings)
    return calib_accuracy


def test_the_translated_row_trains_classifier_and_calibrator_on_translated_images(
    tiny, tmp_path, monkeypatch
):
    from calib import source_classifier
    from shared_core.data.open import open_dataset

    seen = {}

    def train_on(config, net, dataset, *others):
        seen[config.translated is not None] = torch.stack([dataset[k][0] for k in range(6)])

    monkeypatch.setattr(source_classifier, "train_on", train_on)
    folder = tmp_path / "runs/digits/calibrator-translated-seed1"
    cell = tiny.run_one("digits", "calibrator translated", 1, folder)
    translated = open_dataset(f"imagefolder:{tmp_path}/runs/digits/translation", "train")
    assert torch.equal(seen[True], torch.stack([translated[k][0] for k in range(6)]))
    # The classifier of all other rows, which judges the translations, knows originals only.
    assert not torch.equal(seen[False], seen[True])
    assert cell["translation_seconds"] > 0
    assert set(cell["label_flips"]) == {"before", "after"}
    config = (folder / "config.yaml").read_text()
    assert "classifier-translated-seed1/classifier.safetensors" in config
    assert "runs/digits/translation" in config
    # Once more, as after an interruption: neither is made again.
    monkeypatch.setattr(source_classifier, "train_on", None)
    again = tiny.run_one("digits", "calibrator translated", 1, folder)
    assert again["label_flips"] == cell["label_flips"]
    assert again["translation_seconds"] == cell["translation_seconds"]


def test_runs_of_a_segmentation_keep_all_its_scores(tiny, tmp_path):
    from benchmarks.core.table import put, read

    cell = tiny.run_one("streets", "calibrator", 1, tmp_path / "runs/streets/calibrator-seed1")
    assert cell["measure"] == "mIoU"
    for score in ("frequency_weighted_iou", "pixel_accuracy"):
        assert set(cell[score]) == set(tiny.KEPT)
        assert all(0 <= value <= 100 for value in cell[score].values())
    assert cell["pixel_accuracy"]["target_after"] >= cell["frequency_weighted_iou"]["target_after"]
    assert cell["versions"]["calib-uda"]
    # Runs from before these were kept.
    (old, new) = ({**cell, "seed": seed} for seed in (1, 2))
    del old["versions"], old["commit"]
    assert tiny.summary("streets", "calibrator", [new])["pixel_accuracy"] == [cell["pixel_accuracy"]]
    del old["pixel_accuracy"]
    assert "pixel_accuracy" not in tiny.summary("streets", "calibrator", [old, new])
    # All of it finds a column, and comes back from the table.
    table = tiny.RUNS_DONE._replace(path=tmp_path / "runs.csv")
    put(table, old, new)
    kept = [{name: value for name, value in run.items() if value is not None} for run in (old, new)]
    assert read(table) == kept


def test_the_table_has_the_columns_that_others_read_and_settings_of_every_run():
    from benchmarks.calib import accuracy as calib_accuracy
    from benchmarks.core.table import read

    wanted = (
        *(
            "source",
            "target",
            "method",
            "seed",
            "source_before",
            "source_after",
            "target_before",
            "target_after",
        ),
        *("classifier_unchanged", "core_seconds"),
    )
    assert set(wanted) <= set(calib_accuracy.RUNS_DONE.columns)
    for found in read(calib_accuracy.RUNS_DONE):
        assert found["settings"] == calib_accuracy.changed(found["pair"], found["method"])


def test_a_baseline_runs_under_its_name_in_the_table(tiny, tmp_path):
    """A run of a baseline has the method's name of the plan, and its columns."""
    from benchmarks.core.table import put, read

    found = tiny.run_one("digits", "DANN", 1, tmp_path / "runs/digits/dann-seed1")
    table = tiny.RUNS_DONE._replace(path=tmp_path / "runs.csv")
    put(table, found)
    (back,) = read(table)
    assert (back["method"], back["touched"]) == ("DANN", found["touched"])
    assert back["settings"] == {"baselines": ["dann"]}


@pytest.mark.slow
def test_the_accuracy_benchmark_runs_a_calibrator_and_a_baseline(tmp_path):
    record = run("calib.accuracy", tmp_path / "out.json")
    assert record["environment"]["packages"]["calib-uda"]
    own, baseline = record["rows"]
    assert own["classifier_unchanged"]
    assert all(0 <= own[name] <= 100 for name in ("target_before", "target_after"))
    assert baseline["method"] == "dann"


@pytest.mark.slow
def test_race_to_90_runs_without_the_other_environment(tmp_path):
    record = run("calib.to_90", tmp_path / "out.json", "--environments", tmp_path / "none")
    assert [found["method"] for found in record["runs"]] == [
        "calibrator",
        "calibrator, constant rate",
        "calibrator views",
        "calibrator neighbours",
        "calibrator taught",
        "DANN",
    ]
    for found in record["runs"]:
        assert found["reached"] is None
        assert [point["step"] for point in found["curve"]] == [2, 4]
    assert record["not_measured"] == [
        f"{peer}: its environment is not made in a quick run" for peer in ("pytorch-adapt", "skada")
    ]


@pytest.mark.slow
def test_findings_are_those_of_calib_analyse(tmp_path):
    record = run("calib.findings", tmp_path / "out.json")
    (found,) = record["runs"]
    assert [row["name"] for row in found["corrections"]] == [
        "none",
        "calibrator",
        "attack on the critics (2 steps)",
        "random signs, full bound",
        "random signs, calibrator's mean size",
    ]
    assert found["by_epsilon"]["target"][-1] == found["corrections"][1]["score"]
    assert len(found["spectra"]["target"]) == 17


def test_an_interrupted_race_to_90_goes_on_only_with_the_same_budget(tmp_path):
    from benchmarks.calib.to_90 import earlier

    out = tmp_path / "out.json"
    assert earlier(out, 600.0) == []
    runs = [{"method": "DANN", "seed": 1}]
    for quick, kept in ((False, runs), (True, [])):
        out.write_text(json.dumps({"quick": quick, "budget": 600.0, "runs": runs}))
        assert earlier(out, 600.0) == kept
        assert earlier(out, 100.0) == []


def test_race_to_90_plays_the_steps_of_calib_adapt(tmp_path, one_thread):
    from calib import attach, nets, run
    from calib.config import LossWeights, ViewSettings, digits
    from calib.data import Domains
    from shared_core.data.arrays import ArrayImages

    from benchmarks.calib import to_90 as calib_to_90

    torch.manual_seed(0)
    classifier = nets.lenet(3).eval()
    bright, dark = torch.rand(24, 3, 32, 32), torch.rand(24, 3, 32, 32) / 2
    source, target = (
        ArrayImages((255 * images).byte(), torch.arange(24) % 3, ["a", "b", "c"]) for images in (bright, dark)
    )
    data = calib_to_90.Data(source.images, source.labels, target.images, target.images, target.labels)
    few = {"steps": 4, "width": 2, "blocks": 1, "batch_size": 8, "validation_images": 20}
    few |= {"validate_every": 2, "selection": "last", "views": ViewSettings(threshold=0.0), "device": "cpu"}
    few |= {"optim": digits().optim.model_copy(update={"learning_rate": 0.02})}
    answers = []
    views = {"views": 1.0, "hold": 3.0}
    for number, loss in enumerate(
        (LossWeights(), LossWeights(**views), LossWeights(pixel=0, feature=0, **views))
    ):
        config = digits().model_copy(update={**few, "loss": loss})
        steps, predict = calib_to_90.calibrator(classifier, data, config, 7, config.steps)
        assert sum(1 for _ in steps) == 4
        answers.append(predict(dark).detach())
        torch.manual_seed(7)
        model = attach(classifier, run.build_calibrator(config, 3))
        domains = Domains(source, source, target, target, source.class_names, 3, False, None)
        run.adapt_model(config, model, domains, 7, tmp_path / f"{number}", torch.device("cpu"))
        assert torch.allclose(model(dark), answers[-1], atol=1e-5)
        assert not torch.allclose(classifier(dark), answers[-1], atol=1e-3)
    # The teacher of the second one made itself felt, and the critics that the third one lacks.
    assert not any(torch.allclose(*answers[at : at + 2], atol=1e-3) for at in (0, 1))


@pytest.mark.slow
@pytest.mark.skipif(
    not all((BENCHMARKS / "peers" / folder / ".venv").exists() for folder in PEERS.values()),
    reason="the environments of pytorch-adapt and skada are downloads of their own; make bench makes them",
)
def test_other_projects_are_measured(tmp_path):
    record = run("calib.to_90", tmp_path / "out.json")
    assert record["not_measured"] == []
    assert [found["method"] for found in record["runs"][-2:]] == ["DANN of pytorch-adapt", "DANN of skada"]
    assert [point["step"] for point in record["runs"][-1]["curve"]] == [2, 4]


def test_an_environment_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    from benchmarks.peers.environment import failure, install

    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        install(tmp_path / "new", BENCHMARKS / "peers/pytorch_adapt/requirements.txt")
    said = failure(caught.value)
    assert said.startswith("uv.sh pip sync --quiet --python new requirements.txt failed: ")
    assert str(ROOT) not in said


@pytest.mark.parametrize("folder", PEERS.values())
def test_other_projects_get_the_torch_of_our_lock(folder):
    locked = {p["name"]: p["version"] for p in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    text = (BENCHMARKS / "peers" / folder / "requirements.txt").read_text()
    pinned = dict(re.findall(r"^(torch|torchvision)==(\S+)", text, re.M))
    assert pinned == {name: locked[name] for name in ("torch", "torchvision")}


def racing(accuracies, each=0.0, score_takes=0.0, **limits):
    """A race of a method whose accuracy after step k is accuracies[k - 1] percent of 100 images."""
    from benchmarks.peers.race import race

    at = {"step": 0}

    def burn(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    def steps():
        for _ in accuracies:
            burn(each)
            at["step"] += 1
            yield

    def predict(images):
        burn(score_takes)
        return torch.stack([torch.ones(100), torch.arange(100) < accuracies[at["step"] - 1]], 1).float() + (
            torch.tensor([-0.5, 0.0])
        )

    images, labels = torch.zeros(100, 1, 1, 1, dtype=torch.uint8), torch.ones(100, dtype=torch.int64)
    return race(steps(), predict, images, labels, **{"goal": 90.0, "budget": 60.0, "every": 2, **limits})


def test_race_ends_at_the_goal_and_scores_every_second_step():
    found = racing([10, 50, 95, 80, 20, 90, 99, 99])
    assert [(p["step"], p["accuracy"]) for p in found["curve"]] == [(2, 50.0), (4, 80.0), (6, 90.0)]
    assert found["reached"] == found["last"]["seconds"]


def test_race_that_ends_below_the_goal_keeps_its_best_and_scores_the_end():
    found = racing([10, 80, 20, 30, 40])
    assert found["reached"] is None
    assert (found["best"]["step"], found["best"]["accuracy"]) == (2, 80.0)
    assert (found["last"]["step"], found["last"]["accuracy"]) == (5, 40.0)


def test_race_counts_training_and_not_scoring():
    found = racing([10] * 4, each=0.02, score_takes=0.2)
    assert 0.08 <= found["last"]["seconds"] < 0.2


def test_race_stops_after_its_budget():
    found = racing([10] * 1000, each=0.01, budget=0.05)
    assert found["last"]["step"] <= 6
