"""Decoding image files: one policy for the broken ones.

Images of every source are converted here: they become RGB or grey of 8 bits, turned upright by their EXIF
orientation.  Pillow's limit on the number of pixels is kept, as an error.

    >>> image = read_image("cat.jpg")                # uint8 (3, height, width)
    >>> for bad in check_images("photos"): print(bad.path, bad.reason)
"""

import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from shared_core.data.walk import Walk, left_out, walk

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
    _check_mode(mode)
    return _pixels(_decoded(path, lambda image: _convert(ImageOps.exif_transpose(image), mode)))


def image_bytes(
    image: Image.Image, mode: str = "RGB", name: str = "an image"
) -> UInt8[Tensor, "channel height width"]:
    """The bytes of an image that Pillow opened already, by the rules of :func:`read_image`; `name` is for errors."""
    _check_mode(mode)
    try:
        with _strict_pillow():
            image = image.copy()
            transparent = image.info.get("transparency")
            if isinstance(transparent, tuple) and max(transparent) > 255:
                image.info["transparency"] = tuple(level >> 8 for level in transparent)
            return _pixels(np.array(_convert(ImageOps.exif_transpose(image), mode)))
    except _DECODE_ERRORS as error:
        raise BadImageError(f"cannot read the image {name}: {_reason(error)}") from error


def _check_mode(mode: str) -> None:
    if mode not in ("RGB", "L"):
        raise ValueError(f"mode is {mode!r}; it must be 'RGB' or 'L'")


def read_mask(path: str | os.PathLike[str]) -> UInt8[Tensor, "height width"]:
    """Decodes one label map: the numbers of a grey image, or of a palette image, as they are stored.

    Raises BadImageError naming the file for anything that cannot be decoded whole, and for colours.
    """
    return torch.from_numpy(_decoded(path, _numbers))


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """All images below `folder`, sorted by their bytes: the same everywhere.

    Warns of what :mod:`shared_core.data.walk` leaves out.  Raises FileNotFoundError if there is no such folder.
    """
    return _walk(folder).files


def find_images(places: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Files as they are named, folders as all the images below them; `~` is the home folder.

    Raises ValueError for a folder without an image.
    """
    found: list[str] = []
    for place in [os.path.expanduser(place) for place in places]:
        inside = list_images(place) if os.path.isdir(place) else [os.fspath(place)]
        if not inside:
            raise ValueError(f"there is no image in {printable(place)}")
        found += inside
    return found


def check_images(folder: str | os.PathLike[str]) -> list[BadImage]:
    """Decodes every image below `folder` and returns those that fail, sorted; also folders named like one.

    Raises FileNotFoundError if there is no such folder.
    """
    found = _walk(folder)
    bad = [
        BadImage(path, "is a folder, not a file") for path in found.folders if path.lower().endswith(SUFFIXES)
    ]
    for path in found.files:
        try:
            read_image(path)
        except BadImageError as error:
            bad.append(BadImage(path, _reason(error.__cause__ or error)))
    return sorted(bad, key=lambda entry: os.fsencode(entry.path))


def _walk(folder: str | os.PathLike[str]) -> Walk:
    folder = os.path.expanduser(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {printable(folder)}")
    found = walk(folder, SUFFIXES)
    warn_left_out(folder, [found])
    return found


def warn_left_out(folder: str | os.PathLike[str], walks: Sequence[Walk], beside: int = 0) -> None:
    """Warn of files and folders below `folder` that are not read, if there are any; see :func:`left_out`."""
    if words := left_out(walks, beside):
        warnings.warn(f"{printable(folder)} is read without {words}", stacklevel=3)


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
        with _strict_pillow(), Image.open(path) as image:
            _scale_transparent_colour(image)
            image.load()
            return np.array(convert(image))
    except _DECODE_ERRORS as error:
        raise BadImageError(f"cannot read the image {printable(path)}: {_reason(error)}") from error


@contextmanager
def _strict_pillow() -> Iterator[None]:
    with warnings.catch_warnings():
        # Pillow warns of half a bomb and refuses a whole one; one limit is enough.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        yield


def _numbers(image: Image.Image) -> Image.Image:
    if image.mode not in ("L", "P"):
        raise ValueError(f"a label map is a grey or palette image of 8 bits, this one is {image.mode}")
    return image


def _scale_transparent_colour(image: Image.Image) -> None:
    """Bring a PNG's transparent colour to the 8 bits that Pillow scales pixels to; call it before `load`."""
    tiles: list[Any] = getattr(image, "tile", [])
    transparent, stored = image.info.get("transparency"), str(tiles[0][3]) if tiles else ""
    if stored in _LEVELS and isinstance(transparent, int):
        image.info["transparency"] = transparent * _LEVELS[stored]
    elif stored == "RGB;16B" and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in transparent)


_LEVELS = {"1": 255, "L;2": 85, "L;4": 17}
"""What a grey level of 1, 2 or 4 bits is multiplied with."""


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 instead of scaling, and forgets the transparent colour.
        levels = np.asarray(image).astype(np.int64)
        grey = (levels >> 8).clip(0, 255).astype(np.uint8)
        grey[levels == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(grey)
    elif image.mode == "F":
        raise ValueError("it holds floating point pixels, whose range is not known")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _pixels(array: np.ndarray) -> UInt8[Tensor, "channel height width"]:
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
