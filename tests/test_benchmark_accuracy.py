"""The accuracy benchmark: it runs, every row is a valid configuration, and its page says what the table says."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corsd.config import TrainConfig
from shared_core.run.command import command_parser, run_arguments
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.corsd import accuracy as corsd_accuracy

    return corsd_accuracy


@pytest.mark.slow
def test_quick_run_writes_rows(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.corsd.accuracy", "--quick", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    rows = record["rows"]
    assert record["environment"]["packages"]["corsd"]
    assert [row["method"] for row in rows] == ["ce", "corsd"]
    assert rows[0]["images_seen"] == rows[1]["images_seen"] > 0
    assert list(tmp_path.iterdir()) == [out]


def test_every_row_of_a_setting_sees_the_same_images_and_only_the_row_differs(benchmark):
    for setting, config in benchmark.SETTINGS.items():
        for row in benchmark.rows_of(setting):
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


def _run(row, seed, accuracy):
    return {
        "stage": "final",
        "setting": "digits",
        "method": row,
        "seed": seed,
        "accuracy": accuracy,
        "train_accuracy": 100.0,
        "noise": {"0.05": accuracy - 1, "0.1": accuracy - 2},
        "calibration_error": 3.0,
        "images_seen": 18000,
        "seconds": 5.0,
    }


@pytest.fixture
def elsewhere(benchmark, tmp_path, monkeypatch):
    """The benchmark with a table, runs and pages of its own."""
    monkeypatch.setattr(benchmark, "RUNS_DONE", benchmark.RUNS_DONE._replace(path=tmp_path / "runs.csv"))
    monkeypatch.setattr(benchmark, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")
    return benchmark


def test_page_pairs_seeds_and_claims_no_difference_that_chance_explains(elsewhere, tmp_path):
    from benchmarks.core.table import put

    benchmark = elsewhere
    accuracy = {
        "cross-entropy": [90.0, 92.0, 94.0],
        "deep supervision": [91.0, 93.2, 94.8],
        "CORSD (in-batch)": [91.0, 92.0, 93.0],
        "CORSD (triplets)": [92.0, 94.1, 96.0],
    }
    for row, values in accuracy.items():
        put(benchmark.RUNS_DONE, *(_run(row, *own) for own in zip((10, 11, 12), values, strict=True)))
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


def test_runs_are_added_with_settings_and_versions_and_older_ones_without_remain_valid(
    elsewhere, monkeypatch
):
    import corsd.train

    from benchmarks.core.table import put, read

    made = _run("cross-entropy", 10, 90.0)
    trained = []
    monkeypatch.setattr(corsd.train, "train_cell", lambda *given, **more: trained.append(given) or made)
    for _ in range(2):  # what has a line is not trained again
        elsewhere.work([("final", "digits", "cross-entropy", 10)])
    assert len(trained) == 1
    (new,) = read(elsewhere.RUNS_DONE)
    assert new["versions"]["torch"]
    assert new["settings"] == {"method": "ce"}
    put(elsewhere.RUNS_DONE, made | {"seed": 11})
    (row,) = elsewhere.table()
    assert row["seeds"] == [10, 11]


def test_trials_are_scored_by_the_validation_split(elsewhere, monkeypatch):
    import corsd.train

    from benchmarks.core.table import read

    def trained(config, seed, folder, resume):
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"validation": 1.0}\n{"validation": 2.0}\n')
        return _run("any", 0, 90.0)

    monkeypatch.setattr(corsd.train, "train_cell", trained)
    elsewhere.work([("tune", "cifar100-2k", "CORSD, rate 0.2", 0)])
    (run,) = read(elsewhere.RUNS_DONE)
    assert (run["stage"], run["accuracy"]) == ("tune", 2.0)
    assert "noise" not in run
    assert elsewhere.table() == []


def test_the_table_has_the_columns_that_others_read_and_a_line_of_every_run_is_planned(benchmark):
    from benchmarks.core.table import read

    wanted = ("setting", "method", "seed", "accuracy", "train_accuracy", "images_seen", "core_seconds")
    assert set(wanted) <= set(benchmark.RUNS_DONE.columns)
    for run in read(benchmark.RUNS_DONE):
        TrainConfig.model_validate(benchmark.configuration(run["stage"], run["setting"], run["method"]))
        assert run["settings"] == benchmark.changed(run["stage"], run["setting"], run["method"])


def test_the_committed_page_says_what_the_committed_runs_say(benchmark, tmp_path, monkeypatch):
    """Run `python -m benchmarks.corsd.accuracy` after new runs."""
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    assert benchmark.table()
    for name in ("corsd.md", "corsd.json"):
        assert (ROOT / "docs/results" / name).read_text() == (tmp_path / name).read_text()


def test_what_was_not_measured_can_be_started_and_costs_what_the_page_says(benchmark):
    from corsd.config import PRESETS, TrainConfig
    from corsd.nets import open_net

    from benchmarks.corsd.accuracy_page import PAGE, TO_MEASURE

    parsed = {}
    for nets, body in re.findall(
        r"^for net in ([^;]*); do\n(.*?)^done", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE
    ):
        for net in nets.split():
            program, verb, *words = shlex.split(body.replace("\\\n", " ").replace("$net", net))
            assert (program, verb) == ("corsd", "train")
            config, out, _ = run_arguments(
                command_parser("corsd", verb, add_help=False), words, TrainConfig, PRESETS
            )
            assert str(out).endswith(f"-{net}")
            parsed[words[words.index("--preset") + 1], config.model] = config
    assert parsed.keys() == {(preset, net) for preset, net, _, _ in TO_MEASURE}
    for preset, net, _, gmac in TO_MEASURE:
        side = parsed[preset, net].image_size or 32
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            open_net(net, num_classes=100).eval()(torch.zeros(1, 3, side, side))
        assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.01)
