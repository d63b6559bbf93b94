"""Labels of one data set in the classes of another: by name where both have names."""

import os
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from shared_core.data.arrays import ArrayImages
from shared_core.data.classes import NoCommonClassError, in_classes_of, match_classes
from shared_core.data.labels import UNLABELLED
from shared_core.data.masks import ArrayMasks
from shared_core.data.open import NoSplitError, open_dataset

COLOURS = ["blue", "green", "red"]
NUMBERS = [str(k) for k in range(10)]
MNIST = ["0 - zero", "1 - one", "2 - two", "3 - three", "4 - four", "5 - five", "6 - six", "7 - seven"]
MNIST += ["8 - eight", "9 - nine"]


@pytest.mark.parametrize(
    ("own", "known", "used", "places"),
    [
        (COLOURS, COLOURS, [0, 1, 2], [0, 1, 2]),
        (["green", "red"], COLOURS, [0, 1], [1, 2]),
        (["red", "blue", "green"], COLOURS, [0, 1, 2], [2, 0, 1]),
        # a name without images need not be known
        (["black", "blue"], COLOURS, [1], [-1, 0]),
        # names that are numbers, and no names
        (None, NUMBERS, [0, 2], [0, 1, 2]),
        (NUMBERS, MNIST, range(10), range(10)),
        (MNIST, NUMBERS, range(10), range(10)),
        (["0", "1", "10", "2"], [*NUMBERS, "10"], range(4), [0, 1, 10, 2]),
        ([*NUMBERS, "10"], ["0", "1", "10", "2"], [0, 2, 10], [0, 1, 3, -1, -1, -1, -1, -1, -1, -1, 2]),
        (["00", "01", "02"], NUMBERS, range(3), range(3)),
        (["3", "5"], NUMBERS, [0, 1], [3, 5]),
        # Unicode, composed and not
        ([unicodedata.normalize("NFD", "é"), "a"], ["a", unicodedata.normalize("NFC", "é")], [0, 1], [1, 0]),
        # double names in one place in both lists
        (["crane", "owl", "crane"], ["crane", "owl", "crane"], [0, 1, 2], [0, 1, 2]),
    ],
)  # fmt: skip
def test_places(own, known, used, places):
    found = match_classes(own, known, used)
    assert [found[label] for label in used] == [list(places)[label] for label in used]


@pytest.mark.parametrize(
    ("own", "known", "used", "kind", "words"),
    [
        (
            ["bird", *COLOURS],
            COLOURS,
            range(4),
            ValueError,
            "does not know: 'bird'; it knows 'blue', 'green', 'red'",
        ),
        (["Blue", "red"], COLOURS, [0, 1], ValueError, "Is 'Blue' meant to be 'blue'"),
        (["unlabelled"], COLOURS, [0], NoCommonClassError, "does not know: 'unlabelled'"),
        (["rouge", "vert"], COLOURS, [0, 1], NoCommonClassError, "Give classes the same names"),
        (None, COLOURS, [0, 3], ValueError, "images with the labels 3, but 3 classes allow 0 to 2"),
        (
            NUMBERS,
            NUMBERS[:3],
            range(10),
            ValueError,
            "labels 3, 4, 5, 6, 7, ..., but 3 classes allow 0 to 2",
        ),
        (["1", "2", "3"], COLOURS, range(3), ValueError, "labels 3, but 3 classes allow 0 to 2"),
        (
            ["unlabelled"],
            NUMBERS,
            [0],
            NoCommonClassError,
            "the one class 'unlabelled', and the classifier's",
        ),
        ([UNLABELLED], NUMBERS, [0], NoCommonClassError, "unlabelled"),
        (["owl", "crane"], ["crane", "owl", "crane"], [0, 1], ValueError, "'crane' names several classes"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(own, known, used, kind, words):
    with pytest.raises(kind, match=words) as caught:
        match_classes(own, known, used)
    assert type(caught.value) is kind


def test_names_against_numbers_in_an_order_that_can_only_be_guessed_warn():
    with pytest.warns(UserWarning, match="matched by number, 0 is 'eight', because one side has no names"):
        assert match_classes(["eight", "five", "four"], NUMBERS, range(3)) == [0, 1, 2]


def images(labels, names=None):
    return ArrayImages(torch.arange(len(labels) * 4, dtype=torch.uint8).view(-1, 1, 2, 2), labels, names)


def test_array_images_keep_their_pixels_and_their_memory():
    data = images([0, 1, 1], ["red", "blue"])
    with pytest.warns(UserWarning, match="no image of 1 of 3 classes: 'green'"):
        found = in_classes_of(data, COLOURS, "the set")
    assert found.labels.tolist() == [2, 0, 0]
    assert found.class_names == COLOURS
    assert found.images.data_ptr() == data.images.data_ptr()
    same = images([0, 1, 2], COLOURS)
    assert in_classes_of(same, COLOURS, "the set") is same


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


def test_folders_beside_a_file_of_arrays(tmp_path):
    for label, name in enumerate(COLOURS):
        write(tmp_path / "set/test" / name / "0.png", label)
    np.savez(
        tmp_path / "a.npz", x_train=np.zeros((3, 4, 4, 3), np.uint8), y_train=[0, 1, 2],
        class_names=["red", "green", "blue"],
    )  # fmt: skip
    known = open_dataset(f"npz:{tmp_path}/a.npz").class_names
    found = in_classes_of(open_dataset(f"imagefolder:{tmp_path}/set", "test"), known, "the folder")
    assert {known[label]: int(image[0, 0, 0]) for image, label in (found[i] for i in range(3))} == {
        "blue": 0, "green": 1, "red": 2,
    }  # fmt: skip
    assert found.labels.tolist() == [2, 1, 0]


def test_an_empty_class_folder_and_a_test_folder_that_lacks_or_adds_a_class(tmp_path):
    for name in ("train/blue/0.png", "train/green/0.png", "test/green/0.png"):
        write(tmp_path / name)
    (tmp_path / "train/owl").mkdir()
    test = open_dataset(f"imagefolder:{tmp_path}", "test")
    assert test.labels.tolist() == [1]
    assert test.class_names == ["blue", "green", "owl"]
    write(tmp_path / "test/amber/0.png")
    test = open_dataset(f"imagefolder:{tmp_path}", "test")
    assert [test.class_names[label] for label in test.labels] == ["green", "amber"]
    with pytest.raises(ValueError, match="does not know: 'amber'"):
        in_classes_of(test, ["blue", "green", "owl"], "the test images")


def test_masks_are_renumbered_and_keep_what_does_not_count():
    masks = torch.tensor([[[0, 1], [2, 9]]], dtype=torch.uint8)
    data = ArrayMasks(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), masks, ["sky", "road", "car"], ignore=9)
    found = in_classes_of(data, ["road", "sky", "tree", "car"], "the scenes", ignore=255)
    assert found.masks.tolist() == [[[1, 0], [3, 255]]]
    assert in_classes_of(data, ["sky", "road", "car"], "the scenes", ignore=9) is data
    with pytest.raises(ValueError, match="does not know: 'car'"):
        in_classes_of(data, ["sky", "road"], "the scenes", ignore=9)


def test_data_that_need_no_labels(tmp_path):
    write(tmp_path / "flat/train/0.png")
    write(tmp_path / "flat/train/1.png")
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 4, 4), np.uint8))
    for spec in (f"imagefolder:{tmp_path}/flat", f"npz:{tmp_path}/a.npz"):
        data = open_dataset(spec, labelled=False)
        assert (len(data), data.class_names) == (2, [UNLABELLED])
        with pytest.raises(ValueError, match=r"sub-folder|no y_train"):
            open_dataset(spec)
        with pytest.raises(NoSplitError):
            open_dataset(spec, "test", labelled=False)


@pytest.mark.skipif(os.name == "nt", reason="folders of other normal forms are one folder there")
def test_composed_and_decomposed_folders(tmp_path):
    write(tmp_path / "mac/test" / unicodedata.normalize("NFD", "café") / "0.png")
    known = [unicodedata.normalize("NFC", "café")]
    found = in_classes_of(open_dataset(f"imagefolder:{tmp_path}/mac", "test"), known, "the folder")
    assert found.labels.tolist() == [0]
