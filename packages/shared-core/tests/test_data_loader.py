import inspect
import random

import numpy as np
import pytest
import torch
from shared_core.data.augment import crop_flip, to_float
from shared_core.data.loader import KeyedDataset, make_loader
from shared_core.data.loader import test_loader as plain_loader
from shared_core.data.open import open_dataset
from shared_core.data.sampling import Batches, Key, shuffled_plan
from shared_core.testing import assert_same_state
from torch.utils.data import Dataset


def augmented(images, uniforms):
    return to_float(crop_flip(images, uniforms, padding=1))


def jitter(image):
    """Draws from all three global generators."""
    return image.float() + torch.rand(()) + random.random() + float(np.random.rand())


class Listed(Dataset):
    """The same images without the array's shortcut."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


def batches(**options):
    return Batches(shuffled_plan(1297, 32, seed=5), **options)


def first_batches(dataset, workers, n=6, **options):
    loader = make_loader(dataset, batches(**options), workers=workers)
    found = []
    for batch in loader:
        found.append(batch)
        if len(found) == n:
            break
    return found


@pytest.mark.parametrize("source", [lambda d: d, Listed])
@pytest.mark.parametrize("how", [{"batch_transform": augmented}, {"transform": jitter}])
def test_batches_do_not_depend_on_the_number_of_workers(source, how):
    dataset = KeyedDataset(source(open_dataset("digits")), seed=5, with_index=True, **how)
    alone = first_batches(dataset, workers=0)
    assert_same_state(alone, first_batches(dataset, workers=2))
    images, labels, indices = alone[0]
    assert images.shape == (32, 1, 8, 8)
    assert torch.equal(labels, open_dataset("digits").labels[indices])


@pytest.mark.parametrize("workers", [0, 2])
def test_continuing_in_the_middle_of_an_epoch_bit_for_bit(workers):
    dataset = KeyedDataset(open_dataset("digits"), seed=5, batch_transform=augmented)
    sampler = batches()
    loader = make_loader(dataset, sampler, workers=workers)
    straight = [batch for _ in range(2) for batch in loader]
    assert len(straight) == 2 * len(loader) == 80
    again = batches()
    fresh = make_loader(dataset, again, workers=workers)
    again.seek(0, 37)
    assert_same_state(straight[37:], [batch for _ in range(2) for batch in fresh])
    again.seek(1, 0)
    assert_same_state(straight[40:], list(fresh))


def test_ranks_together_give_the_batch_of_one_process():
    dataset = KeyedDataset(open_dataset("digits"), seed=5, batch_transform=augmented)
    whole = first_batches(dataset, workers=0)
    halves = [first_batches(dataset, workers=0, rank=rank, world=2) for rank in range(2)]
    for (images, labels), (one, one_labels), (two, two_labels) in zip(whole, *halves, strict=True):
        assert torch.equal(images, torch.cat([one, two]))
        assert torch.equal(labels, torch.cat([one_labels, two_labels]))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_torchs_global_generator_alone(workers):
    dataset = KeyedDataset(open_dataset("digits"), seed=5, transform=jitter)
    before = torch.get_rng_state()
    first_batches(dataset, workers, n=2)
    assert torch.equal(before, torch.get_rng_state())


def generators():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


# Unwrapped: the shape checker itself draws from Python's generator.
transform_one = inspect.unwrap(KeyedDataset._one)


def test_a_transform_leaves_all_global_generators_alone():
    dataset = KeyedDataset(open_dataset("digits"), seed=5, transform=jitter)
    before = generators()
    one, again = (transform_one(dataset, torch.zeros(2), Key(0, 0, 0)) for _ in range(2))
    assert_same_state(one, again)
    after = generators()
    assert all(map(equal, before, after))


def equal(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_draws_and_epochs_of_an_image_differ_and_repeat():
    dataset = KeyedDataset(open_dataset("digits"), seed=5, transform=jitter)
    keys = [Key(0, 3, 0), Key(0, 3, 1), Key(1, 3, 0), Key(0, 3, 0)]
    images, labels = dataset.__getitems__(keys)
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert torch.equal(images[0], images[3])
    assert len(set(labels.tolist())) == 1
    image, label = dataset[Key(0, 3, 0)]
    assert torch.equal(image, images[0])
    assert label == int(labels[0])


def test_a_transform_that_fails_leaves_the_generators_as_they_were():
    def broken(image):
        torch.rand(3)
        random.random()
        raise RuntimeError("broken on purpose")

    dataset = KeyedDataset(open_dataset("digits"), seed=5, transform=broken)
    before = generators()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        transform_one(dataset, torch.zeros(2), Key(0, 0, 0))
    after = generators()
    assert all(map(equal, before, after))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_image_once_in_order(world):
    data = open_dataset("digits", "test")
    parts = [list(plain_loader(data, 64, rank=rank, world=world)) for rank in range(world)]
    images = torch.cat([images for part in parts for images, _ in part])
    assert torch.equal(images, data.images)
    sizes = [sum(len(labels) for _, labels in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_without_transform_images_stay_bytes():
    dataset = KeyedDataset(open_dataset("digits"), seed=0)
    assert dataset.__getitems__([Key(0, 0, 0)])[0].dtype == torch.uint8
