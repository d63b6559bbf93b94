"""The accuracy benchmark: it runs, every row is a valid configuration, and its page says what the cells say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import corsd_accuracy

    return corsd_accuracy


@pytest.mark.slow
def test_quick_run_writes_rows(tmp_path):
    out = tmp_path / "rows.json"
    script = ROOT / "benchmarks" / "corsd_accuracy.py"
    done = subprocess.run(
        [sys.executable, script, "--quick", "--out", out], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["method"] for row in rows] == ["ce", "corsd"]
    assert rows[0]["images_seen"] == rows[1]["images_seen"] > 0
    assert list(tmp_path.iterdir()) == [out]


def test_every_row_of_a_setting_sees_the_same_images_and_only_the_row_differs(benchmark):
    for setting, config in benchmark.SETTINGS.items():
        for row in benchmark.ROWS:
            changed = benchmark.configuration("final", setting, row)
            assert (changed.epochs, changed.batch_size) == (config.epochs, config.batch_size)
            assert (changed.images_per_class, changed.augment) == (config.images_per_class, config.augment)
            assert changed.validation == 0
        for trial in benchmark.TRIALS.get(setting, {}):
            assert benchmark.configuration("tune", setting, trial).validation == 0.25


def test_tuning_and_final_seeds_do_not_meet_and_trials_are_equal_in_number(benchmark):
    for setting, trials in benchmark.TRIALS.items():
        assert not set(benchmark.TUNING_SEEDS) & set(benchmark.FINAL_SEEDS[setting])
        assert sum(t["method"] == "ce" for t in trials.values()) * 2 == len(trials)


def _cell(row, seed, accuracy, benchmark):
    return {
        "setting": "digits",
        "row": row,
        "seed": seed,
        "accuracy": accuracy,
        "train_accuracy": 100.0,
        "noise": {"0.05": accuracy - 1, "0.1": accuracy - 2},
        "calibration_error": 3.0,
        "images_seen": 18000,
        "seconds": 5.0,
    }


def test_page_pairs_seeds_and_claims_no_difference_that_chance_explains(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")
    accuracy = {
        "cross-entropy": [90.0, 92.0, 94.0],
        "deep supervision": [91.0, 93.2, 94.8],
        "CORSD (in-batch)": [91.0, 92.0, 93.0],
        "CORSD (triplets)": [92.0, 94.1, 96.0],
    }
    for row, values in accuracy.items():
        for seed, value in zip((10, 11, 12), values, strict=True):
            file = tmp_path / "cells" / "final" / "digits" / f"{row}-{seed}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(_cell(row, seed, value, benchmark)))
    rows = {row["method"]: row for row in benchmark.table()}
    assert rows["CORSD (triplets)"]["accuracy"] == [92.0, 94.1, 96.0]
    assert rows["CORSD (triplets)"]["baseline"] == [90.0, 92.0, 94.0]
    wanted = {"dataset", "net", "method", "seeds", "accuracy", "baseline", "images_seen", "seconds"}
    assert wanted <= set(json.loads((tmp_path / "results" / "corsd.json").read_text())[0])
    page = (tmp_path / "results" / "corsd.md").read_text()
    # gains 2, 2.1, 2: t interval of their mean 2.033
    assert "CORSD (triplets): +2.03 [+1.89, +2.18] points over cross-entropy (a gain)" in page
    assert "CORSD (in-batch): +0.00 [-2.48, +2.48] points over cross-entropy (no difference shown)" in page
    assert "over the best control, deep supervision" in page
    assert (tmp_path / "results" / "corsd.png").stat().st_size > 1000
