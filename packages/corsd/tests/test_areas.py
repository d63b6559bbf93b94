"""What stages are worth: areas of relations against slow loops, accuracy of heads in one pass, and the record."""

import json
from pathlib import Path

import pytest
import torch
from corsd import Distiller, RelationalDistiller, RelationalWeights
from corsd.areas import relation_areas, some_of_each
from corsd.baselines import ContrastiveSupervision, CrossEntropy, ExitMethod
from corsd.config import TrainConfig
from corsd.early import exit_accuracy, exit_logits, stage_accuracy
from corsd.nets import small_resnet
from corsd.relation import Relation
from corsd.report_stages import stages
from corsd.rows import cosine_relations, pair_auc
from corsd.summary import summarise
from corsd.train import train_cell
from shared_core.data.open import ArrayImages
from shared_core.data.preprocess import Preprocess
from shared_core.testing import assert_same_state, run_ranks
from torch import nn

LABELS = torch.arange(24) % 3
CPU = torch.device("cpu")


def images(count=24):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def made(kind, **options):
    torch.manual_seed(0)
    return kind(small_resnet([1, 1, 1, 1], 4, 3), num_classes=3, example=images(2), **options)


def slow_area(same, other):
    wins = sum((s > o) + 0.5 * (s == o) for s in same.tolist() for o in other.tolist())
    return wins / (len(same) * len(other))


@pytest.mark.parametrize("digits", [1, 6])
def test_area_of_pairs_equals_slow_loops_with_and_without_ties(digits):
    values = torch.rand(2, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    same, other = (values * 10**digits).round()
    assert float(pair_auc(same, other[:13])) == pytest.approx(slow_area(same, other[:13]), abs=1e-12)


@pytest.mark.parametrize("kind", [RelationalDistiller, ContrastiveSupervision])
def test_areas_of_embeddings_are_those_of_all_pairs(kind):
    method = made(kind)
    found = relation_areas(method, images() * 256, LABELS, lambda x: x / 256)
    assert list(found) == ["layer1", "layer2", "layer3", "layer4"]
    method.eval()
    upper = torch.ones(24, 24).triu(1).bool()
    alike = LABELS[:, None] == LABELS
    for area, embeddings in zip(found.values(), method.embeddings(images()), strict=True):
        relations = cosine_relations(embeddings)
        assert area == pytest.approx(slow_area(relations[upper & alike], relations[upper & ~alike]), abs=1e-6)


class Distance(nn.Module):
    """A relation that is known: how far the means of two maps are apart, times a sign."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, maps, triplets):
        means = maps.mean((1, 2, 3))
        anchor, positive, negative = (means[rows] for rows in triplets)
        same, other = (self.sign * (anchor - x).abs() for x in (positive, negative))
        logits = torch.zeros(len(same), 3)
        return Relation(same, other, logits, logits)


@pytest.mark.parametrize(("sign", "area"), [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.5)])
def test_areas_of_version_1_count_small_relations_as_alike(sign, area):
    method = made(Distiller)
    method.relations = nn.ModuleList(Distance(sign) for _ in method.stages)
    colours = LABELS[:, None, None, None].expand(-1, 3, 16, 16).float()
    assert list(relation_areas(method, colours, LABELS).values()) == [area] * 4


@pytest.mark.parametrize("kind", [Distiller, RelationalDistiller, ContrastiveSupervision])
def test_looking_changes_nothing(kind):
    method = made(kind).train()
    method.net.layer1.eval()
    modes = [m.training for m in method.modules()]
    before = {name: value.clone() for name, value in method.state_dict().items()}
    generator = torch.get_rng_state()
    first, second = (relation_areas(method, images(), LABELS) for _ in range(2))
    assert first == second
    assert modes == [m.training for m in method.modules()]
    assert_same_state(before, method.state_dict())
    assert torch.equal(generator, torch.get_rng_state())


def test_methods_without_relations_and_images_without_pairs_have_no_area():
    assert relation_areas(CrossEntropy(small_resnet([1] * 4, 4, 3), 3), images(), LABELS) == {}
    assert (
        relation_areas(made(RelationalDistiller, weights=RelationalWeights(rows=0.0)), images(), LABELS) == {}
    )
    for labels in (torch.arange(24), torch.zeros(24, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        for kind in (Distiller, RelationalDistiller):
            assert relation_areas(made(kind), images(len(labels)), labels) == {}


def array(labels):
    pixels = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return ArrayImages((pixels % 256).to(torch.uint8), labels, [str(k) for k in range(int(labels.max()) + 1)])


def test_a_bounded_sample_is_spread_evenly_over_classes():
    _, labels = some_of_each(array(torch.arange(200) // 20), 50)
    assert torch.bincount(labels).tolist() == [5] * 10
    pixels, labels = some_of_each(array(torch.arange(200) % 50), 40)
    # 50 classes do not fit: 10 of them with the 4 images of each
    assert torch.bincount(labels)[::5].tolist() == [4] * 10
    assert torch.equal(pixels[:, 0, 0, 0].long() % 50, labels)
    assert len(some_of_each(array(torch.tensor([0, 2, 2])), 500)[1]) == 3


PREPROCESS = Preprocess(16, 3, (0.5,) * 3, (0.2,) * 3, crop=False)


def heads_and_data():
    method = made(ExitMethod, method="deep_supervision")
    count = 1_100  # three batches
    pixels = torch.randint(256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(2))
    data = ArrayImages(pixels.to(torch.uint8), torch.arange(count) % 3, list("abc"))
    return method.net, method.stages[:-1], method.exits, data, PREPROCESS, CPU


def of_processes():
    return stage_accuracy(*heads_and_data(), 0, True)


def test_accuracy_of_stages_in_one_pass_is_that_of_all_logits_and_the_same_on_two_processes():
    whole = heads_and_data()
    expected = exit_accuracy(*exit_logits(*whole), whole[1])
    assert list(expected) == ["layer1", "layer2", "layer3", "net", "ensemble"]
    assert stage_accuracy(*whole) == expected
    assert run_ranks(of_processes, 2) == [expected] * 2


TINY = {"width": 4, "images_per_class": 8, "augment": "none", "batch_size": 16, "log_every": 2, "threads": 1}


@pytest.mark.parametrize("method", ["corsd", "corsd_v2", "contrastive", "deep_supervision", "ce"])
def test_a_training_records_what_its_stages_are_worth(method, tmp_path: Path):
    config = TrainConfig.model_validate({**TINY, "method": method, "epochs": 3, "device": "cpu"})
    result = train_cell(config, 0, tmp_path)
    heads, learns = method in ("corsd_v2", "deep_supervision"), method in ("corsd", "corsd_v2", "contrastive")
    assert (result["stage_accuracy"] is not None, result["relation_auc"] is not None) == (heads, learns)
    if heads:
        assert list(result["stage_accuracy"]) == ["layer1", "layer2", "layer3", "net", "ensemble"]
        assert result["stage_accuracy"]["net"] == pytest.approx(result["accuracy"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # the first, every second and the last step are logged, and of these the first of each epoch of five has areas
    assert [line["step"] for line in lines] == [1, 2, 4, 6, 8, 10, 12, 14, 15]
    assert [line["step"] for line in lines if "relation_auc" in line] == ([1, 6, 10, 15] if learns else [])


def result(method, seed, stage_accuracy=None, relation_auc=None):
    common = {
        "dataset": "digits",
        "net": "small:resnet10",
        "images_seen": 10,
        "seconds": 1.0,
        "accuracy": 50.0,
    }
    return {
        **common, "method": method, "seed": seed, "stage_accuracy": stage_accuracy, "relation_auc": relation_auc
    }  # fmt: skip


def test_the_record_and_the_report_of_a_run_hold_means_over_seeds(tmp_path: Path):
    heads = [{"layer1": 40.0 + s, "net": 60.0 + s, "ensemble": 70.0 + s} for s in (0, 2)]
    results = [
        result("corsd_v2", 0, heads[0], {"layer1": 0.6}),
        result("ce", 0),
        result("corsd_v2", 1, heads[1], {"layer1": 0.8}),
        result("ce", 1),
    ]
    whole = summarise(results)
    assert whole["stage_accuracy"] == {"layer1": 41.0, "net": 61.0, "ensemble": 71.0}
    assert whole["relation_auc"] == {"layer1": 0.7}
    assert whole["controls"]["ce"] | {"accuracy": 0, "mean": 0, "sd": 0} == {
        "accuracy": 0, "mean": 0, "sd": 0, "stage_accuracy": None, "relation_auc": None
    }  # fmt: skip
    line = {"step": 1, "images": 4, "relation_auc": {"layer1": 0.5}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = "".join(stages([(r, tmp_path) for r in results]))
    for words in (
        "61.0 % for the deployed net, 71.0 % for the ensemble of all stages",
        "41.0 % for the class heads",
        "41.0 ± 1.4",
        "0.700 ± 0.141",
        "mean ± standard deviation over 2 seeds",
    ):
        assert words in page
    assert stages([(results[1], tmp_path)]) == []
