"""Images and labels (or masks) from a `.npz` file, with its declared sizes checked before anything is read."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from shared_core.data.arrays import ArrayImages, from_numpy
from shared_core.data.images import printable
from shared_core.data.labels import UNLABELLED, NoSplitError
from shared_core.data.masks import ArrayMasks, masks_from_numpy


def open_npz(spec: str, split: str, labelled: bool = True) -> ArrayImages | ArrayMasks:
    """`PATH` reads `x_train y_train` (or `_test`), `PATH#day` reads `x_day_train y_day_train`.

    Images are uint8 of shape (n, h, w), (n, c, h, w) or (n, h, w, c).  Labels of shape (n, h, w) are masks
    for segmentation; the key `ignore` then holds the label that does not count, 255 without it.  With `labelled`
    off images without labels have the one class UNLABELLED.

    Raises FileNotFoundError, NoSplitError without images of the split, or ValueError if a key is missing, the file is
    broken, holds pickled objects, or declares more than the memory holds.
    """
    path, _, prefix = os.path.expanduser(spec).partition("#")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {printable(path)}")
    part = f"{prefix}_{split}" if prefix else split
    try:
        headers = _headers(path)
        missing = [key for key in (f"x_{part}", f"y_{part}") if key not in headers]
        if missing and (labelled or f"x_{part}" in missing):
            error = NoSplitError if f"x_{part}" in missing else ValueError
            raise error(f"it has no {' and no '.join(missing)}; its keys are {', '.join(headers)}")
        wanted = [key for key in (f"x_{part}", f"y_{part}", "class_names", "ignore") if key in headers]
        _check_sizes({key: headers[key] for key in wanted})
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in wanted}
        names = [str(name) for name in arrays["class_names"]] if "class_names" in arrays else None
        images = arrays[f"x_{part}"]
        if missing:
            return from_numpy(images, np.zeros(len(images), np.int64), [UNLABELLED])
        labels = arrays[f"y_{part}"]
        if labels.ndim == 3:
            return masks_from_numpy(images, labels, names, int(arrays.get("ignore", 255)))
        return from_numpy(images, labels, names)
    except NoSplitError as error:
        raise NoSplitError(f"cannot read {printable(path)}: {error}") from error
    except (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {printable(path)}: {error}") from error


def _headers(path: str) -> dict[str, tuple[tuple[int, ...], np.dtype, int]]:
    """Shape, type and declared length in bytes of every array, without reading its data."""
    headers = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(stream)
            headers[entry.filename.removesuffix(".npy")] = (shape, dtype, entry.file_size)
    return headers


def _check_sizes(headers: dict[str, tuple[tuple[int, ...], np.dtype, int]]) -> None:
    total = 0
    for key, (shape, dtype, stored) in headers.items():
        if dtype.hasobject:
            raise ValueError(f"{key} holds Python objects, which could run code: save plain arrays")
        declared = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if not 0 <= declared <= stored:
            raise ValueError(f"{key} declares {declared} bytes, but the archive holds {stored}")
        total += stored
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 35
    if total > memory:
        raise ValueError(f"it declares {total / 1e9:.1f} GB, more than this machine's memory")
