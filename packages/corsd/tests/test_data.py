"""The data of a run: splits that never mix, preprocessing that is the same everywhere, bad sets refused."""

import numpy as np
import pytest
import torch
from corsd.config import TrainConfig
from corsd.data import open_data, split, training_set
from corsd.pairs import triplet_plan
from corsd.trained import Trained, open_test
from PIL import Image
from shared_core.data.classes import NoCommonClassError
from shared_core.data.images import BadImageError
from shared_core.data.loader import make_loader
from shared_core.data.preprocess import Preprocess
from shared_core.data.sampling import Batches, Key
from torch import nn


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((40, 50 + i, 3), 60 * number + i, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def _npz(path, labels, test_labels=(0, 1)):
    rng = np.random.default_rng(0)
    np.savez(
        path,
        x_train=rng.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8),
        y_train=np.array(labels),
        x_test=rng.integers(0, 256, (len(test_labels), 8, 8, 3), dtype=np.uint8),
        y_test=np.array(test_labels),
    )
    return f"npz:{path}"


def test_split_takes_the_first_of_each_class_and_holds_the_last_out():
    labels = torch.tensor([0, 1] * 10)
    chosen, held_out = split(labels, 0.3, 4)
    assert chosen.tolist() == list(range(8))
    assert held_out.tolist() == list(range(14, 20))
    assert len(split(labels, 0.0, None)[1]) == 0
    with pytest.raises(ValueError, match=r"leaves class 0 without training images"):
        split(torch.tensor([0, 1]), 0.9, None)


def test_digits():
    data = open_data(TrainConfig(data="digits", validation=0.2, images_per_class=10))
    assert (len(data.train), len(data.test), data.num_classes) == (100, 500, 10)
    assert data.preprocess.size == 8
    assert data.preprocess.channels == 1
    values = data.preprocess(open_data(TrainConfig(data="digits")).train.images)
    assert values.mean().item() == pytest.approx(0, abs=1e-3)
    assert values.std().item() == pytest.approx(1, abs=1e-2)


def test_folder_of_images(folder):
    config = TrainConfig(data=f"imagefolder:{folder}", image_size=24, augment="imagenet")
    data = open_data(config)
    assert data.class_names == ["ant", "bee"]
    image, label = data.test[3]
    assert image.shape == (3, 24, 24)
    assert label == 1
    train = training_set(config, data, seed=0, with_index=True)
    images, labels, index = train.__getitems__([Key(0, 7, 0), Key(0, 0, 0)])
    assert images.shape == (2, 3, 24, 24)
    assert labels.tolist() == [1, 0]
    assert index.tolist() == [7, 0]


def test_truncated_image_is_named_or_skipped(folder):
    broken = folder / "train" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config = TrainConfig(data=f"imagefolder:{folder}", image_size=24)
    with pytest.raises(BadImageError, match=r"bee.1\.png"):
        open_data(config).train[5]
    skipping = open_data(config.model_copy(update={"on_bad": "skip"}))
    with pytest.raises(BadImageError, match=r"1 of 8 images cannot be read"):  # more than 5 % are bad
        skipping.train[5]


def test_augmentation_depends_on_the_key_alone():
    config = TrainConfig(data="digits", augment="crop")
    data = open_data(config)
    keyed = training_set(config, data, seed=0, with_index=False)

    def image(*key):
        return keyed.__getitems__([Key(*key)])[0]

    assert torch.equal(image(1, 5, 2), image(1, 5, 2))
    changed = [image(e, 5, d) for e in range(4) for d in range(4)]
    assert len({im.numpy().tobytes() for im in changed}) > 4


def test_flip_alone_gives_the_image_or_its_mirror():
    config = TrainConfig(data="digits", augment="flip")
    data = open_data(config)
    keyed = training_set(config, data, seed=0, with_index=False)
    image = data.train.images[3]
    seen = {keyed.__getitems__([Key(e, 3, 0)])[0][0].numpy().tobytes() for e in range(20)}
    assert seen == {image.numpy().tobytes(), image.flip(-1).numpy().tobytes()}


@pytest.mark.parametrize("workers", [0, 2])
def test_triplets_through_the_loader(workers):
    config = TrainConfig(data="digits", augment="crop", pairs="triplets")
    data = open_data(config)
    batches = Batches(triplet_plan(data.labels, 6, seed=0), group=3)
    loader = make_loader(training_set(config, data, 0, False), batches, workers=workers)
    images, labels = next(iter(loader))
    assert images.shape == (18, 1, 8, 8)
    assert torch.equal(labels[0::3], labels[1::3])
    assert bool((labels[0::3] != labels[2::3]).all())


def test_one_class_only_and_foreign_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds one class only \(0\); give two or more"):
        open_data(TrainConfig(data=_npz(tmp_path / "a.npz", [0, 0, 0], (0, 0))))
    with pytest.raises(ValueError, match=r"images with the labels 4, but 2 classes allow 0 to 1"):
        open_data(TrainConfig(data=_npz(tmp_path / "b.npz", [0, 1, 1], (0, 4))))


def test_empty_class_warns_and_trains_on(tmp_path):
    with pytest.warns(UserWarning, match=r"1 of 3 classes have no image: 1"):
        data = open_data(TrainConfig(data=_npz(tmp_path / "a.npz", [0, 2, 2, 0], (0, 1, 2))))
    assert data.num_classes == 3
    assert triplet_plan(data.labels, 2, seed=0)(0).shape == (2, 6, 2)


def test_resized_arrays_keep_labels_in_step():
    small = open_data(TrainConfig(data="digits", image_size=16, images_per_class=3))
    assert small.train.images.shape == (30, 1, 16, 16)
    assert torch.equal(small.train.labels, small.labels)


def _folders(root, **classes):
    for part, names in classes.items():
        for name in names:
            (root / part / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(root / part / name / f"{number}.png")
    return f"imagefolder:{root}"


def test_test_images_have_the_training_set_s_classes(tmp_path):
    spec = _folders(tmp_path / "a", train=["cat", "dog", "owl"], test=["dog", "owl"])
    with pytest.warns(UserWarning, match="no image of 1 of 3 classes: 'cat'"):
        data = open_data(TrainConfig(data=spec, image_size=8))
    assert data.test.labels.tolist() == [1, 1, 2, 2]
    spec = _folders(tmp_path / "b", train=["cat", "dog"], test=["cat", "bird"])
    with pytest.raises(ValueError, match=r"\(test\) has classes that the classifier does not know: 'bird'"):
        open_data(TrainConfig(data=spec, image_size=8))


def test_another_test_set_is_matched_by_name(tmp_path):
    other = _folders(tmp_path / "b", train=["owl", "zebra"], test=["dog", "owl"])
    preprocess = Preprocess(8, 3, (0.0,) * 3, (1.0,) * 3, crop=False)
    trained = Trained(nn.Identity(), TrainConfig(), preprocess, ["owl", "cat", "dog"], tmp_path)
    with pytest.warns(UserWarning, match="'cat'"):
        assert open_test(trained, other).labels.tolist() == [0, 0, 2, 2]
    with pytest.raises(NoCommonClassError, match="does not know: 'fox'; it knows 'owl', 'cat', 'dog'"):
        open_test(trained, _folders(tmp_path / "c", train=["fox"], test=["fox"]))
