"""One step of every method on a stand-in for a GPU: nothing is left on the CPU, and hardly anything is read back."""

from typing import get_args

import pytest
import torch
from corsd import Distiller
from corsd.areas import relation_areas
from corsd.config import Method, TrainConfig
from corsd.data import Data
from corsd.methods import build_method
from corsd.nets import small_resnet
from corsd.rows import relation_auc
from corsd.training_step import gradient_shares
from shared_core.data.preprocess import Preprocess
from shared_core.run.guard import FiniteGuard, largest_gradient
from shared_core.testing import pretend_device
from torch.utils.data import Dataset

META = torch.device("meta")
CLASSES, SIZE = 3, 16
LABELS = torch.tensor([0, 0, 1] * 4)
PAIRS = torch.tensor([0, 0, 1, 1, 2, 2] * 2)

# All that a step may wait for, each at most once a step; the guard is the one of the training loop.
FINITE, CLASSES_OF_BATCH, STEPS_DONE = (
    "is the step finite?",
    "which classes does the batch hold?",
    "how many steps are done?",
)
COUNTS = {"corsd", "mixskd", "ols", "one", "ps_kd", "corsd_v2", "mixup", "cutmix"}
"""Methods that count steps: the count is read once, when the state comes from elsewhere."""


def on_the_device(method, **settings):
    """A method, its optimizer and a batch on the device, made as the training loop makes them."""
    torch.manual_seed(0)
    net = small_resnet([1, 1, 1, 1], 4, CLASSES)
    config = TrainConfig(method=method, batch_size=12, **settings)
    preprocess = Preprocess(SIZE, 3, (0.0,) * 3, (1.0,) * 3, crop=False)
    data = Data(Dataset(), None, Dataset(), LABELS.repeat(2), list("abc"), preprocess)
    made = build_method(config, net, data, 0, 10).to(META).train()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    return made, optimizer, torch.zeros(12, 3, SIZE, SIZE, device=META)


def step(made, optimizer, images, labels, guard):
    out = made(images, labels, torch.arange(12))
    out.loss.backward()
    assert guard.accepts({**out.parts, "gradient": largest_gradient(made)}, 1)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("method", get_args(Method))
def test_a_step_waits_once_for_whether_it_is_finite(method):
    made, optimizer, images = on_the_device(method)
    labels = PAIRS if method == "cs_kd" else LABELS
    with pretend_device() as reasons:
        step(made, optimizer, images, labels, FiniteGuard())
        assert reasons == [*([STEPS_DONE] if method in COUNTS else []), FINITE]
        reasons.clear()
        step(made, optimizer, images, labels, FiniteGuard())
    assert reasons == [FINITE]


@pytest.mark.parametrize("method", get_args(Method))
def test_labels_on_the_device_are_read_once_a_step(method):
    made, optimizer, images = on_the_device(method)
    labels = PAIRS if method == "cs_kd" else LABELS
    with pretend_device(lambda zeros: labels if zeros.shape == labels.shape else zeros) as reasons:
        step(made, optimizer, images, labels.to(META), FiniteGuard())
        reasons.clear()
        step(made, optimizer, images, labels.to(META), FiniteGuard())
    assert reasons == [CLASSES_OF_BATCH, FINITE]


@pytest.mark.parametrize(
    "settings",
    [
        {"pairs": "triplets"},
        {"relations": {"exits": "joint"}},
        {"relations": {"norm": "group", "variant": {"attention": True, "logit_relation": "sum"}}},
        {"relations": {"variant": {"prototype": "ema", "aux_kl": "raw_logits", "soft_label": "softmaxed"}}},
        {"on_nonfinite": "skip"},
    ],
    ids=str,
)
def test_every_form_of_the_distiller_keeps_to_the_device(settings):
    made, optimizer, images = on_the_device("corsd", **settings)
    guard = FiniteGuard(settings.get("on_nonfinite", "error"))
    with pretend_device() as reasons:
        guard.snapshot(made, rows=made.written_rows(LABELS))
        step(made, optimizer, images, LABELS, guard)
    assert reasons == [STEPS_DONE, FINITE]


@pytest.mark.parametrize(
    "settings",
    [
        {"rows": 1.0, "row_distillation": 1.0, "ensemble": 1.0},
        {"rows": 0.0, "mixing": "cutmix"},
        {"mixing": "off"},
    ],
    ids=str,
)
def test_every_form_of_version_2_keeps_to_the_device(settings):
    made, optimizer, images = on_the_device("corsd_v2", relational=settings)
    with pretend_device() as reasons:
        step(made, optimizer, images, LABELS, FiniteGuard())
    assert reasons == [STEPS_DONE, FINITE]


def test_the_area_of_relations_is_computed_on_the_device():
    with pretend_device() as reasons:
        relation_auc(torch.zeros(12, 12, device=META), LABELS.to(META))
    assert reasons == []


@pytest.mark.parametrize("method", ["corsd", "corsd_v2", "contrastive"])
def test_the_areas_of_all_stages_are_read_at_once(method):
    made, *_ = on_the_device(method)
    with pretend_device() as reasons:
        relation_areas(made, torch.zeros(12, 3, SIZE, SIZE), LABELS, lambda chunk: chunk.to(META))
    assert reasons == ["how well do relations tell classes apart?"]


def test_the_shares_of_the_gradient_are_read_at_once():
    made, _, images = on_the_device("corsd")
    with pretend_device(torch.ones_like) as reasons:
        out = made(images, LABELS)
        reasons.clear()
        shares = gradient_shares(out.parts, made.net)
    assert reasons == ["gradient shares"]
    assert sum(shares.values()) == pytest.approx(1)


def test_the_count_of_steps_follows_what_others_write():
    """A checkpoint, a skipped step or a copy writes the buffer; the next step starts from there."""
    import copy

    distiller = Distiller(
        small_resnet([1, 1, 1, 1], 4, CLASSES), num_classes=CLASSES, example=torch.zeros(2, 3, 16, 16)
    )
    images = torch.rand(12, 3, SIZE, SIZE)
    distiller(images, LABELS)
    state = copy.deepcopy(distiller.state_dict())
    twin = copy.deepcopy(distiller)
    distiller(images, LABELS)
    distiller.load_state_dict(state)
    assert distiller(images, LABELS).loss == twin(images, LABELS).loss
    assert int(distiller.steps) == int(twin.steps) == 2
