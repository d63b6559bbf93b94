"""The trials of corsd's second version: what they train on, what they are scored on, and how results are kept."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "corsd" / "trials.py"


@pytest.fixture(scope="module")
def trials():
    spec = importlib.util.spec_from_file_location("corsd_trials", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trials_are_scored_on_training_images_that_they_do_not_train_on(trials, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 200))
    images = np.arange(600, dtype=np.uint32).view(np.uint8).reshape(600, 2, 2, 1)  # each its own number
    test = np.zeros((5, 2, 2, 1), np.uint8)
    names = np.array(["a", "b", "c"])
    np.savez(
        tmp_path / "all.npz",
        x_train=images,
        y_train=labels,
        x_test=test,
        y_test=labels[:5],
        class_names=names,
    )
    found = np.load(trials.held_out_data("S", tmp_path / "out", tmp_path / "all.npz"))
    assert [len(found[f"y_{part}"]) for part in ("train", "test")] == [150, 300]
    numbers = [found[f"x_{part}"].reshape(-1, 4).view(np.uint32).ravel() for part in ("train", "test")]
    assert not set(numbers[0]) & set(numbers[1])
    for part, of in zip(("train", "test"), numbers, strict=True):
        assert (labels[of] == found[f"y_{part}"]).all()


def test_every_trial_is_a_run_of_its_setting(trials, tmp_path: Path) -> None:
    for name in trials.TRIALS["digits"]:
        config = trials.configuration("digits", name, tmp_path / "data.npz")
        assert (config.epochs, config.width, config.model) == (75, 16, "small:resnet10")
    for name in trials.TRIALS["S"]:
        config = trials.configuration("S", name, tmp_path / "data.npz")
        assert (config.width, config.image_size, config.threads) == (16, 16, 1)
        assert config.epochs == (160 if "epochs 160" in name else 80)
    changed = trials.configuration(
        "S", "cross-entropy, rate 0.05, decay 0.002, batch 48", tmp_path / "data.npz"
    )
    assert (changed.optim.lr, changed.optim.weight_decay, changed.batch_size) == (0.05, 2e-3, 48)
    changed = trials.configuration("S", "corsd v2, mixing off, distilled rows 0.5", tmp_path / "data.npz")
    assert (changed.method, changed.relational.mixing, changed.relational.row_distillation) == (
        "corsd_v2",
        "off",
        0.5,
    )
    with pytest.raises(ValueError, match="is not one of rate, decay"):
        trials.configuration("S", "cross-entropy, momentum 0.8", tmp_path / "data.npz")


def test_results_are_lines_in_the_order_of_names(trials, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trials, "RUNS", tmp_path / "runs")
    path = tmp_path / "results.jsonl"
    for name in ("b", "a"):
        trials.add({"setting": "S", "trial": name, "seed": 0, "accuracy": 1.0}, path)
    assert [line["trial"] for line in trials.known(path)] == ["a", "b"]


def test_the_notebook_holds_every_trial(trials) -> None:
    page = trials.NOTEBOOK.read_text(encoding="utf-8")
    for setting in trials.TRIALS:
        assert trials.listed(setting) in page, "run python -m benchmarks.corsd.trials"


def test_the_words_of_the_notebook_say_what_the_trials_say(trials) -> None:
    found = {name: f"{accuracy:.2f}" for accuracy, _, _, name in trials.means("S")}
    words = trials.NOTEBOOK.read_text(encoding="utf-8").split("### Setting S")[0]
    best, control = (
        "corsd v2, rate 0.2, decay 0.002, mixing off, ensemble 0.5",
        "cross-entropy, rate 0.1, decay 0.005",
    )
    for name in (
        *(best, control, "cross-entropy, rate 0.1, decay 0.0005"),
        *("deep supervision, rate 0.2, decay 0.002", "mixup, rate 0.2, decay 0.001"),
    ):
        assert found[name] in words, name
    assert f"+{float(found[best]) - float(found[control]):.2f}" in words
