"""benchmarks/corsd/cifar100_gpu.py on a CPU: ten steps of each method; later calls go on where the last one stopped."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_core.run import checkpoint
from shared_core.testing import assert_same_state

ROOT = Path(__file__).parents[1]
SMALL = [
    "--width",
    "4",
    "--batch",
    "12",
    "--epochs",
    "3",
    "--seeds",
    "1",
    "--methods",
    "corsd v2",
    "cross-entropy",
]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "corsd"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    import cifar100_gpu

    yield cifar100_gpu
    sys.modules.pop("cifar100_gpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{split}": rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8) for split in ("train", "test")
    }
    labels = {f"y_{split}": np.arange(40) % 4 for split in ("train", "test")}
    np.savez(tmp_path / "data.npz", **arrays, **labels)
    return tmp_path / "data.npz"


def test_calls_that_run_out_of_minutes_end_where_one_long_call_does(bench, data, tmp_path, capsys):
    def call(out: str, minutes: str) -> dict:
        assert (
            bench.main(["--data", str(data), "--out", str(tmp_path / out), "--minutes", minutes, *SMALL]) == 0
        )
        return json.loads((tmp_path / out / "result.json").read_text())

    whole = call("whole", "30")
    assert [(line["method"], line["images_seen"]) for line in whole["trainings"]] == [
        ("corsd v2", 108),
        ("cross-entropy", 108),
    ]
    for _ in range(6):  # an epoch a call, and the epoch that finishes a training begins the next
        parts = call("parts", "0")
    assert "call again to go on" in capsys.readouterr().out
    kept = ("method", "seed", "accuracy", "train_accuracy", "images_seen")
    for a, b in zip(whole["trainings"], parts["trainings"], strict=True):
        assert {key: a[key] for key in kept} == {key: b[key] for key in kept}
    for name in ("corsd-v2", "cross-entropy"):
        a, b = (checkpoint.load(tmp_path / out / f"{name}-seed0") for out in ("whole", "parts"))
        assert a.step == b.step == 3
        assert_same_state(a.tensors["method"], b.tensors["method"])


def test_the_number_of_epochs_is_what_fits_into_the_minutes(bench, data, tmp_path):
    out = tmp_path / "out"
    arguments = [*SMALL[:4], "--seeds", "0", "--methods", "cross-entropy", "mixup"]
    bench.main(["--data", str(data), "--out", str(out), "--minutes", "1", *arguments])
    settings = json.loads((out / "result.json").read_text())["settings"]
    seconds = sum(settings["epoch_seconds"].values())
    assert settings["epochs"] == int(60 * 0.8 / seconds) > 1
