"""Balanced batches: classes and images of each batch, fairness over an epoch, neighbours, views, processes, resume."""

import time
from collections import Counter

import pytest
import torch
from corsd import PlanBatches, balanced_plan, with_views
from corsd.config import TrainConfig
from corsd.methods import batch_plan
from corsd.rows import row_targets
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_core.data.loader import KeyedDataset, make_loader
from shared_core.data.open import ArrayImages
from shared_core.data.sampling import Batches, shuffled_plan
from torch.utils.data import DataLoader

UNEQUAL = torch.tensor([0] * 13 + [2] * 2 + [3] * 7 + [7] * 1 + [9] * 9)


def sizes_of(labels):
    return Counter(labels.tolist())


def expected_shares(sizes: dict[int, int], batches: int, classes: int) -> dict[int, float]:
    """In how many batches of an epoch each class is, by the definition: its share, at most all of them."""
    shares, left, free = {}, batches * classes, dict(sizes)
    while free:
        total = sum(free.values())
        full = [c for c, n in free.items() if n * left > batches * total]
        for c in full:
            shares[c] = float(batches)
            left -= batches
            del free[c]
        if not full:
            return shares | {c: n * left / total for c, n in free.items()}
    return shares


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=12),
    st.integers(2, 6),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_what_every_plan_promises(sizes, classes, per_class, epoch):
    labels = torch.repeat_interleave(torch.arange(len(sizes)) * 3, torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    if classes > len(sizes) or len(labels) < classes * per_class:
        return
    keys = balanced_plan(labels, classes, per_class, seed=5)(epoch)
    batches = len(labels) // (classes * per_class)
    assert keys.shape == (batches, classes * per_class, 2)
    assert sorted(keys[..., 1].flatten().tolist()) == list(range(keys[..., 1].numel()))
    found = labels[keys[..., 0]]
    for row in found:
        assert set(Counter(row.tolist()).values()) == {per_class}
        assert len(row.unique()) == classes
    pairs = found[:, : found.shape[1] // 2 * 2].reshape(batches, -1, 2)
    assert bool((pairs[..., 0] != pairs[..., 1]).all())
    seen, times = Counter(keys[..., 0].flatten().tolist()), Counter(found.flatten().tolist())
    for c, share in expected_shares(sizes_of(labels), batches, classes).items():
        assert abs(times[c] / per_class - share) < 1
        counts = [seen[i] for i in (labels == c).nonzero().squeeze(1).tolist()]
        assert max(counts) - min(counts) <= 1
        if len(counts) >= per_class:
            in_a_batch = [Counter(row.tolist()) for row in keys[..., 0]]
            assert all(row[i] <= 1 for row in in_a_batch for i in row if labels[i] == c)


def test_all_images_are_seen_equally_often_over_epochs():
    """33 images in 4 batches of 2 x 4: each image 32 / 33 times an epoch, that of the class of one too."""
    epochs, plan = 600, balanced_plan(UNEQUAL, 2, 4, seed=0)
    seen = torch.zeros(len(UNEQUAL))
    for epoch in range(epochs):
        seen += torch.bincount(plan(epoch)[..., 0].flatten(), minlength=len(UNEQUAL))
    rate = torch.stack([seen[c == UNEQUAL].mean() for c in UNEQUAL.unique()]) / epochs
    torch.testing.assert_close(rate, torch.full_like(rate, 32 / 33), rtol=0, atol=0.13)
    assert seen.sum() == epochs * 32


def test_equal_classes_that_batches_divide_are_read_once_each():
    labels = torch.arange(48) % 6
    for epoch in range(3):
        assert sorted(balanced_plan(labels, 3, 4, 0)(epoch)[..., 0].flatten().tolist()) == list(range(48))


def test_all_classes_in_every_batch_and_a_class_that_is_more_than_its_share():
    found = UNEQUAL[balanced_plan(UNEQUAL, 5, 2, seed=0)(0)[..., 0]]
    assert [sorted(row.tolist()) for row in found] == [[0, 0, 2, 2, 3, 3, 7, 7, 9, 9]] * 3
    labels = torch.tensor([0] * 90 + [1] * 5 + [2] * 5)
    found = labels[balanced_plan(labels, 2, 2, seed=0)(0)[..., 0]]
    assert sizes_of(found.flatten()) == {0: 50, 1: 26, 2: 24} or sizes_of(found.flatten()) == {
        0: 50,
        1: 24,
        2: 26,
    }


def test_any_two_classes_meet_over_epochs():
    labels = torch.arange(60) % 6
    met = torch.zeros(6, 6)
    for epoch in range(300):
        for row in labels[balanced_plan(labels, 2, 2, 0)(epoch)[..., 0]]:
            a, b = row.unique()
            met[a, b] += 1
    rates = met[torch.ones(6, 6).triu(1).bool()]
    assert rates.min() > 0.8 * rates.mean()


def test_partners_of_a_class_vary_within_an_epoch_batch():
    """Mixed pairs of a batch are not always of the same two classes."""
    labels = torch.arange(4000) % 8
    row = labels[balanced_plan(labels, 8, 8, 0)(0)[0, :, 0]].view(-1, 2)
    partners = {int(b) for a, b in row if a == 0} | {int(a) for a, b in row if b == 0}
    assert len(partners) > 2


def test_plans_are_pure_functions_of_seed_and_epoch():
    plan = balanced_plan(UNEQUAL, 3, 2, seed=3)
    assert torch.equal(plan(4), balanced_plan(UNEQUAL.tolist(), 3, 2, seed=3)(4))
    assert not torch.equal(plan(4), plan(5))
    assert not torch.equal(plan(4), balanced_plan(UNEQUAL, 3, 2, seed=4)(4))


def test_one_and_a_quarter_million_images_of_many_classes_are_quick():
    labels = torch.randint(20_000, (300_000,), generator=torch.Generator().manual_seed(0))
    begun = time.perf_counter()
    balanced_plan(labels, 64, 4, seed=0)(0)
    assert time.perf_counter() - begun < 3


@pytest.mark.usefixtures("as_a_user")
def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 classes and 1 image of each; got 1 and 4"):
        balanced_plan(UNEQUAL, 1, 4, 0)
    with pytest.raises(ValueError, match=r"a batch of 6 classes with 2 images each.*labels hold 5"):
        balanced_plan(UNEQUAL, 6, 2, 0)
    with pytest.raises(ValueError, match=r"32 images do not fill one batch of 5 classes x 8"):
        balanced_plan(UNEQUAL, 5, 8, 0)
    with pytest.raises(ValueError, match=r"views=0; an image has at least one"):
        with_views(shuffled_plan(9, 3, 0), 0)
    with pytest.raises(ValueError, match=r"two images at a time; a batch has 3 images"):
        with_views(shuffled_plan(9, 3, 0))(0)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_views_are_the_images_of_the_plan_with_draws_of_their_own(views):
    plain = balanced_plan(UNEQUAL, 2, 2, 0)(1)
    keys = with_views(balanced_plan(UNEQUAL, 2, 2, 0), views)(1)
    assert keys.shape == (len(plain), 4 * views, 2)
    for row, whole in zip(plain, keys, strict=True):
        # by the definition: two images, again in the next view, then the next two
        expected = []
        for a, b in row.view(-1, 2, 2).tolist():
            for view in range(views):
                expected += [[i, draw * views + view] for i, draw in (a, b)]
        assert whole.tolist() == expected
    assert len({tuple(key) for key in keys.view(-1, 2).tolist()}) == keys[..., 0].numel()


def test_rows_have_the_other_view_as_their_positive():
    """With a class per image nothing else is alike: each row of version 2 has one target, the other view."""
    labels = torch.arange(12)
    found = labels[with_views(shuffled_plan(12, 4, 0))(0)[0, :, 0]]
    targets = row_targets(found, found, torch.ones(8))
    assert targets.sum(1).tolist() == [1.0] * 8
    assert torch.equal(found[targets.argmax(1)], found)


def test_views_of_an_image_are_augmented_apart():
    data = ArrayImages(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), torch.arange(8) % 2, ["a", "b"])
    noise = lambda images, u: images + (250 * u[:, :1, None, None]).to(torch.uint8)  # noqa: E731
    batches = Batches(with_views(shuffled_plan(8, 4, 0)), group=4)
    for images, labels, index in make_loader(
        KeyedDataset(data, 0, batch_transform=noise, with_index=True), batches
    ):
        pairs = index.view(-1, 2, 2)
        assert torch.equal(pairs[:, 0], pairs[:, 1])
        assert torch.equal(labels, index % 2)
        assert images.flatten(1)[:, 0].unique().numel() == len(images)


PLANS = {
    "balanced": (balanced_plan(UNEQUAL, 4, 2, 0), 2),
    "views": (with_views(balanced_plan(UNEQUAL, 4, 2, 0)), 4),
    "shuffled": (shuffled_plan(33, 8, 0), 1),
}


@pytest.mark.parametrize("name", PLANS)
def test_processes_share_what_one_reads(name):
    plan, group = PLANS[name]
    alone = PlanBatches(plan)
    shares = [PlanBatches(plan, number, 2, group) for number in range(2)]
    assert len(alone) == len(shares[0])
    for whole, *parts in zip(alone, *shares, strict=True):
        assert [i for part in parts for i in part] == whole
        if group > 1:
            pairs = torch.tensor(parts[0]).view(-1, 2)
            assert bool((UNEQUAL[pairs[:, 0]] != UNEQUAL[pairs[:, 1]]).all())


def test_a_loader_of_ones_own_goes_on_where_it_stopped():
    data = [(torch.full((1,), float(i)), int(y)) for i, y in enumerate(UNEQUAL)]

    def read(sampler, count):
        loader, found = DataLoader(data, batch_sampler=sampler), []
        while len(found) < count:
            found += [images.flatten().tolist() for images, _ in loader]
        return found[:count]

    plan = balanced_plan(UNEQUAL, 4, 2, seed=1)
    straight = read(PlanBatches(plan), 10)
    resumed = PlanBatches(plan)
    resumed.seek(epoch=1, step=2)
    assert len(straight[0]) == 8
    assert read(resumed, 4) == straight[6:]


LABELS = torch.arange(120) % 10
V2 = {"method": "corsd_v2", "batch_size": 24}


def test_settings_become_plans():
    config = TrainConfig.model_validate({**V2, "images_per_class_in_batch": 3, "views": 2})
    plan, group = batch_plan(config, LABELS, 7)
    assert torch.equal(plan(1), with_views(balanced_plan(LABELS, 4, 3, 7))(1))
    assert group == 4
    plan, group = batch_plan(config.model_copy(update={"images_per_class_in_batch": None}), LABELS, 7)
    assert torch.equal(plan(0), with_views(shuffled_plan(120, 12, 7))(0))
    # a control in the same run that compares nothing reads what it always read, as many images
    plan, group = batch_plan(config.model_copy(update={"method": "ce"}), LABELS, 7)
    assert torch.equal(plan(0), shuffled_plan(120, 24, 7)(0))
    with pytest.raises(
        ValueError, match=r"batch_size=24 .*groups of 1 with 5 images a class; choose 20 or 25"
    ):
        batch_plan(TrainConfig.model_validate({**V2, "images_per_class_in_batch": 5}), LABELS, 7)
