"""The domains of a run."""

import numpy as np
import pytest
import torch
from calib.config import AdaptConfig
from calib.data import normalization, open_domains, photo_digits, photo_pieces
from PIL import Image
from shared_core.data.open import open_dataset


def test_photo_digits_are_the_digits_over_real_photographs_always_the_same():
    made, again, digits = photo_digits("test"), photo_digits("test"), open_dataset("digits", "test")
    assert made.images.shape == (500, 3, 32, 32)
    assert torch.equal(made.images, again.images)
    assert torch.equal(made.labels, digits.labels)
    # Without the photograph's share what is left is the digit.
    pieces = photo_pieces(500, seed=1).float()
    stretched = torch.nn.functional.interpolate(
        digits.images.float(), size=(32, 32), mode="bilinear", align_corners=False
    )
    left = (made.images.float() - 0.7 * pieces) / 0.3
    assert float((left - stretched).abs().max()) < 3


def test_train_and_test_share_no_image():
    train = {image.numpy().tobytes() for image in photo_digits("train").images}
    assert not train & {image.numpy().tobytes() for image in photo_digits("test").images}


def test_both_domains_come_in_one_size_and_channel_count():
    domains = open_domains(AdaptConfig(source="digits", target="photo-digits", image_size=16, channels=1))
    for part in (domains.source_train, domains.source_test, domains.target_train, domains.target_test):
        assert part.images.shape[1:] == (1, 16, 16)
    assert (domains.num_classes, domains.channels, domains.segmentation) == (10, 1, False)


def write_npz(path, masks=False, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = generator.integers(0, 255, (6, 16, 12, 3), dtype=np.uint8)
        labels = np.arange(6, dtype=np.uint8) % classes
        arrays[f"y_{split}"] = (
            generator.integers(0, classes, (6, 16, 12), dtype=np.uint8) if masks else labels
        )
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_masks_make_it_segmentation_and_do_not_mix_with_labels(tmp_path):
    flat, maps = write_npz(tmp_path / "flat.npz"), write_npz(tmp_path / "maps.npz", masks=True)
    domains = open_domains(AdaptConfig(source=maps, target=maps, num_classes=3))
    assert domains.segmentation
    assert domains.num_classes == 3
    with pytest.raises(ValueError, match="one has a label per pixel, one per image"):
        open_domains(AdaptConfig(source=flat, target=maps))


def test_translated_images_replace_the_source_in_training_only(tmp_path):
    source, other = write_npz(tmp_path / "a.npz"), write_npz(tmp_path / "b.npz", seed=1)
    plain = open_domains(AdaptConfig(source=source, target=source, num_classes=3))
    domains = open_domains(AdaptConfig(source=source, target=source, translated=other, num_classes=3))
    assert not torch.equal(domains.source_train.images, plain.source_train.images)
    alone = open_domains(AdaptConfig(source=other, target=other, num_classes=3))
    assert torch.equal(domains.source_train.images, alone.source_train.images)
    assert torch.equal(domains.source_test.images, plain.source_test.images)


def test_labels_beyond_the_classes_are_named(tmp_path):
    spec = write_npz(tmp_path / "a.npz", classes=5)
    with pytest.raises(ValueError, match="3 classes allow 0 to 2"):
        open_domains(AdaptConfig(source=spec, target=spec, num_classes=3))


def test_svhn_in_its_own_layout_opens_as_a_source(tmp_path, monkeypatch):
    from scipy.io import savemat

    # These are not the published files, whose checksum torchvision knows.
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_arguments: True)

    for split in ("train", "test"):
        pixels = np.zeros((32, 32, 3, 12), dtype=np.uint8)
        labels = np.array([[1 + k % 10] for k in range(12)], dtype=np.uint8)  # 10 stands for the digit 0
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": labels})
    from calib.data import open_domain

    found = open_domain(AdaptConfig(data_root=tmp_path), "svhn", "train")
    assert found.images.shape == (12, 3, 32, 32)
    assert sorted(set(found.labels.tolist())) == list(range(10))


def test_normalization_by_name():
    assert normalization(AdaptConfig(), 1) == ((0.5,), (0.5,))
    assert normalization(AdaptConfig(normalize="none"), 3) == ((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match="normalize imagenet needs 3 channels, not 1"):
        normalization(AdaptConfig(normalize="imagenet"), 1)


def folders(root, domain, classes, splits=("train", "test")):
    for split in splits:
        for name in classes:
            (root / domain / split / name).mkdir(parents=True)
            for number in range(2):
                path = root / domain / split / name / f"{number}.png"
                Image.fromarray(np.full((16, 16, 3), 40 * number, np.uint8)).save(path)
    return f"imagefolder:{root / domain}"


def two(root, target_classes, **settings):
    source = folders(root, "source", ["blue", "green", "red"])
    target = folders(root, "target", target_classes)
    return AdaptConfig(source=source, target=target, image_size=16, **settings)


def test_a_target_that_lacks_a_class_is_matched_by_name(tmp_path):
    with pytest.warns(UserWarning, match="no image of 1 of 3 classes: 'blue'"):
        domains = open_domains(two(tmp_path, ["green", "red"]))
    assert [domains.target_test[i][1] for i in range(4)] == [1, 1, 2, 2]
    assert domains.target_train.labels.tolist() == [1, 1, 2, 2]
    assert domains.target_labelled


def test_a_target_with_a_class_more_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(
        ValueError, match=r"target .* does not know: 'amber'; it knows 'blue', 'green', 'red'"
    ):
        open_domains(two(tmp_path, ["amber", "blue", "green", "red"]))


def test_a_target_without_labels_is_trained_on_and_gets_no_score(tmp_path):
    with pytest.warns(UserWarning, match="no score on the target: .* does not know: 'unlabelled'"):
        domains = open_domains(two(tmp_path, ["unlabelled"]))
    assert len(domains.target_train) == 2
    assert domains.target_train[0][0].shape == (3, 16, 16)
    assert domains.target_test is None
    assert not domains.target_labelled


@pytest.mark.parametrize("settings", [{"selection": "oracle"}, {"baselines": ["target_supervised"]}])
def test_what_reads_target_labels_is_refused_without_them(tmp_path, settings):
    with pytest.raises(ValueError, match="need target labels"):
        open_domains(two(tmp_path, ["unlabelled"], **settings))


def test_a_target_of_images_alone(tmp_path):
    source = folders(tmp_path, "source", ["blue", "red"])
    (tmp_path / "flat/train").mkdir(parents=True)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "flat/train/0.png")
    with pytest.warns(UserWarning, match="has no test images: it gets no score"):
        domains = open_domains(
            AdaptConfig(source=source, target=f"imagefolder:{tmp_path}/flat", image_size=16)
        )
    assert len(domains.target_train) == 1


def test_translated_images_in_numbered_folders_are_matched_by_number(tmp_path):
    source = write_npz(tmp_path / "a.npz")
    for k in range(3):
        (tmp_path / f"made/train/0{k}").mkdir(parents=True)
        Image.fromarray(np.full((16, 12, 3), k, np.uint8)).save(tmp_path / f"made/train/0{k}/0.png")
    domains = open_domains(
        AdaptConfig(source=source, target=source, translated=f"imagefolder:{tmp_path}/made", num_classes=3)
    )
    assert [domains.source_train[i][1] for i in range(3)] == [0, 1, 2]
    assert domains.class_names == ["0", "1", "2"]
