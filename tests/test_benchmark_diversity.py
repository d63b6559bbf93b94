"""The diversity benchmark: its plan is fair, its cells resume and never mix with others, and a quick run works."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Networks of both kinds that have learned nothing."""
    import torch
    from fsd.priors.pixel_pipeline import build_pipeline, write_pipeline
    from fsd.world.captions import vocabulary

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for prior in ("multi-view", "camera-free"):
        joined = prior == "multi-view"
        pipeline = build_pipeline(vocabulary(), multi_view=joined, channels=(8, 16), text_width=8)
        write_pipeline(pipeline, folder / prior)
    return folder


def cell(prior: str = "multi-view", prompt: str = "a red object", steps: int = 2, **changes):
    from benchmarks.fsd import plan

    settings = plan.settings_of(prior, "fsd-beta1", {}) | {"steps": steps, "checkpoint_every": 1} | changes
    return plan.Cell("main", prior, "fsd-beta1", prompt, (0, 1), settings)


def table_of(folder: Path):
    """The benchmark's table, elsewhere."""
    from benchmarks.fsd import cells

    return cells.TABLE._replace(path=folder / "cells.csv")


def put(folder: Path, one, **record) -> None:
    """A line for the cell."""
    from benchmarks.core import table
    from benchmarks.fsd import cells

    own = dict(zip(cells.KEY, one, strict=False)) | {"settings": one.settings, "seeds": list(one.seeds)}
    table.put(table_of(folder), own | record)


def test_a_quick_run_writes_rows(tmp_path):
    from benchmarks.fsd import diversity as fsd_diversity

    out = tmp_path / "rows.json"
    assert fsd_diversity.main(["--quick", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["quick"]
    assert [(row["prior"], row["method"]) for row in record["rows"]] == [
        ("embedded multi-view", "sds"),
        ("embedded multi-view", "fsd-beta1"),
    ]
    assert {(row["prompts"], row["seeds"], row["network_calls"]) for row in record["rows"]} == {(1, 2, 2.0)}
    assert list(tmp_path.iterdir()) == [out]


def test_methods_differ_in_nothing_but_the_method_and_cost_the_same_work():
    from benchmarks.fsd import plan

    chosen = {"common": {"multi-view": {"steps": 200, "guidance_scale": 5.0}}}
    for method in plan.METHODS:
        settings = plan.settings_of("multi-view", method, chosen)
        assert settings["steps"] * plan.WORK.get(method, 1.0) == pytest.approx(200, rel=0.02)
        travelled = settings["optim"]["learning_rate"] * settings["steps"]
        assert travelled == pytest.approx(plan.UNTUNED, rel=1e-3)
        assert settings["guidance_scale"] == 5.0
    plain, flow = (plan.settings_of("multi-view", method, chosen) for method in ("sds", "fsd-beta1"))
    assert {name for name in flow if flow[name] != plain.get(name)} == {"guidance", "noise", "beta"}


def test_the_prompts_are_known_and_of_all_kinds_and_none_is_tuned_on():
    from fsd.world.captions import understand
    from fsd.world.objects import FRONTED, KINDS
    from fsd.world.words import COLOURS

    from benchmarks.fsd import plan

    first = [prompt for prompt, tier in plan.PROMPTS.items() if tier == 1]
    assert len(first) == 8
    assert sorted(plan.PROMPTS.values()) == [1] * 8 + [2] * 8 + [3] * 8 + [plan.LAST_TIER] * 8
    assert not set(plan.HELD_OUT) & set(plan.PROMPTS)
    assert set(plan.ABLATED_PROMPTS) <= set(first)
    asked = [understand(prompt) for prompt in first]
    named = [one.kinds[0] for one in asked if len(one.kinds) == 1]
    assert {kind in FRONTED for kind in named} == {True, False}
    assert {len(one.colours) for one in asked} == {1, len(COLOURS)}
    assert sum(len(one.kinds) == len(KINDS) for one in asked) >= 2
    for prompt in (*plan.PROMPTS, *plan.HELD_OUT):
        understand(prompt)


def test_every_cell_is_a_valid_configuration():
    from benchmarks.fsd import plan

    main, tuning, ablated = plan.main_cells(3, {}), plan.tuning_cells({}), plan.ablation_cells({})
    assert len(plan.main_cells(1, {})) == 2 * 8 * 5
    assert len(plan.main_cells(2, {})) == 2 * 16 * 11
    assert len(main) == 2 * 24 * len(plan.METHODS)
    last = plan.main_cells(plan.LAST_TIER, {})[len(main) :]
    assert {(one.prior, one.method) for one in last} == plan.ON_LAST_TIER
    assert len(last) == 8 * len(plan.ON_LAST_TIER)
    assert {plan.PROMPTS[one.prompt] for one in last} == {plan.LAST_TIER}
    for one in (*main, *last, *tuning, *(own[0] for own in ablated.values())):
        assert plan.configuration(one).seeds == list(one.seeds)
    # the first prompt is compared by all methods and both priors before the second one begins
    assert len({one.prompt for one in plan.main_cells(1, {})[:10]}) == 1


def test_the_value_that_an_ablation_has_anyway_is_a_main_cell():
    from benchmarks.fsd import plan

    chosen = plan.read_settings()
    found = plan.ablation_cells(chosen, ["multi-view"])
    main = plan.main_cells(1, chosen)
    for knob in plan.ABLATIONS:
        own = {value: cells for (_, name, value), cells in found.items() if name == knob}
        assert sum(cells[0].group == "main" for cells in own.values()) == 1, knob
        assert all(one in main for cells in own.values() for one in cells if one.group == "main")
    travelled = {
        round(one.settings["optim"]["learning_rate"] * one.settings["steps"], 1)
        for own in found.values()
        for one in own
    }
    assert travelled == {chosen["product"]["multi-view"][plan.ABLATED]}


@pytest.mark.parametrize(
    ("candidates", "picked"),
    [
        # the most diverse of those that are as good
        ([(1.25, 2.0, 90, 95), (2.5, 4.0, 88, 94), (5.0, 9.0, 84, 96), (10.0, 8.0, 90, 90)], 2.5),
        ([(1.25, 2.0, 90, 95), (2.5, 1.0, 90, 97)], 1.25),
        # none is near the best in both
        ([(1.25, 2.0, 90, 60), (2.5, 4.0, 70, 99)], 2.5),
        ([(1.25, None, 90, 95), (2.5, 1.0, 89, 95)], 2.5),
    ],
)
def test_tuning_takes_diversity_only_where_quality_allows(candidates, picked):
    from benchmarks.fsd import plan

    names = ("product", "cross_fid", "prompt_accuracy", "view_consistency")
    assert plan.choose([dict(zip(names, values, strict=True)) for values in candidates])["product"] == picked


def test_a_cell_leaves_a_line_and_a_small_picture(weights, tmp_path):
    from benchmarks.fsd import cells

    one = cell("camera-free")
    table = table_of(tmp_path)
    assert cells.work([one], weights, table, tmp_path / "runs") == []
    (record,) = cells.records(table)
    assert record["network_calls"] == 2
    assert record["weights"] == cells.weights_hash("camera-free", weights)
    assert record["core_seconds"] > 0
    assert len(record["labels"]) == 2
    sheet = cells.folder_of(one, record["weights"], tmp_path / "runs") / "sheet.png"
    assert sheet.stat().st_size < cells.SHEET_BYTES
    assert record["versions"]["fsd"]
    assert not list((tmp_path / "runs").rglob("checkpoints"))
    assert "0 of 1 cells left" in cells.estimate([one], {"camera-free": record["weights"]}, cells.done(table))


def test_cells_of_other_weights_or_settings_are_refused(weights, tmp_path):
    from benchmarks.fsd import cells

    one, known = cell(), cells.weights_hash("multi-view", weights)
    assert known != cells.weights_hash("camera-free", weights)
    record = {"weights": known, "settings": one.settings, "seeds": [0, 1]}
    for change, why in (
        ({}, None),
        ({"weights": "other"}, "weights"),
        ({"settings": one.settings | {"beta": 0.5}}, "settings or seeds"),
        ({"seeds": [0, 1, 2, 3]}, "settings or seeds"),
    ):
        put(tmp_path, one, **record | change)
        done = cells.done(table_of(tmp_path))
        assert len(done) == 1
        assert (cells.finished(one, known, done) is not None) == (why is None)
        assert cells.foreign([one], {"multi-view": known}, done) == (
            []
            if why is None
            else [f"main multi-view fsd-beta1 'a red object': made with other {why}, ignored"]
        )


def test_work_that_another_process_is_at_is_left_to_it(weights, tmp_path, capsys):
    import fcntl

    from benchmarks.fsd import cells

    one, table = cell(), table_of(tmp_path)
    cells.work([one], weights, table, tmp_path / "runs")
    table.path.unlink()
    (lock,) = (tmp_path / "runs/main/multi-view").glob("*/.lock")
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cells.work([one], weights, table, tmp_path / "runs") == []
    assert cells.records(table) == []
    # its objects are there, so only the line is made anew
    cells.work([one], weights, table, tmp_path / "runs")
    (record,) = cells.records(table)
    assert record["core_seconds"] is None


def test_a_cell_that_fails_is_told_and_the_next_one_is_made(weights, tmp_path):
    from benchmarks.fsd import cells

    bad, good = cell(optim={"learning_rate": 1e38}), cell(prompt="a car", steps=1)
    (failure,) = cells.work([bad, good], weights, table_of(tmp_path), tmp_path / "runs")
    assert failure.startswith("multi-view fsd-beta1 'a red object': ")
    assert [record["prompt"] for record in cells.records(table_of(tmp_path))] == ["a car"]


SCRIPT = """
import os, signal, sys
sys.path[:0] = [{benchmarks!r}, {tests!r}]
from pathlib import Path
from benchmarks.fsd import cells
from fsd import generate
from test_benchmark_diversity import cell, table_of

take_step = generate.take_step

def dying(config, step, *more):
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(config, step, *more)

generate.take_step = dying
root = Path({root!r})
cells.work([cell(steps=12)], Path({weights!r}), table_of(root), root / "runs")
"""


@pytest.mark.slow
def test_a_cell_that_was_killed_goes_on_and_ends_the_same(weights, tmp_path):
    """Killed outright in the middle of its first object, then made again, against one that ran through."""
    import torch

    from benchmarks.core.table import RAN_ON
    from benchmarks.fsd import cells

    torch.set_num_threads(1)
    one, killed = cell(steps=12), tmp_path / "killed"
    paths = {"benchmarks": ROOT, "tests": Path(__file__).parent, "weights": weights, "root": killed}
    script = SCRIPT.format(**{name: str(path) for name, path in paths.items()})
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert list(killed.rglob("checkpoints/step-*07"))
    assert not list(killed.rglob("object.json"))
    records = []
    for root in (killed, tmp_path / "straight"):
        assert cells.work([one], weights, table_of(root), root / "runs") == []
        records += cells.records(table_of(root))
    for record in records:
        for clock in ("seconds", "core_seconds", "peak_memory_gb", *RAN_ON):
            del record[clock]
    assert records[0] == records[1]
    pictures = [
        [path.read_bytes() for path in sorted(root.rglob("views.png"))]
        for root in (killed, tmp_path / "straight")
    ]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 2


def test_tune_chooses_from_whole_grids_and_keeps_the_rest(weights, tmp_path):
    from benchmarks.fsd import cells, plan
    from benchmarks.fsd import diversity as fsd_diversity

    todo = plan.tuning_cells({}, ["multi-view"], ["sds", "fsd-beta1"], [2.5, 5.0])
    known = {"multi-view": "w", "camera-free": None}
    found = {"sds at 2.5": 1.0, "sds at 5": 2.0, "fsd-beta1 at 2.5": 3.0}
    for one in todo:
        if one.method in found:
            quality = {"prompt_accuracy": 0.9, "view_consistency": 0.8}
            put(tmp_path, one, weights="w", cross_fid=found[one.method], **quality)
    before = {"product": {"multi-view": {"fsd-beta1": 1.25}}, "common": {"multi-view": {"steps": 200}}}
    tuned = fsd_diversity.tune(todo, before, known, cells.done(table_of(tmp_path)))
    assert tuned["product"]["multi-view"] == {"fsd-beta1": 1.25, "sds": 5.0}
    assert tuned["tried"]["multi-view"] == {
        "sds": [
            {"product": 2.5, "cross_fid": 1.0, "prompt_accuracy": 90.0, "view_consistency": 80.0},
            {"product": 5.0, "cross_fid": 2.0, "prompt_accuracy": 90.0, "view_consistency": 80.0},
        ]
    }
    assert tuned["weights"] == {"multi-view": "w"}
    assert tuned["common"] == {"multi-view": {"steps": 200}}


def test_common_settings_are_given_on_the_command_line():
    from benchmarks.fsd import diversity as fsd_diversity

    kept = {"camera-free": {"steps": 100}, "multi-view": {"t_min": 0.1}}
    found = fsd_diversity.common(kept, ["steps=200", "field={resolution: 24}"], ["multi-view"])
    assert found["camera-free"] == {"steps": 100}
    assert found["multi-view"] == {"t_min": 0.1, "steps": 200, "field": {"resolution": 24}}
