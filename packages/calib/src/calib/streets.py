"""Street scenes with a label per pixel, in the folders that GTA5 and Cityscapes unpack into.

| name | images, label maps | train | test |
|---|---|---|---|
| `gta5` | `images/*.png`, `labels/*.png` | all others | every 50th |
| `cityscapes` | `leftImg8bit/*/*/*_leftImg8bit.png`, `gtFine/*/*/*_gtFine_labelIds.png` | `train` | `val` |

They lie in the folders `gta5` and `cityscapes` of a root.
Both number their labels alike (Cordts et al. 2016, arXiv 1604.01685; Richter et al. 2016, arXiv 1608.02192): 19 of
them are the classes, all others do not count.  The labels of Cityscapes' own test images are not published, and of
GTA5 few use the official split.

    scenes = open_scenes("cityscapes", "train", root="data", size=(512, 1024))
    image, mask = scenes[0]         # uint8 (3, 512, 1024), int64 (512, 1024) of 0 to 18, or 255
"""

import os
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from shared_core.data.images import BadImageError, list_images, printable, read_image, read_mask
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

CLASSES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26,
    "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""The 19 classes in their order, and the number that each has in a label map."""
IGNORE = 255
NAMES = ("gta5", "cityscapes")
GTA5_TEST = 50


class SceneFiles(Dataset):
    """Images and label maps that are read when they are asked for, scaled to `size` (height, width).

    An item is `(uint8 CHW, int64 HW)`.  Raises BadImageError for a file that cannot be decoded, or an image whose
    label map has another size.
    """

    def __init__(self, images: list[str], masks: list[str], size: tuple[int, int]) -> None:
        self.images, self.masks, self.size = images, masks, size
        self.class_names, self.ignore = list(CLASSES), IGNORE
        self._class_of = torch.full((256,), IGNORE)
        self._class_of[list(CLASSES.values())] = torch.arange(len(CLASSES))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(
        self, index: int
    ) -> tuple[UInt8[Tensor, "channels height width"], Int64[Tensor, "height width"]]:
        image, mask = read_image(self.images[index]), read_mask(self.masks[index])
        if image.shape[1:] != mask.shape:
            raise BadImageError(
                f"{printable(self.images[index])} is {_pixels(image)} and its label map "
                f"{printable(self.masks[index])} {_pixels(mask)}: they must be of one size"
            )
        scaled = interpolate(image[None].float(), self.size, mode="bilinear", antialias=True)[0]
        # A label between two labels is a third one: the nearest pixel's is taken.
        mask = interpolate(mask[None, None], self.size, mode="nearest-exact")[0, 0]
        return scaled.round().to(torch.uint8), self._class_of[mask.long()]


def open_scenes(name: str, split: str, root: Path | None, size: tuple[int, int]) -> SceneFiles:
    """The scenes of `name`, "gta5" or "cityscapes"; `split` is "train" or "test".

    Raises FileNotFoundError for images or a label map that are not there, ValueError for a single image.
    """
    folder = Path(os.path.expanduser(root or ".")) / name
    if name == "gta5":
        whole = _images(folder / "images", ".png", name)
        images = [path for n, path in enumerate(whole) if (n % GTA5_TEST == 0) == (split == "test")]
        masks = [str(folder / "labels" / Path(path).name) for path in images]
    else:
        part, end = ("train" if split == "train" else "val"), "_leftImg8bit.png"
        images = _images(folder / "leftImg8bit" / part, end, name)
        labels = folder / "gtFine" / part
        masks = [
            str(labels / Path(path).parent.name / f"{Path(path).name.removesuffix(end)}_gtFine_labelIds.png")
            for path in images
        ]
    if not images:
        raise ValueError(f"{printable(folder)} has one image, which is for the test: give two or more")
    lost = [n for n, path in enumerate(masks) if not Path(path).is_file()]
    if lost:
        raise FileNotFoundError(
            f"{printable(images[lost[0]])} has no label map {printable(masks[lost[0]])}; "
            f"{len(lost)} of the {len(images)} images of {name} lack theirs"
        )
    return SceneFiles(images, masks, size)


def _images(folder: Path, end: str, name: str) -> list[str]:
    found = [path for path in list_images(folder) if path.endswith(end)] if folder.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"no *{end} is below {printable(folder)}: give as data_root the folder that holds {name}/, "
            "unpacked as it comes"
        )
    return found


def _pixels(image: Tensor) -> str:
    return f"{image.shape[-1]} by {image.shape[-2]} pixels"
