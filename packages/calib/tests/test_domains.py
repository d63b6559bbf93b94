"""Streams of unlabelled images, and the sentences for data that do not fit."""

import pytest
import torch
from calib.calibrator import Calibrator
from calib.domains import Domain, check_ranges
from shared_core.data.arrays import ArrayImages
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

CPU = torch.device("cpu")


def numbered(n=10, channels=1):
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, channels, 8, 8)
    return ArrayImages(images, torch.arange(n) % 3)


def domain(given, batch_size=4, channels=1, value_range=(0.0, 1.0), **more):
    return Domain(
        "target", given, Calibrator(channels, 0.2, 2, 0, value_range=value_range), batch_size, 0, **more
    )


def seen(stream, batches):
    return [(stream.next_batch(CPU).pixels[:, 0, 0, 0] * 255).round().int().tolist() for _ in range(batches)]


def test_a_data_set_goes_on_where_it_is_told_to():
    straight = seen(domain(numbered()), 7)
    stream = domain(numbered())
    stream.seek(4)
    assert seen(stream, 3) == straight[4:]
    epoch = straight[0] + straight[1]
    assert len(set(epoch)) == len(epoch)


def test_two_processes_share_each_batch():
    whole = seen(domain(numbered()), 3)
    parts = [seen(domain(numbered(), rank=rank, world=2), 3) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_places_say_which_image_it_is():
    images = domain(numbered()).next_batch(CPU)
    assert (images.pixels[:, 0, 0, 0] * 255).round().long().tolist() == images.places.tolist()


def test_a_domain_smaller_than_a_batch_gives_all_it_has():
    assert sorted(seen(domain(numbered(3), batch_size=64), 1)[0]) == [0, 1, 2]


def test_loaders_start_again_and_need_no_labels():
    loader = DataLoader(TensorDataset(torch.rand(5, 1, 8, 8)), batch_size=2)
    stream = domain(loader)
    assert [len(stream.next_batch(CPU).pixels) for _ in range(5)] == [2, 2, 1, 2, 2]
    assert stream.next_batch(CPU).labels is None
    assert len(stream.some(4).pixels) == 4


def test_an_iterable_of_plain_batches_is_enough():
    stream = domain([torch.rand(2, 1, 8, 8), torch.rand(3, 1, 8, 8)])
    assert [len(stream.next_batch(CPU).pixels) for _ in range(3)] == [2, 3, 2]


def test_bytes_are_spread_over_the_value_range():
    images = ArrayImages(
        torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 8, 8),
        torch.zeros(2).long(),
    )
    found = domain(images, value_range=(-1.0, 1.0)).next_batch(CPU).pixels
    assert sorted(found[:, 0, 0, 0].tolist()) == [-1.0, 1.0]


def test_the_sample_is_fixed_and_keeps_labels_beside_images():
    first, again = (domain(numbered()).some(6) for _ in range(2))
    assert torch.equal(first.pixels, again.pixels)
    assert ((first.pixels[:, 0, 0, 0] * 255).round().long() % 3).tolist() == first.labels.tolist()


@pytest.mark.parametrize(
    "bare",
    [TensorDataset(torch.rand(6, 1, 8, 8)), torch.utils.data.Subset(list(torch.rand(6, 1, 8, 8)), range(6))],
)
def test_a_data_set_of_bare_images_is_enough(bare):
    found = domain(bare).next_batch(CPU)
    assert found.pixels.shape == (4, 1, 8, 8)
    assert found.labels is None
    assert domain(bare).some(3).labels is None


class Empty(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (numbered(0), "the target domain holds no images"),
        (Empty(), "the target domain holds no images"),
        (numbered(channels=3), r"shape \(4, 3, 8, 8\), but the calibrator was built for 1 channels"),
        ([torch.rand(2, 1, 8, 8) * 255], "target images run from .* outside of the value range"),
        ([torch.full((2, 1, 8, 8), float("nan"))], "target images hold values that are not finite"),
        ([torch.zeros(2, 1, 8, 8, dtype=torch.int64)], "target images are torch.int64"),
        ([{"image": 1}], "starts with a dict"),
    ],
)
def test_data_that_do_not_fit_are_named(as_a_user, given, message):
    with pytest.raises(ValueError, match=message):
        domain(given).next_batch(CPU)


def test_what_is_no_domain_is_named(as_a_user):
    with pytest.raises(TypeError, match="target is a int; give a Dataset"):
        domain(3)


def test_different_ranges_are_detected_and_named():
    images = torch.rand(4, 1, 8, 8)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0, 1
    plain, wide = Calibrator(1, 0.2, 2, 0), Calibrator(1, 0.2, 2, 0, value_range=(-1.0, 1.0))
    check_ranges(images, images * 0.5, plain)
    with pytest.raises(ValueError, match=r"target images run from 0 to 0\.0039.*different ranges"):
        check_ranges(images, images / 255, plain)
    check_ranges(2 * images - 1, 1.4 * images - 0.9, wide)
    with pytest.raises(ValueError, match="source images run from 0 to 1, while the target images fill"):
        check_ranges(images, 2 * images - 1, wide)
    # A bright domain in [0, 1] is just bright.
    check_ranges(images, 0.5 + images / 2, plain)
