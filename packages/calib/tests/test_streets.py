"""GTA5 and Cityscapes in their true layouts, made of a few small PNGs."""

import numpy as np
import pytest
import torch
from calib.config import AdaptConfig
from calib.data import open_domains
from calib.run import run
from calib.streets import CLASSES, GTA5_TEST, open_scenes
from PIL import Image
from shared_core.data.images import BadImageError
from shared_core.run.config import ConfigError

ROAD, SKY, BICYCLE, EGO_VEHICLE = 7, 23, 33, 1


def write_scene(image, mask, seed):
    """40 by 20 pixels, a quarter of them each road, sky, bicycle, and the camera's own car, which is no class."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    numbers = np.repeat(np.array([ROAD, SKY, BICYCLE, EGO_VEHICLE], dtype=np.uint8), 10)
    drawn = Image.fromarray(np.tile(numbers, (20, 1)))
    if "gta5" in mask.parts:
        drawn = drawn.convert("P")
        drawn.putpalette([255 - n // 3 for n in range(768)])
    drawn.save(mask)
    return pixels


@pytest.fixture
def root(tmp_path):
    """Two test and 50 training scenes of GTA5; two cities of Cityscapes with three scenes, and one to validate."""
    for n in range(1, GTA5_TEST + 3):
        write_scene(tmp_path / f"gta5/images/{n:05d}.png", tmp_path / f"gta5/labels/{n:05d}.png", n)
    scenes = [("train", "aachen", 0), ("train", "aachen", 1), ("train", "ulm", 0), ("val", "lindau", 0)]
    for n, (part, city, number) in enumerate(scenes):
        name = f"{part}/{city}/{city}_{number:06d}_000019"
        image = tmp_path / f"cityscapes/leftImg8bit/{name}_leftImg8bit.png"
        mask = tmp_path / f"cityscapes/gtFine/{name}_gtFine_labelIds.png"
        write_scene(image, mask, n)
        # What else the archive holds beside the label maps.
        Image.new("RGB", (40, 20)).save(mask.with_name(f"{city}_{number:06d}_000019_gtFine_color.png"))
    return tmp_path


def test_splits_classes_and_pixels(root):
    sizes = {
        (name, split): len(open_scenes(name, split, root, (20, 40)))
        for name in ("gta5", "cityscapes")
        for split in ("train", "test")
    }
    assert sizes == {
        ("gta5", "train"): GTA5_TEST,
        ("gta5", "test"): 2,
        ("cityscapes", "train"): 3,
        ("cityscapes", "test"): 1,
    }
    assert [path[-9:] for path in open_scenes("gta5", "test", root, (20, 40)).images] == [
        "00001.png",
        "00051.png",
    ]
    for name, split, place, seed in (("gta5", "train", 0, 2), ("cityscapes", "train", 2, 2)):
        scenes = open_scenes(name, split, root, (20, 40))
        image, mask = scenes[place]
        wanted = np.random.default_rng(seed).integers(0, 256, (20, 40, 3), dtype=np.uint8)
        assert torch.equal(image, torch.from_numpy(wanted).permute(2, 0, 1))
        assert mask.dtype == torch.int64
        assert mask[:, ::10].tolist() == [[0, 10, 18, 255]] * 20
        assert [scenes.class_names[n] for n in (0, 10, 18)] == ["road", "sky", "bicycle"]
    assert len(CLASSES) == 19


def test_scenes_are_scaled_and_labels_stay_labels(root):
    image, mask = open_scenes("gta5", "train", root, (10, 24))[0]
    assert (tuple(image.shape), tuple(mask.shape)) == ((3, 10, 24), (10, 24))
    assert mask.unique().tolist() == [0, 10, 18, 255]
    assert mask[0].tolist() == [0] * 6 + [10] * 6 + [18] * 6 + [255] * 6


def test_a_missing_partner_and_a_missing_folder_are_named(root):
    lost = root / "cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    lost.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"ulm_000000_000019_leftImg8bit.png has no label map {lost}; 1 of"
    ):
        open_scenes("cityscapes", "train", root, (20, 40))
    with pytest.raises(
        FileNotFoundError, match=r"no \*\.png is below .*nowhere/gta5/images: give as data_root"
    ):
        open_scenes("gta5", "train", root / "nowhere", (20, 40))


def test_another_size_and_another_kind_of_map_are_named(root):
    Image.new("L", (40, 19)).save(root / "gta5/labels/00002.png")
    with pytest.raises(
        BadImageError, match=r"images/00002.png is 40 by 20 pixels and its .* 40 by 19 pixels: they"
    ):
        open_scenes("gta5", "train", root, (20, 40))[0]
    Image.new("RGB", (40, 20)).save(root / "gta5/labels/00002.png")
    with pytest.raises(
        BadImageError, match=r"labels/00002.png: .*grey or palette image of 8 bits, this one is RGB"
    ):
        open_scenes("gta5", "train", root, (20, 40))[0]


def test_they_are_domains_and_what_does_not_fit_them_is_said(root, tmp_path):
    config = AdaptConfig(
        source="gta5", target="cityscapes", data_root=root, num_classes=19, scene_size=(16, 32)
    )
    domains = open_domains(config)
    assert (domains.segmentation, domains.num_classes, domains.channels) == (True, 19, 3)
    assert domains.target_test[0][0].shape == (3, 16, 32)
    for change, said in (
        (
            {"classifier": "small:segmenter"},
            "small:segmenter learns from images in memory, and gta5 is read file",
        ),
        ({"on_bad": "skip"}, "on_bad='skip': of gta5 only 'raise' is offered"),
        ({"target": "digits"}, "source gta5 and target digits differ"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(config.model_copy(update=change), tmp_path / "run")
