"""Decoding image files: one policy for the broken ones.

Everything becomes RGB or grey of 8 bits, turned upright by its EXIF orientation.  Pillow's limit on the
number of pixels is kept, as an error.

    >>> image = read_image("cat.jpg")                # uint8 (3, height, width)
    >>> for bad in check_images("photos"): print(bad.path, bad.reason)
"""

import os
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif")


class BadImage(NamedTuple):
    """A file that cannot be used as an image, and why."""

    path: str
    reason: str


class BadImageError(ValueError):
    """An image file could not be decoded; the message names it."""


def read_image(path: str | os.PathLike[str], mode: str = "RGB") -> UInt8[Tensor, "channel height width"]:
    """Decodes one file to bytes; mode "RGB" gives 3 channels, "L" one.

    Transparency is put over white, 16 bits are cut to the upper 8, an animation gives its first frame.
    Raises BadImageError naming the file for anything that cannot be decoded whole.
    """
    if mode not in ("RGB", "L"):
        raise ValueError(f"mode is {mode!r}; it must be 'RGB' or 'L'")
    pixels = _decoded(path, lambda image: _convert(ImageOps.exif_transpose(image), mode))
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


def read_mask(path: str | os.PathLike[str]) -> UInt8[Tensor, "height width"]:
    """Decodes one label map: the numbers of a grey image, or of a palette image, as they are stored.

    Raises BadImageError naming the file for anything that cannot be decoded whole, and for colours.
    """
    return torch.from_numpy(_decoded(path, _numbers))


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """All files below `folder` with the suffix of an image, sorted by their bytes: the same everywhere."""
    found = [os.path.join(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names]
    return sorted((p for p in found if p.lower().endswith(SUFFIXES) and os.path.isfile(p)), key=os.fsencode)


def find_images(places: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Files as they are named, folders as all the images below them.

    Raises ValueError for a folder without an image.
    """
    found: list[str] = []
    for place in places:
        inside = list_images(place) if os.path.isdir(place) else [os.fspath(place)]
        if not inside:
            raise ValueError(f"there is no image in {printable(place)}")
        found += inside
    return found


def check_images(folder: str | os.PathLike[str]) -> list[BadImage]:
    """Decodes every image below `folder` and returns those that fail, sorted; also folders named like one.

    Raises FileNotFoundError if there is no such folder.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {printable(folder)}")
    bad = [
        BadImage(os.path.join(at, name), "is a folder, not a file")
        for at, names, _ in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]
    for path in list_images(folder):
        try:
            read_image(path)
        except BadImageError as error:
            bad.append(BadImage(path, _reason(error.__cause__ or error)))
    return sorted(bad, key=lambda entry: os.fsencode(entry.path))


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that any terminal and log takes, also if the name is not UTF-8."""
    return os.fsencode(Path(path)).decode("utf-8", "backslashreplace")


_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError, ZeroDivisionError,
)  # fmt: skip


def _decoded(
    path: str | os.PathLike[str], convert: Callable[[Image.Image], Image.Image]
) -> UInt8[np.ndarray, "height width ..."]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of half a bomb and refuses a whole one; one limit is enough.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with Image.open(path) as image:
                image.load()
                return np.array(convert(image))
    except _DECODE_ERRORS as error:
        raise BadImageError(f"cannot read the image {printable(path)}: {_reason(error)}") from error


def _numbers(image: Image.Image) -> Image.Image:
    if image.mode not in ("L", "P"):
        raise ValueError(f"a label map is a grey or palette image of 8 bits, this one is {image.mode}")
    return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("it holds floating point pixels, whose range is not known")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
