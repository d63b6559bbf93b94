"""Images with one label per pixel: from the file to the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shared_core.data.loader import KeyedDataset, make_loader
from shared_core.data.loader import test_loader as plain_loader
from shared_core.data.masks import ArrayMasks, masks_from_numpy
from shared_core.data.open import ArrayImages, labels_of, open_dataset
from shared_core.data.sampling import Batches, Key, shuffled_plan
from torch.utils.data import ConcatDataset, Subset

CAMVID = Path(__file__).parents[4] / "shared" / "data" / "camvid_day_dusk_160x120.npz"


def arrays(n=7, classes=4, prefix=""):
    rng = np.random.default_rng(0)
    content = {}
    for part in ("train", "test"):
        content[f"x_{prefix}{part}"] = rng.integers(0, 256, (n, 5, 6, 3), dtype=np.uint8)
        content[f"y_{prefix}{part}"] = rng.integers(0, classes, (n, 5, 6), dtype=np.uint8)
    return content


def npz(tmp_path, **content):
    path = tmp_path / "scenes.npz"
    np.savez_compressed(path, **content)
    return f"npz:{path}"


def test_npz_with_a_label_per_pixel(tmp_path):
    content = arrays(prefix="day_")
    content["y_day_train"][0, 0, 0] = 255
    data = open_dataset(npz(tmp_path, **content) + "#day", "train")
    assert isinstance(data, ArrayMasks)
    assert (data.images.shape, data.images.dtype) == ((7, 3, 5, 6), torch.uint8)
    assert np.array_equal(data.images.numpy(), content["x_day_train"].transpose(0, 3, 1, 2))
    assert np.array_equal(data.masks.numpy(), content["y_day_train"])
    assert (data.class_names, data.ignore, len(data)) == (["0", "1", "2", "3"], 255, 7)
    image, mask = data[2]
    assert torch.equal(image, data.images[2])
    assert mask.dtype == torch.int64
    assert torch.equal(mask, data.masks[2].long())


def test_names_and_the_ignored_label_come_from_the_file(tmp_path):
    names = np.array(["road", "sky", "tree"])
    spec = npz(tmp_path, **arrays(), class_names=names, ignore=np.int64(3))
    data = open_dataset(spec, "test")
    assert (data.class_names, data.ignore) == (["road", "sky", "tree"], 3)
    spec = npz(tmp_path, **arrays(), class_names=names)
    with pytest.raises(
        ValueError, match=r"3 class names, but labels up to 3 \(ignored is 255\): name every class"
    ):
        open_dataset(spec, "test")


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool])
def test_masks_of_other_whole_numbers_become_bytes(dtype):
    masks = np.array([[[0, 1], [1, 0]]], dtype=dtype)
    data = masks_from_numpy(np.zeros((1, 2, 2), dtype=np.uint8), masks)
    assert data.masks.dtype == torch.uint8
    assert data.masks.tolist() == [[[0, 1], [1, 0]]]
    assert data.images.shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y.astype(np.float32), r"masks are float32; they must be whole numbers, best uint8"),
        (lambda y: y.astype(np.int64) - 1, r"masks run from -1 to 2; labels must be 0 to 255"),
        (lambda y: y.astype(np.int64) + 300, r"masks run from 300 to 303; labels must be 0 to 255"),
        (lambda y: y[:, :4], r"images have shape \(7, 3, 5, 6\) and masks \(7, 4, 6\); they must be"),
        (lambda y: y[:3], r"and masks \(3, 5, 6\); they must be"),
    ],
)
def test_wrong_masks_are_refused_with_the_file(tmp_path, change, message):
    content = arrays()
    content["y_train"] = change(content["y_train"])
    with pytest.raises(ValueError, match=rf"cannot read .*scenes\.npz: .*{message}"):
        open_dataset(npz(tmp_path, **content))


def test_images_alone_may_not_be_floats():
    images = np.zeros((1, 2, 2), dtype=np.float32)
    with pytest.raises(TypeError, match="images are float32; they must be uint8"):
        masks_from_numpy(images, np.zeros((1, 2, 2), dtype=np.uint8))


@pytest.fixture
def scenes():
    content = arrays()
    return masks_from_numpy(content["x_train"], content["y_train"])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("source", [lambda d: d, lambda d: Subset(d, range(7)), lambda d: ConcatDataset([d])])
def test_loaders_hand_out_masks(scenes, source, workers):
    batches = list(plain_loader(source(scenes), 3, workers=workers))
    assert [tuple(masks.shape) for _, masks in batches] == [(3, 5, 6), (3, 5, 6), (1, 5, 6)]
    assert all(masks.dtype == torch.int64 for _, masks in batches)
    assert torch.equal(torch.cat([images for images, _ in batches]), scenes.images)
    assert torch.equal(torch.cat([masks for _, masks in batches]), scenes.masks.long())


def test_masks_stay_with_their_images_in_a_shuffled_order(scenes):
    keyed = KeyedDataset(scenes, seed=1, batch_transform=lambda x, u: x.float(), with_index=True)
    seen = []
    for images, masks, index in make_loader(keyed, Batches(shuffled_plan(7, 3, seed=1))):
        assert torch.equal(images, scenes.images[index].float())
        assert torch.equal(masks, scenes.masks[index].long())
        seen += index.tolist()
    assert len(set(seen)) == len(seen) == 6
    image, mask = keyed[Key(0, 4, 0)]
    assert torch.equal(mask, scenes.masks[4].long())
    assert image.shape == (3, 5, 6)


@pytest.mark.parametrize(
    "source", [lambda d: d, lambda d: Subset(d, [1, 2]), lambda d: ConcatDataset([d, d])]
)
def test_there_is_no_label_per_image(scenes, source):
    with pytest.raises(ValueError, match=r"has a mask for each image \(segmentation\), not one label"):
        labels_of(source(scenes))


def test_labels_beside_masks_are_still_found():
    data = ArrayImages(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([1, 0]))
    data.masks = torch.zeros(2, 3, 3)
    assert labels_of(data).tolist() == [1, 0]


@pytest.mark.skipif(not CAMVID.is_file(), reason="needs the folder ../shared/data beside the project")
@pytest.mark.parametrize(
    ("part", "split", "n"), [("day", "train", 153), ("day", "test", 86), ("dusk", "test", 62)]
)
def test_camvid(part, split, n):
    data = open_dataset(f"npz:{CAMVID}#{part}", split)
    assert data.images.shape == (n, 3, 120, 160)
    assert data.masks.shape == (n, 120, 160)
    # 11 classes, and a twelfth number for what is not labelled, which the file does not declare.
    assert int(data.masks.max()) == 11
    images, masks = next(iter(plain_loader(data, 4)))
    assert (images.shape, masks.shape) == ((4, 3, 120, 160), (4, 120, 160))
