"""A run of several trainings: cells, their comparison, resuming, and the schema of its result."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from corsd.config import TrainConfig
from corsd.run import cells_of, run
from corsd.summary import paired_interval, schema, sentence, summarise, verdict
from shared_core.run import metrics
from shared_core.run.result import check_result


def tiny(**changes) -> TrainConfig:
    values = {
        "data": "digits",
        "model": "small:resnet10",
        "width": 8,
        "augment": "none",
        "images_per_class": 24,
        "epochs": 1,
        "batch_size": 24,
        "log_every": 1,
        "device": "cpu",
    }
    return TrainConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "several"
    run(tiny(controls=["ce", "deep_supervision"], seeds=[3, 1]), out)
    return out


@pytest.mark.slow
def test_every_method_and_seed_is_an_ordinary_run_folder(several: Path) -> None:
    cells = sorted(path.name for path in (several / "cells").iterdir())
    methods = ("ce", "corsd", "deep_supervision")
    assert cells == [f"{method}-seed{seed}" for method in methods for seed in (1, 3)]
    for cell in (several / "cells").iterdir():
        config = yaml.safe_load((cell / "config.yaml").read_text())
        assert f"{config['method']}-seed{config['seeds'][0]}" == cell.name
        assert {"net.safetensors", "result.json", "metrics.jsonl", "preprocess.json"} <= {
            path.name for path in cell.iterdir()
        }
    assert {"config.yaml", "env.json", "result.json", "report.html", "metrics.jsonl"} <= {
        path.name for path in several.iterdir()
    }


def test_the_result_follows_its_schema_and_its_cells(several: Path) -> None:
    import jsonschema

    result = json.loads((several / "result.json").read_text())
    jsonschema.validate(result, schema())
    check_result(result, schema())
    for method, values in {"corsd": result["accuracies"], "ce": result["controls"]["ce"]["accuracy"]}.items():
        cells = [several / "cells" / f"{method}-seed{seed}" / "result.json" for seed in (1, 3)]
        assert values == [json.loads(cell.read_text())["accuracy"] for cell in cells]
    assert result["gain"] == pytest.approx(result["accuracy_mean"] - result["baseline_mean"])
    assert result["images_seen"] == 240


def test_metrics_of_the_run_have_a_line_per_cell(several: Path) -> None:
    lines = metrics.read(several / "metrics.jsonl")
    assert [(line["method"], line["seed"]) for line in lines] == [
        (method, seed) for seed in (3, 1) for method in ("corsd", "ce", "deep_supervision")
    ]
    assert all(0 <= line["accuracy"] <= 100 for line in lines)


def test_finished_cells_are_not_trained_again(several: Path) -> None:
    weights = several / "cells" / "ce-seed1" / "net.safetensors"
    before, result = weights.stat().st_mtime_ns, (several / "result.json").read_text()
    (several / "result.json").unlink()
    run(tiny(controls=["ce", "deep_supervision"], seeds=[3, 1]), several, resume=True)
    assert weights.stat().st_mtime_ns == before
    assert (several / "result.json").read_text() == result


def test_one_training_is_the_run_folder_itself_and_resumes_when_finished(tmp_path: Path) -> None:
    result = run(tiny(method="ce"), tmp_path / "one")
    assert not (tmp_path / "one" / "cells").exists()
    assert result["accuracy_sd"] is result["baseline_mean"] is result["gain_interval"] is None
    written = json.loads((tmp_path / "one" / "result.json").read_text())
    check_result(written, schema())
    assert written["accuracy"] == result["accuracy_mean"]
    assert run(tiny(method="ce"), tmp_path / "one", resume=True) == result


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_like_a_straight_one(tmp_path: Path, one_thread: None) -> None:
    config = tiny(controls=["ce"], epochs=6, checkpoint_every=5)
    file, killed = tmp_path / "config.yaml", tmp_path / "killed"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "corsd", "train", "--config", str(file), "--out", str(killed)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(killed.glob("cells/*/checkpoints/step-*")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    straight = run(config, tmp_path / "straight")
    assert run(config, killed, resume=True)["accuracies"] == straight["accuracies"]
    for name in ("cells/corsd-seed0/net.safetensors", "cells/ce-seed0/net.safetensors"):
        assert (tmp_path / "straight" / name).read_bytes() == (killed / name).read_bytes(), name
    for name in ("metrics.jsonl", "cells/corsd-seed0/metrics.jsonl", "cells/ce-seed0/metrics.jsonl"):
        assert _without_time(tmp_path / "straight" / name) == _without_time(killed / name), name


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in another order differ in the last bit, so both processes count with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_two_processes_write_one_run(tmp_path: Path) -> None:
    values = tiny(controls=["ce"], relations={"norm": "group"}).model_dump(mode="json")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    arguments = ["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "corsd", "train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    check_result(result, schema())
    assert result["images_seen"] == 240
    assert len(metrics.read(tmp_path / "out" / "metrics.jsonl")) == 2
    assert done.stdout.count("open ") == 1


def test_seeds_come_first_so_that_a_comparison_is_early() -> None:
    cells = cells_of(tiny(controls=["ce", "corsd"], seeds=[7, 2]), Path("out"))
    assert [cell.folder.name for cell in cells] == ["corsd-seed7", "ce-seed7", "corsd-seed2", "ce-seed2"]


def cell(method: str, seed: int, accuracy: float, images: int = 100) -> dict:
    return {
        "method": method,
        "dataset": "digits",
        "net": "small:resnet10",
        "seed": seed,
        "accuracy": accuracy,
        "images_seen": images,
        "seconds": 1.0,
    }


def test_the_comparison_is_paired_by_seed() -> None:
    # Gains 1, 2, 3: mean 2, standard deviation 1; Student's quantile for 2 degrees of freedom is 4.30265.
    rows = [("corsd", 91.0, 82.0, 73.0), ("ce", 90.0, 80.0, 70.0), ("byot", 95.0, 80.0, 60.0)]
    results = [cell(m, seed, accuracy) for m, *own in rows for seed, accuracy in enumerate(own)]
    result = summarise(results)
    half = 4.302652729911275 / math.sqrt(3)
    assert result["gain"] == pytest.approx(2)
    assert result["gain_interval"] == pytest.approx([2 - half, 2 + half])
    assert result["best_control"] == "ce"
    assert result["controls"]["ce"] == {
        "accuracy": [90.0, 80.0, 70.0],
        "mean": 80.0,
        "sd": 10.0,
        "stage_accuracy": None,
        "relation_auc": None,
    }
    assert result["seconds"] == 9.0
    check_result(result, schema())


def test_the_best_control_has_the_highest_mean() -> None:
    result = summarise([cell("corsd", 0, 90.0), cell("ce", 0, 85.0), cell("byot", 0, 92.0)])
    assert result["best_control"] == "byot"
    assert result["gain_over_best_control"] == -2
    assert result["gain_over_best_control_interval"] is None
    assert "-2.00 points against byot" in sentence(result)


def test_unequal_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal budgets; the trainings saw \[100, 300\] images"):
        summarise([cell("corsd", 0, 90.0), cell("ce", 0, 85.0, images=300)])


def test_missing_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="every method at every seed"):
        summarise([cell("corsd", 0, 90.0), cell("corsd", 1, 90.0), cell("ce", 0, 85.0)])


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (None, "one seed, so chance is not ruled out"),
        ([-0.1, 0.5], "which holds 0: no difference shown"),
        ([0.1, 0.5], "95 % interval +0.10 to +0.50"),
    ],
)
def test_no_gain_is_claimed_that_chance_could_have_made(interval: list | None, words: str) -> None:
    assert verdict(interval).endswith(words)


def test_one_seed_has_no_interval() -> None:
    assert paired_interval([90.0], [80.0]) is None


def _without_time(path: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "time"} for line in metrics.read(path)]
