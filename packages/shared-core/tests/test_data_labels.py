"""What `as_labels` takes for class numbers, and what it refuses with the remedy."""

import numpy as np
import pytest
import torch
from shared_core.data.arrays import ArrayImages
from shared_core.data.labels import as_labels

WANTED = torch.tensor([0, 1, 1, 0])
TORCH = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.float32,
    torch.float16,
)
NUMPY = ("u1", "i1", "u2", "<i2", ">i2", "u4", ">i4", "u8", ">i8", "?", "f4", ">f8", "O")


@pytest.mark.parametrize("dtype", [*TORCH, torch.uint16, torch.uint32, torch.uint64])
def test_any_integer_type_of_torch(dtype):
    found = as_labels(WANTED.to(dtype))
    assert found.dtype == torch.int64
    assert torch.equal(found, WANTED)


@pytest.mark.parametrize("dtype", NUMPY)
def test_any_integer_type_of_numpy_in_any_byte_order(dtype):
    assert torch.equal(as_labels(WANTED.numpy().astype(dtype)), WANTED)


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 1, 0],
        (0, 1, 1, 0),
        [False, True, True, False],
        [np.int32(0), np.uint8(1), 1, 0],
        list(WANTED),
        range(2),
    ],
)
def test_lists(values):
    assert torch.equal(as_labels(values), WANTED[: len(values)])


def test_a_copy_of_what_cannot_be_written():
    array = WANTED.numpy().copy()
    array.flags.writeable = False
    found = as_labels(array)
    found[0] = 7
    assert array[0] == 0
    given = WANTED.clone()
    as_labels(given)[0] = 7
    assert torch.equal(given, WANTED)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.eye(3), r"argmax\(1\)"),
        (np.eye(3, dtype=np.int64), r"argmax\(1\)"),
        ([[0, 1], [1, 0]], r"argmax\(1\)"),
        (torch.zeros(4, 1), r"squeeze\(1\)"),
        (torch.tensor(3), "shape"),
        (torch.tensor([0.5]), "whole numbers"),
        (torch.tensor([float("nan")]), "whole numbers"),
        (torch.tensor([float("inf")]), "whole numbers"),
        (["cat", "dog"], "whole numbers"),
        ([0, None], "whole numbers"),
        ([0, -1], "found -1"),
        (np.array([2**63], dtype=np.uint64), "whole numbers"),
        ([2**70], "whole numbers"),
    ],
)
def test_everything_else_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        as_labels(values)


def test_no_labels_at_all():
    assert as_labels([]).shape == (0,)
    assert as_labels(np.zeros(0)).dtype == torch.int64


def test_array_images_take_them():
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    assert torch.equal(ArrayImages(images, [0, 1, 1, 0]).labels, WANTED)
    assert torch.equal(ArrayImages(images, WANTED.to(torch.uint8)).labels, WANTED)
