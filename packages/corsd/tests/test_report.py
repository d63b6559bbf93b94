"""The report says what the run shows; the relation matrix, the early exits and the README hold what they say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from corsd import figures
from corsd.config import TrainConfig
from corsd.distiller import Distiller
from corsd.early import accuracy_against_compute, exit_accuracy, exit_flops
from corsd.nets import open_net
from corsd.reevaluate import lines
from corsd.relation import Triplets
from corsd.relation_matrix import _pairs, relation_matrix
from corsd.report import report
from corsd.run import run
from corsd.stages import Stage
from corsd.trained import open_exits, open_trained
from shared_core.run.seal import write_sealed


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "exits"
    config = TrainConfig.model_validate(
        {
            "width": 8,
            "augment": "none",
            "images_per_class": 24,
            "epochs": 1.5,
            "batch_size": 24,
            "log_every": 1,
            "device": "cpu",
            "controls": ["ce"],
            "seeds": [0, 1],
            "relations": {"exits": "detached"},
        }
    )
    run(config, out)
    return out


def test_the_report_shows_every_part_and_fetches_nothing(out: Path) -> None:
    page = (out / "report.html").read_text()
    for words in (
        "CORSD on digits",
        "Stages",
        "Area under the ROC curve on test images",
        "Training",
        "Mean over the training: cross-entropy ",
        "Relations",
        "On the test images",
        "Early exits",
        "Settings",
    ):
        assert words in page
    assert page.count('<img class="plot"') == 12
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.parametrize(
    ("interval", "said", "unsaid"),
    [
        ([-0.5, 2.5], "which holds 0: no difference shown", "+0.50 to"),
        ([0.5, 1.5], "+0.50 to +1.50.", "holds 0"),
    ],
)
def test_a_gain_within_chance_is_called_none(out: Path, interval: list, said: str, unsaid: str) -> None:
    path = out / "result.json"
    before = path.read_text()
    try:
        write_sealed(path, json.loads(before) | {"gain": 1.0, "gain_interval": interval})
        page = report(out).read_text()
    finally:
        write_sealed(path, json.loads(before))
    assert said in page
    assert unsaid not in page


def test_an_unfinished_run_has_no_report(out: Path) -> None:
    result = out / "cells" / "ce-seed1" / "result.json"
    hidden = result.rename(result.with_suffix(".hidden"))
    try:
        with pytest.raises(ValueError, match="ce-seed1 is not finished"):
            report(out)
    finally:
        hidden.rename(result)


def distiller_of_three() -> Distiller:
    torch.manual_seed(0)
    return Distiller(open_net("small:resnet10", 3, 1, 8), num_classes=3, example=torch.zeros(2, 1, 16, 16))


def test_relation_matrix_is_the_mean_over_pairs_of_the_two_classes() -> None:
    distiller = distiller_of_three()
    images = torch.rand(3, 1, 16, 16)
    labels = torch.tensor([0, 1, 2])
    found = relation_matrix(distiller, images, labels, 3, pairs=18)
    # One image per class leaves no choice: the entry is the relation of that pair.
    distiller.eval()
    with torch.no_grad(), distiller.capture:
        distiller.net(images)
    maps = distiller.capture.pop()[distiller.stages[0].name]
    for a in range(3):
        for b in range(3):
            rows = Triplets(*(torch.tensor([i]) for i in (a, b, b)))
            with torch.no_grad():
                assert found[0, a, b].item() == pytest.approx(distiller.relations[0](maps, rows).same.item())
    assert found.shape == (len(distiller.stages), 3, 3)


def test_relation_matrix_compares_no_more_pairs_than_there_are() -> None:
    """Two images a class: one pair of each kind of two, whatever is asked for."""
    labels = torch.tensor([0, 0, 1, 1])
    anchors, partners, places = _pairs(labels, 2, 1_000, torch.Generator().manual_seed(0))
    assert torch.bincount(places).tolist() == [1, 2, 2, 1]
    assert partners.shape == (len(anchors), 2)
    assert all(labels[i] == p // 2 for i, p in zip(anchors, places, strict=True))


def test_relation_matrix_leaves_the_distiller_alone_and_marks_empty_classes() -> None:
    distiller = distiller_of_three().train()
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    found = relation_matrix(distiller, torch.rand(4, 1, 16, 16), torch.tensor([0, 0, 2, 2]), 3)
    assert torch.isnan(found[:, 1]).all()
    assert torch.isnan(found[:, :, 1]).all()
    assert ((found[:, [0, 2]][:, :, [0, 2]] > 0) & (found[:, [0, 2]][:, :, [0, 2]] < 1)).all()
    assert distiller.training
    assert all(torch.equal(before[name], value) for name, value in distiller.state_dict().items())


def test_images_leave_at_the_first_sure_exit() -> None:
    sure, unsure = [9.0, 0.0], [0.1, 0.0]
    logits = torch.tensor([[sure, unsure], [sure, [0.0, 9.0]]])  # two depths, two images
    labels = torch.tensor([0, 1])
    early, never = accuracy_against_compute(logits, labels, [10, 100], thresholds=(0.9, 1.01))
    assert early == {"threshold": 0.9, "accuracy": 100.0, "flops": 55.0, "share_per_exit": [0.5, 0.5]}
    assert never["flops"] == 100.0
    assert never["share_per_exit"] == [0.0, 1.0]


def test_accuracy_per_exit() -> None:
    logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 3.0]]])
    found = exit_accuracy(logits, torch.tensor([0, 1]), [Stage("layer1", 8, "map", (2, 8, 4, 4))])
    assert found == {"layer1": 50.0, "net": 100.0, "ensemble": 100.0}


def test_flops_grow_with_depth_and_are_those_of_the_convolutions(out: Path) -> None:
    trained = open_trained(out / "cells" / "corsd-seed0")
    stages, exits = open_exits(trained)
    costs, plain = exit_flops(trained.net, stages, exits, torch.zeros(1, 1, 8, 8))
    assert costs == sorted(costs)
    assert costs[-1] > plain
    stem = torch.nn.Conv2d(1, 8, 3, 1, 1, bias=False)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        stem(torch.zeros(1, 1, 8, 8))
    assert counter.get_total_flops() == 2 * 8 * 9 * 64 < costs[0]


def readme_blocks() -> list[str]:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)


@pytest.mark.parametrize("block", readme_blocks())
def test_the_readme_runs_as_it_stands(block: str, capsys) -> None:
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102
    assert "tensor" in capsys.readouterr().out


def test_the_readme_lists_every_method_preset_and_switch() -> None:
    from corsd.config import PRESETS, Method
    from corsd.losses import Variant

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    switches = set(Variant.__dataclass_fields__) - {"temperature", "margin"}
    for name in {*PRESETS, *Method.__args__, *switches} - {"corsd"}:
        assert f"`{name}`" in readme, name


def test_a_class_without_test_images_is_a_gap_in_figures_and_never_the_worst() -> None:
    names = [f"class {k}" for k in range(30)]
    values = np.array([None, *range(1, 30)], dtype=float)
    drawn = figures.per_class({"ours": values}, names).axes[0].lines[0].get_ydata()
    assert np.isnan(drawn[-1])
    assert drawn[0] == 1
    counts = np.array([[2, 2], [0, 0]])
    picture = figures.confusion(counts, ["a", "b"]).axes[0].images[0].get_array()
    assert np.ma.filled(np.ma.masked_invalid(picture), -1).tolist() == [[50, 50], [-1, -1]]
    cell = {"method": "ce", "seed": 0, "accuracy": 50.0, "per_class": [None, 50.0], "calibration_error": 1.0}
    assert "50.00" in lines({"cells": [{**cell, "noise": {}, "exits": None}]})[1].split()[3]
