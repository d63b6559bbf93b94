"""Two processes equal one, for every baseline; what one process needs is done once or shared, never on each."""

from typing import Any

import pytest
import torch
from calib import baselines, comparison, feed, survey, validation
from calib.attachment import attach
from calib.baselines import METHODS, Labelled, Settings, target_supervised
from calib.calibrator import Calibrator
from calib.comparison import all_items, baseline_rows
from calib.config import AdaptConfig
from calib.critics import FeatureCritic, PixelCritic
from calib.data import Domains
from calib.domains import Domain
from calib.feed import Feed
from calib.neighbours import Neighbours
from calib.step import Critics, Weights
from calib.survey import Survey
from calib.validation import measure
from calib.views import Teacher, Views
from shared_core.data.arrays import ArrayImages
from shared_core.ops.gather import rank, world_size
from shared_core.run.guard import NonFiniteError
from shared_core.testing import assert_same_state, run_ranks
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

CPU = torch.device("cpu")
TWENTY = Settings(steps=20, batch_size=12)
ALL = [*METHODS, "target_supervised"]


def net() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
    return nn.Sequential(body, nn.Linear(36, 3)).eval()


def domain(seed: int, count: int = 48) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.rand(count, 1, 8, 8, generator=generator) + 0.3 * labels[:, None, None, None]
    return Labelled(images.double(), labels)


def twenty_steps(names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """The net of each baseline after twenty steps in float64, and its answers."""
    source, target, found = domain(0), domain(1), {}
    for name in names:
        classifier = net().double()
        if name == "target_supervised":
            adapted = target_supervised(classifier, target, TWENTY, 0)
        else:
            adapted = METHODS[name](classifier, source, target.images, TWENTY, 0)
        found[name] = {**adapted.net.state_dict(), "answers": adapted.predict(domain(2).images)}
    return found


def in_another_order() -> dict[str, dict[str, torch.Tensor]]:
    """Each process does the baselines in an order of its own, as where they are dealt out."""
    return twenty_steps(ALL if rank() == 0 else ALL[::-1])


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, dict[str, torch.Tensor]]]:
    return run_ranks(in_another_order, 2, timeout=300.0)


@pytest.mark.parametrize("name", ALL)
def test_two_processes_equal_one(name, two_processes):
    alone = twenty_steps([name])[name]
    for found in two_processes:
        for key, value in alone.items():
            torch.testing.assert_close(found[name][key], value, rtol=0, atol=1e-9)


class Counted(Dataset):
    """Images and labels that are decoded one by one, and which were."""

    def __init__(self, given: Labelled) -> None:
        self.given, self.read = given, []

    def __len__(self) -> int:
        return len(self.given.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return self.given.images[index].float(), int(self.given.labels[index])


def config(**changes: Any) -> AdaptConfig:
    settings = {"source": "digits", "target": "digits", "steps": 3, "batch_size": 8, "baselines": ALL[1:]}
    return AdaptConfig.model_validate(settings | changes)


def rows_and_who_did_what() -> tuple[list[dict[str, Any]], list[str], list[int]]:
    """The rows, the baselines that this process trained, and how many images it decoded of each data set."""
    sets = [Counted(domain(seed, 1200)) for seed in range(4)]
    given = Domains(sets[0], sets[1], sets[2], sets[3], ["a", "b", "c"], 1, False, None)
    done: list[str] = []

    def noted(name: str, method: Any) -> Any:
        return lambda *given: done.append(name) or method(*given)

    methods, bound = baselines.METHODS, comparison.target_supervised
    try:
        comparison.METHODS = {name: noted(name, method) for name, method in methods.items()}
        comparison.target_supervised = noted("target_supervised", bound)
        model = attach(net(), Calibrator(1, 0.2, 2, 0), outputs="logits")
        rows = baseline_rows(config(), model, given, 0, CPU)
    finally:
        comparison.METHODS, comparison.target_supervised = methods, bound
    return [{**row, "seconds": 0.0} for row in rows], done, [len(one.read) for one in sets]


def test_baselines_are_dealt_out_and_their_rows_are_those_of_one_process():
    torch.set_num_threads(1)
    alone, everything, whole = rows_and_who_did_what()
    first, second = run_ranks(rows_and_who_did_what, 2, timeout=300.0)
    assert first[0] == second[0] == alone
    assert [row["method"] for row in alone] == everything == ALL[1:]
    assert first[1] + second[1] == [*ALL[1::2], *ALL[2::2]]
    # Training images are decoded once, and test images by whoever evaluates.
    assert [a + b for a, b in zip(first[2], second[2], strict=True)] == whole
    assert whole[0] == whole[2] == 1200


def broken_baseline() -> str:
    source = domain(0)
    source.images[0] = float("nan")
    sets = [Counted(one) for one in (source, domain(1), domain(2), domain(3))]
    given = Domains(sets[0], sets[1], sets[2], sets[3], ["a", "b", "c"], 1, False, None)
    model = attach(net(), Calibrator(1, 0.2, 2, 0), outputs="logits")
    try:
        baseline_rows(config(steps=9, baselines=["dann", "moment_matching"]), model, given, 0, CPU)
    except NonFiniteError as error:
        return str(error)
    return "no error"


def test_a_baseline_that_fails_on_one_process_ends_all():
    first, second = run_ranks(broken_baseline, 2)
    assert "loss part 'cross_entropy' is nan" in first
    assert first == second


def looked() -> dict[str, Any]:
    """What processes look at before and beside the steps, in batches of 5; and how many images this one decoded."""
    sizes = (feed.VALIDATION_BATCH, survey.VALIDATION_BATCH, validation.VALIDATION_BATCH)
    feed.VALIDATION_BATCH = survey.VALIDATION_BATCH = validation.VALIDATION_BATCH = 5
    try:
        return _looked()
    finally:
        feed.VALIDATION_BATCH, survey.VALIDATION_BATCH, validation.VALIDATION_BATCH = sizes


def _looked() -> dict[str, Any]:
    torch.manual_seed(0)
    calibrator = Calibrator(1, 0.2, 2, 0)
    model = attach(net(), calibrator)
    asked: list[int] = []
    model.classifier.register_forward_hook(lambda _net, given, _out: asked.append(len(given[0])))
    sets = [Counted(domain(seed, 43)) for seed in range(2)]
    pair = [
        Domain(name, given, calibrator, 8, 0, rank(), world_size())
        for name, given in zip("st", sets, strict=True)
    ]
    samples = [one.some(30) for one in pair]
    read = [sum(one.read.count(n) for n in range(43)) for one in sets]
    model.settle(samples[0].pixels)
    asked.clear()
    teacher = Teacher(lambda images: model.ask(images).softmax(1), Views(count=2, threshold=0.0))
    teacher.weigh_zooms(samples[1].pixels, shared=True)
    zooms = sum(asked)
    asked.clear()
    found = Survey(teacher, pair[1], Neighbours(count=3, threshold=0.0), 0, CPU)
    found.ask(0)
    found.ask(7)
    views = sum(asked)
    asked.clear()
    features = model.features()
    tables = Feed(pair, features, model.ask, Weights(), 0, CPU)
    tables.fill_tables(1000)
    clean = sum(asked)
    critics = Critics(PixelCritic(1, 4), FeatureCritic(3)).eval()
    asked.clear()
    values = measure(model, calibrator, critics, features, samples, CPU, 4, 0)
    return {
        "samples": [samples[0].pixels, samples[1].pixels, samples[1].labels], "zooms": teacher.zooms,
        "taught": found.teach(torch.arange(43)), "tables": tables.tables, "values": values,
        "asked": {"zooms": zooms, "views": views, "tables": clean, "measure": sum(asked)}, "read": read,
    }  # fmt: skip


def test_first_looks_surveys_tables_and_validation_are_shared_and_equal_those_of_one_process():
    torch.set_num_threads(1)
    alone, both = looked(), run_ranks(looked, 2, timeout=120.0)
    for found in both:
        for name in ("samples", "zooms", "taught", "tables", "values"):
            assert_same_state({name: found[name]}, {name: alone[name]})
    for name, count in alone["asked"].items():
        assert sum(found["asked"][name] for found in both) == count, name
        assert all(0 < found["asked"][name] < count for found in both), name
    # Beside the first item, which tells their form, each image of the sample is decoded by one process.
    for number in range(2):
        assert sum(found["read"][number] for found in both) == alone["read"][number] + 1


def sample_of_a_loader() -> torch.Tensor:
    data = ArrayImages((255 * domain(0).images).to(torch.uint8), domain(0).labels)
    sampler = DistributedSampler(data, world_size(), rank(), shuffle=False)
    loader = DataLoader(data, 4, sampler=sampler)
    return Domain("source", loader, Calibrator(1, 0.2, 2, 0), 4, 0, rank(), world_size()).some(12).pixels


def test_all_processes_validate_on_the_same_images_of_a_loader():
    first, second = run_ranks(sample_of_a_loader, 2)
    assert torch.equal(first, second)


def test_items_in_memory_are_not_copied():
    data = ArrayImages((255 * domain(0).images).to(torch.uint8), domain(0).labels)
    assert all_items(data) == (data.images, data.labels)
    assert torch.equal(all_items(Counted(domain(0)))[1], domain(0).labels)
