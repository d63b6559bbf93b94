"""Data as others have them, and steps that are skipped: iterators, items of any form, NaN, 16 bits, processes."""

import copy

import pytest
import torch
from accelerate import Accelerator
from calib.adaptation import adapt
from calib.attachment import attach
from calib.calibrator import Calibrator
from calib.critics import FeatureCritic, PixelCritic, draw_patch
from calib.domains import Domain
from calib.players import Players
from calib.selection import Selection
from calib.step import Batch, Critics, Weights
from shared_core.testing import assert_same_state
from torch import nn

SHORT = {"steps": 3, "batch_size": 8, "validation_images": 16, "device": "cpu"}


def images(n=8, seed=0, dtype=torch.float32):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return attach(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).to(dtype), Calibrator(1, 0.2, 2, 1).to(dtype))


def batches(count=8):
    return [images(seed=seed) for seed in range(count)]


def ended(source, target, **more):
    calibrated = model()
    adapt(calibrated, source, target, selection="last", **{**SHORT, **more})
    return calibrated.calibrator.state_dict()


def test_an_iterator_gives_all_its_batches_to_the_steps():
    assert_same_state(ended(iter(batches()), (b for b in batches())), ended(batches(), batches()))
    with pytest.raises(
        ValueError, match="is an iterator and gave all of its 2 batches: give what can be begun"
    ):
        ended(iter(batches(2)), batches())


@pytest.mark.parametrize(
    "form",
    [
        lambda image, label: (image, label, "file.png"),
        lambda image, label: {"pixel_values": image, "labels": label},
        lambda image, label: [image, torch.tensor(label), 3, 4],
        lambda image, label: (image, "file.png"),
        lambda image, label: image,
    ],
)
def test_items_of_any_form_are_the_same_images(form):
    plain = [(image, k % 2) for k, image in enumerate(images(16))]

    class Items(torch.utils.data.Dataset):
        def __init__(self, form):
            self.form = form

        def __len__(self):
            return 16

        def __getitem__(self, index):
            return self.form(*plain[index])

    ours, theirs = (
        ended(Items(one), torch.utils.data.DataLoader(Items(one), 8)) for one in (form, lambda x, y: (x, y))
    )
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("wrong", [{"picture": 1}, ("file.png", 0), (None, 0)])
def test_items_without_an_image_get_a_sentence(wrong, as_a_user):
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return wrong

    with pytest.raises(ValueError, match=r"name the images one of image|starts with a (str|NoneType)"):
        adapt(model(), Items(), batches(), **SHORT)


def test_processes_share_the_rows_of_a_loader_s_batch():
    calibrator = Calibrator(1)
    parts = [Domain("target", batches(), calibrator, 8, 0, rank, 2) for rank in (0, 1)]
    found = [part.next_batch(torch.device("cpu")).pixels for part in parts]
    assert torch.equal(torch.cat(found), images(seed=0))
    few = Domain("target", [images(1)], calibrator, 8, 0, 0, 2)
    with pytest.raises(ValueError, match="1 images for 2 processes: give larger batches, or a DataLoader"):
        few.next_batch(torch.device("cpu"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_win_nothing(bad):
    for by in ("information", "last"):
        chosen = Selection(by, 1.0)
        first = {"information": 0.1, "entropy": -1.0, "source_kept": 90.0}
        assert chosen.consider(0, first, nn.Linear(1, 1))
        assert not chosen.consider(1, {**first, "information": bad}, nn.Linear(1, 1))
        assert not chosen.consider(1, {**first, "entropy": bad, "information": 9.0}, nn.Linear(1, 1))
        assert chosen.consider(2, {**first, "information": 0.2}, nn.Linear(1, 1))
    chosen = Selection("information", 1.0)
    chosen.consider(0, {**first, "information": bad}, nn.Linear(1, 1))
    assert chosen.consider(1, {**first, "source_kept": 10.0}, nn.Linear(1, 1))


class Normed(PixelCritic):
    def __init__(self):
        super().__init__(1, 4, 8)
        self.net.insert(1, nn.BatchNorm1d(8))


def players():
    torch.manual_seed(0)
    critics = Critics(Normed(), FeatureCritic(2, (8, 6), dropout=0.5))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).requires_grad_(False)
    calibrator = Calibrator(1, 0.2, 2, 1)
    made = Players(
        calibrator, critics, lambda x: classifier(x).softmax(1), Weights(), Accelerator(cpu=True), steps=9,
        schedule="cosine",
    )  # fmt: skip
    return made, classifier


def everything(made):
    return {name: copy.deepcopy(part.state_dict()) for name, part in made.saved().items()}


@pytest.mark.parametrize("refused", ["critic_pixel", "critics_gradient_norm", "pixel", "gradient_norm"])
def test_a_skipped_step_changes_nothing(refused):
    (ours, classifier), (theirs, _) = players(), players()

    def step(made, k, usable=lambda _parts: True):
        x = [images(seed=10 * k + s) for s in (0, 1)]
        batch = Batch(*x, *(classifier(one).softmax(1) for one in x))
        made.play([(batch, draw_patch(8, 8, 4, 0, k))], usable, careful=True)

    torch.manual_seed(1)
    step(ours, 0)
    before, state = everything(ours), torch.get_rng_state()
    step(ours, 1, lambda parts: refused not in parts)
    assert_same_state(everything(ours), before)
    assert torch.equal(torch.get_rng_state(), state)
    step(ours, 2)
    torch.manual_seed(1)
    step(theirs, 0)
    step(theirs, 2)
    assert_same_state(everything(ours), everything(theirs))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_nan_pixel_is_skipped_where_that_is_asked_for(accumulate):
    bad = batches()
    bad[3][5, 0, 1, 2] = float("nan")
    more = {"steps": 4, "accumulate": accumulate, "validation_images": 8, "on_nonfinite": "skip"}
    report = adapt(model(), batches(), bad, **{**SHORT, **more})
    assert report.skipped_steps == 1
    assert all(value == value for value in report.validators.values())
    with pytest.raises(ValueError, match="target images hold values that are not finite"):
        adapt(model(), batches(), bad, **{**SHORT, **more, "on_nonfinite": "error"})


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_bound_holds_in_every_type(own, given, autocast):
    torch.manual_seed(0)
    calibrator = Calibrator(3, 0.2, 2, 1)
    for parameter in calibrator.parameters():
        parameter.data.normal_(std=2.0)
    x = torch.rand(2, 3, 16, 16).to(given)
    with torch.no_grad():
        wanted = calibrator(x.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        found = calibrator.to(own)(x)
    assert found.dtype == given
    assert float((found.double() - x.double()).abs().max()) <= 0.2
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    coarse = torch.bfloat16 in (own, given) or autocast
    assert float((found.double() - wanted.double()).abs().mean()) < (0.02 if coarse else 0.002)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_adaptation_in_another_type(dtype):
    report = adapt(model(dtype), [images(dtype=dtype)], [images(seed=1, dtype=dtype)], **SHORT)
    plain = adapt(model(), [images()], [images(seed=1)], **SHORT)
    assert report.classifier_unchanged
    assert abs(report.validators["information"] - plain.validators["information"]) < 0.01
