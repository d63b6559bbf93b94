"""Use a trained translation: translate images, write them as a folder of classes, measure what they lost.

>>> translation = load_translation("runs/style")
>>> write_translations(translation, source, "runs/style")          # opens as imagefolder:runs/style
>>> label_flips(classifier, source, translation)                 # {"before": 1.2, "after": 6.9} percent
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from shared_core.data.augment import to_float
from shared_core.data.labels import labels_of
from shared_core.data.loader import test_loader
from shared_core.data.preprocess import Fitted
from shared_core.ops.inputs import ANY, check_dataset, check_images
from shared_core.run.weights import read_weights
from torch import Tensor, nn
from torch.utils.data import Dataset

from calib.answers import Reading
from calib.cyclegan import generator
from calib.pose import PosedImages, Poses, fitting


class Translation(NamedTuple):
    """A trained generator, and the images that it takes: `size` by `size`, `channels` 1 or 3.

    Where it was trained on images in the target's poses, those are `poses`, and images get one of them first.
    """

    generator: nn.Module
    size: int
    channels: int
    poses: Poses | None = None


def load_translation(
    folder: str | os.PathLike[str], direction: str = "generator", device: str | torch.device = "cpu"
) -> Translation:
    """The generator of a finished :func:`calib.translate.train_translation`; `direction` "back" gives the other one.

    Images are translated on `device`.

    Raises ValueError if there is none.
    """
    config = Path(folder) / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{folder} holds no translation: give the folder that calib translate wrote")
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    net = generator(values["channels"], values["width"], values["blocks"])
    read_weights(net, Path(folder) / f"{direction}.safetensors")
    net.to(device).eval().requires_grad_(False)
    like = None
    # The way back starts at the target, whose poses are its own.
    if values.get("pose") and direction == "generator":
        like = Poses(**load_file(Path(folder) / "poses.safetensors"))
    return Translation(net, values["size"], values["channels"], like)


@torch.no_grad()
def translate(
    generator: nn.Module, images: Float[Tensor, "batch channels height width"], batch_size: int = 250
) -> Float[Tensor, "batch channels height width"]:
    """Images in [0, 1] in the other domain's style, in [0, 1], of any size from 8 by 8.

    Raises ValueError for bytes, values outside of [0, 1] and smaller images.
    """
    check_images("images", images, numbers=ANY)
    return torch.cat([generator(part) for part in images.split(batch_size)])


def write_translations(translation: Translation, source: Dataset, out: str | os.PathLike[str]) -> int:
    """Writes every image of `source`, translated, to OUT/train/CLASS/ID.png; returns how many.

    Classes keep their order when the folder is opened again (:func:`class_folder_names`); ID is the image's place
    in `source`.  The tree appears as a whole or not at all.

    Raises ValueError if OUT/train is there already.
    """
    check_dataset("source", source)
    target = Path(out) / "train"
    if target.exists():
        raise ValueError(f"{target} is there already: choose another folder, or delete it")
    target.parent.mkdir(parents=True, exist_ok=True)
    names = class_folder_names(class_names_of(source))
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".train-"))
    count = 0
    try:
        for name in names:
            (temporary / name).mkdir()
        for images, labels in _translated(translation, source):
            pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            for image, label in zip(pixels, labels.tolist(), strict=True):
                picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
                picture.save(temporary / names[label] / f"{count:06d}.png")
                count += 1
        # mkdtemp allows the owner only.
        os.chmod(temporary, 0o755)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return count


def label_flips(
    predict: Callable[[Tensor], Any], source: Dataset, translation: Translation
) -> dict[str, float]:
    """Share of `source`, in percent, that `predict` (images in [0, 1] to logits) names otherwise than its label.

    `predict` gets images on the generator's device.

    "before" is of the images as they are, "after" of their translations.  A flip has two causes that no classifier
    of one domain tells apart: the digit changed, or the style is strange to the classifier.  A classifier that knows
    the target's style gives a fair "after".
    """
    check_dataset("source", source)
    wrong = {"before": 0, "after": 0}
    total, read = 0, Reading()
    device = next(translation.generator.parameters()).device
    with torch.no_grad():
        plain = _floats(Fitted(source, fitting(translation.size, translation.channels)))
        for (images, labels), (translated, _) in zip(plain, _translated(translation, source), strict=True):
            for name, x in (("before", images), ("after", translated)):
                answers = read(predict(x.to(device))).argmax(1).to(labels.device)
                wrong[name] += int((answers != labels).sum())
            total += len(labels)
    return {name: 100 * count / total for name, count in wrong.items()}


def class_folder_names(class_names: list[str]) -> list[str]:
    """Names of folders whose alphabetical order is the order of the classes.

    The names of the classes where they serve; else their numbers ("00" to "10": as text 10 comes before 9).
    """
    encoded = [os.fsencode(name) for name in class_names]
    usable = all(name and not name.startswith(".") and not set(name) & set("/\\:\0") for name in class_names)
    if usable and encoded == sorted(set(encoded)):
        return list(class_names)
    digits = len(str(len(class_names) - 1))
    return [f"{number:0{digits}d}" for number in range(len(class_names))]


def prepared(translation: Translation, source: Dataset) -> Dataset:
    """The images as the generator takes them, uint8: at its size, and in the target's poses if it learned from such."""
    check_dataset("source", source)
    size, channels, like = translation.size, translation.channels, translation.poses
    if like is None:
        return Fitted(source, fitting(size, channels))
    return PosedImages(source, like, size, channels, seed=0)


def _translated(translation: Translation, source: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(translation.generator.parameters()).device
    for images, labels in _floats(prepared(translation, source)):
        yield translate(translation.generator, images.to(device)).to(images.device), labels


def _floats(dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in test_loader(dataset, 250):
        yield to_float(images), labels


def class_names_of(source: Dataset) -> list[str]:
    """The names of its classes; numbers where it has none."""
    check_dataset("source", source)
    names = getattr(source, "class_names", None)
    if names is None:
        return [str(label) for label in range(int(labels_of(cast(Any, source)).max()) + 1)]
    return list(names)
