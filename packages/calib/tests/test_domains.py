"""Streams of unlabelled images, and the sentences for data that do not fit."""

import pytest
import torch
from calib.calibrator import Calibrator, value_range_of
from calib.domains import Domain, check_images
from calib.ranges import check_ranges
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
        ([{"image": 1}], "starts with a int"),
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
    with pytest.raises(
        ValueError, match=r"source images run from 0 to 1, but target images from -1 to 1, in the"
    ):
        check_ranges(images, 2 * images - 1, wide)
    # A bright domain in [0, 1] is just bright.
    check_ranges(images, 0.5 + images / 2, plain)


MEAN, STD = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
FORMS = {
    "plain": lambda images: images,
    "half": lambda images: (images - 0.5) / 0.5,
    "imagenet": lambda images: (images - MEAN) / STD,
}
RANGES = {
    "half": (-1.0, 1.0),
    "imagenet": value_range_of(MEAN.flatten().tolist(), STD.flatten().tolist()),
    "one for all": (-2.2, 2.7),
}


def photographs(low=0.0, high=1.0):
    """Four images, of which some pixel is as dark and some as bright as it can be."""
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 1
    return low + (high - low) * images


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.02, 0.95)], ids=["black to white", "nearly"])
@pytest.mark.parametrize(
    ("narrow", "wide", "value_range"),
    [
        ("plain", "imagenet", "imagenet"),
        ("plain", "imagenet", "one for all"),
        ("plain", "half", "half"),
        ("plain", "half", "one for all"),
        ("half", "imagenet", "one for all"),
    ],
)
def test_a_domain_that_is_normalised_otherwise_is_detected(narrow, wide, value_range, ends):
    calibrator = Calibrator(3, 0.2, 2, 0, value_range=RANGES[value_range])
    one, other = FORMS[narrow](photographs(*ends)), FORMS[wide](photographs())
    with pytest.raises(ValueError, match=r"source images run from .* but target images .*scale both alike"):
        check_ranges(one, other, calibrator)
    with pytest.raises(ValueError, match=r"target images run from .* but source images .*scale both alike"):
        check_ranges(other, one, calibrator)
    # The other domain may be dark or pale.  (A bright one in [-1, 1] cannot be told from a plain one.)
    for change in ((0.0, 0.3), (0.1, 0.8)):
        with pytest.raises(ValueError, match="scale both alike"):
            check_ranges(one, FORMS[wide](photographs(*change)), calibrator)


@pytest.mark.parametrize(
    "change",
    [(0.0, 1.0), (0.0, 0.5), (0.0, 0.3), (0.6, 1.0), (0.9, 1.0), (0.3, 0.7), (0.45, 0.9)],
    ids=lambda ends: f"{ends[0]}-{ends[1]}",
)
@pytest.mark.parametrize(
    ("form", "value_range"),
    [
        ("half", "half"),
        ("imagenet", "imagenet"),
        ("imagenet", "one for all"),
        ("plain", None),
        ("plain", (0.0, 2.0)),
    ],
)
def test_dark_bright_and_pale_domains_are_no_fault(form, value_range, change):
    wide = RANGES.get(value_range, value_range or (0.0, 1.0))
    calibrator = Calibrator(3, 0.2, 2, 0, value_range=wide)
    all_of_it, some = FORMS[form](photographs()), FORMS[form](photographs(*change))
    check_ranges(all_of_it, some, calibrator)
    check_ranges(some, all_of_it, calibrator)


def test_an_empty_batch_is_refused_by_name(as_a_user):
    with pytest.raises(ValueError, match=r"a batch of the target images is empty, of shape \(0, 3, 16, 16\)"):
        check_images("target", torch.zeros(0, 3, 16, 16), Calibrator(3))
