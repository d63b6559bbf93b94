"""CUB-200-2011's official lists, in the true layout, made of three tiny images."""

import pytest
import torch
from corsd.config import TrainConfig, cub200
from corsd.cub200 import Cub200
from corsd.data import open_data
from PIL import Image


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    files = [f"{names[i % 2]}/{i}.jpg" for i in range(6)]
    for i, file in enumerate(files):
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if i == 0 else "RGB", (30, 20 + i), i).save(folder / "images" / file)
    lists = {
        "images": files,
        "image_class_labels": [1 + i % 2 for i in range(6)],
        "train_test_split": [1, 1, 0, 0, 1, 1],
        "classes": names,
    }
    for name, rows in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{n} {row}\n" for n, row in enumerate(rows, start=1)))
    return tmp_path


def test_official_split(root):
    train, test = Cub200(root, "train"), Cub200(root, "test")
    assert (len(train), len(test)) == (4, 2)
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert [path.name for path in test.paths] == ["2.jpg", "3.jpg"]
    image, label = train[0]
    assert image.shape == (3, 20, 30)
    assert image.dtype == torch.uint8
    assert label == 0
    assert train.class_names[1] == "002.Laysan_Albatross"


def test_the_preset_opens_it(root):
    values = {**cub200().model_dump(), "data_root": root, "image_size": 16}
    data = open_data(TrainConfig.model_validate(values))
    assert data.num_classes == 2
    assert data.test[0][0].shape == (3, 16, 16)


def test_a_missing_list_says_where_to_get_it(root):
    (root / "CUB_200_2011" / "train_test_split.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks train_test_split.txt; set data_root to the folder"):
        Cub200(root, "train")
