"""The two domains of an adaptation: streams of images whose labels, if there are any, are dropped at the door.

A map-style data set is read in an order that is a pure function of (seed, step), so a resumed run sees the same
images bit for bit.  Any other iterable of batches (a DataLoader) is read as it comes, over and over again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from shared_core.data.augment import to_float
from shared_core.data.loader import KeyedDataset, dealt_loader, make_loader
from shared_core.data.sampling import Batches, shuffled_plan
from shared_core.ops.gather import everywhere, in_turn, once, rank, world_size
from shared_core.ops.host import read_back
from shared_core.ops.inputs import ANY
from shared_core.ops.inputs import check_images as check_batch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, IterableDataset, Subset

from calib.calibrator import FITS, Calibrator
from calib.ranges import Ends, ends_of, range_words

SAMPLE_NUMBERS = 2**29
"""A sample to validate on has at most so many numbers (2 GB of floats)."""


class Images(NamedTuple):
    """Floats in the value range; places in the data set (None from a loader); labels if the domain has any; of a
    lenient domain the largest absolute value as the images came."""

    pixels: Float[Tensor, "batch channels height width"]
    places: Int64[Tensor, " batch"] | None
    labels: Tensor | None
    peak: Float[Tensor, ""] | None = None


class Pairs(Dataset):
    """Items of any form as (image, label); the label is -1 where there is none."""

    def __init__(self, dataset: Dataset, labelled: bool) -> None:
        self.dataset, self.labelled = dataset, labelled

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, *rest = fields(cast(Any, self.dataset)[index])
        return image, (rest[0] if self.labelled else -1)


IMAGE_NAMES = ("image", "images", "pixel_values", "img", "pixels", "x")
LABEL_NAMES = ("label", "labels", "target", "mask", "y")


def fields(item: Any) -> tuple[Any, ...]:
    """(image, label, ...) of an item or a batch that is an image, a list, a tuple or a dict with usual names.

    Raises ValueError for a dict without any of IMAGE_NAMES.
    """
    if isinstance(item, Mapping):
        names = [name for name in IMAGE_NAMES if name in item]
        if not names:
            raise ValueError(
                f"items are dicts of {', '.join(map(str, item))}: name the images one of {', '.join(IMAGE_NAMES)}"
            )
        labels = [item[name] for name in LABEL_NAMES if name in item]
        return (item[names[0]], *labels[:1])
    return tuple(item) if isinstance(item, list | tuple) else (item,)


class Domain:
    """One domain.  `next_batch` gives the next images, `some` a fixed sample to validate on.

    A `lenient` one fills values that are not finite in `next_batch`, whose `peak` tells of them, and leaves such images
    out of the sample.

    Raises:
        TypeError: neither a map-style data set nor an iterable of batches.
        ValueError: no images, or images that do not fit the calibrator (see :func:`check_images`).
    """

    def __init__(
        self,
        name: str,
        given: Dataset | Iterable[Any],
        calibrator: Calibrator,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        lenient: bool = False,
    ) -> None:
        self.name, self.given, self.calibrator, self.seed = name, given, calibrator, seed
        self.lenient, self.ends = lenient, ends_of(calibrator)
        self.dataset: Dataset | None = None
        self.labelled, self._share = True, (0, 1)
        if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
            self.dataset = given
            self.size = len(cast(Sized, given))
            if self.size == 0:
                raise ValueError(f"the {name} domain holds no images")
            # A domain smaller than a batch gives all it has at every step.
            batch = min(batch_size, self.size) // world * world
            if batch == 0:
                raise ValueError(f"the {name} domain has {self.size} images, fewer than {world} processes")
            self.batches = Batches(shuffled_plan(self.size, batch, seed), rank, world)
            first = cast(Any, given)[0]
            form = fields(first)
            if not form or not isinstance(form[0], Tensor):
                kind = type(form[0]).__name__ if form else "nothing"
                raise ValueError(
                    f"an item of the {name} domain starts with a {kind}; it must be an image as a tensor "
                    "(channels, height, width), alone, or before its label: transform it in the data set"
                )
            self.labelled = len(form) > 1 and _is_label(form[1])
            if not (isinstance(first, list | tuple) and len(form) == 2 and self.labelled):
                self.dataset = Pairs(given, self.labelled)
            keyed = KeyedDataset(self.dataset, seed, with_index=True)
            self._source: Iterable[Any] = make_loader(keyed, self.batches, workers)
        elif isinstance(given, Iterable) and not isinstance(given, Tensor | str | Mapping):
            # What gives its batches once only keeps those that are looked at, for the steps.
            self._source = _Once(name, given) if isinstance(given, Iterator) else given
            # A sampler for several processes has shared out already; else each takes its rows of every batch.
            shared_out = isinstance(getattr(given, "sampler", None), DistributedSampler)
            self._share = (0, 1) if shared_out else (rank, world)
        else:
            raise TypeError(
                f"{name} is a {type(given).__name__}; give a Dataset, or an iterable of batches such as a DataLoader"
            )
        self._stream: Iterator[Any] | None = None

    def seek(self, step: int) -> None:
        """Go on after `step` batches; a loader starts from its beginning instead."""
        self._stream = None
        if self.dataset is not None:
            self.batches.seek(step // len(self.batches), step % len(self.batches))

    def next_batch(self, device: torch.device) -> Images:
        """The next images on `device`."""
        for _ in range(2):
            if self._stream is None:
                self._stream = iter(self._source)
            found = next(self._stream, None)
            if found is not None:
                images = self._own(self._images(found, device))
                if not self.lenient:
                    return images
                fine, peak = filled(images.pixels, self._ends(images.pixels)), images.pixels.abs().amax()
                return images._replace(pixels=fine, peak=peak)
            self._stream = None
        raise ValueError(f"the {self.name} domain holds no images")

    def _own(self, images: Images) -> Images:
        """This process's rows of a loader's batch."""
        part, parts = self._share
        if parts == 1 or self.dataset is not None:
            return images
        rows = len(images.pixels) // parts
        if rows == 0:
            raise ValueError(
                f"a batch of the {self.name} domain has {len(images.pixels)} images for {parts} processes: give larger "
                "batches, or a DataLoader with a DistributedSampler"
            )
        mine = slice(part * rows, (part + 1) * rows)
        return images._replace(
            pixels=images.pixels[mine], labels=None if images.labels is None else images.labels[mine]
        )

    def some(self, count: int) -> Images:
        """A fixed sample of up to `count` images on the CPU: drawn once per seed, or a loader's first ones.

        Of large images it holds fewer, so that it stays within SAMPLE_NUMBERS numbers.
        """
        if self.dataset is not None:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed))
            looks = self._looks(Subset(self.dataset, order[:count].tolist()), 500)
            return _together(self.name, (_finite(look) for look in looks), count)
        # Each process reads a loader of its own, so that all are read equally far, and all take the first one's sample.
        batches = self._source.peek() if isinstance(self._source, _Once) else self._source
        looks = (_finite(self._images(batch, torch.device("cpu"))) for batch in batches)
        kept: list[Images] = []
        everywhere(lambda: kept.append(_together(self.name, looks, count)))
        return once(lambda: kept[0])

    def all_images(
        self, batch_size: int = 500, change: Callable[[Tensor, int], Tensor] = lambda pixels, _start: pixels
    ) -> Iterator[Tensor]:
        """Every image of a data set once, in its own order, on the CPU; or what `change` makes of each batch of them.

        `change` also gets the place of the batch's first image.  Of several processes each decodes and changes batches
        in turn, and all get all results: every process must call it.
        """
        assert self.dataset is not None
        for look in self._looks(self.dataset, batch_size, change):
            yield look.pixels

    def _looks(
        self,
        dataset: Dataset,
        batch_size: int,
        change: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Iterator[Images]:
        """The images of a data set in their order, batch by batch, each read by one of the processes."""
        size = len(cast(Sized, dataset))
        mine = iter(dealt_loader(dataset, batch_size, 0, rank(), world_size()))

        def look(number: int) -> Images:
            images = self._images(next(mine), torch.device("cpu"))
            if change is None:
                return images
            return images._replace(pixels=change(filled(images.pixels, self.ends), number * batch_size))

        yield from in_turn(-(-size // batch_size), look)

    def _images(self, batch: Any, device: torch.device) -> Images:
        pixels, *rest = fields(batch)
        if not isinstance(pixels, Tensor):
            raise ValueError(
                f"a batch of the {self.name} domain starts with a {type(pixels).__name__}; "
                "it must be images, or (images, labels, ...)"
            )
        labels = rest[0] if rest and isinstance(rest[0], Tensor) and self.labelled else None
        places = rest[1] if self.dataset is not None and len(rest) > 1 else None
        # Bytes are in range once they are spread over it; floats are looked at where they come from.
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != self.ends.channels:
            fine = in_range(pixels, self._ends(pixels))
            if self.lenient and fine.is_floating_point() and fine.shape[1:2] == self.ends.low.shape[:1]:
                fine = filled(fine, self._ends(fine))
            check_images(self.name, fine, self._ends(fine))
        pixels = pixels.to(device, non_blocking=True)
        pixels = in_range(pixels, self._ends(pixels))
        return Images(pixels, places, labels)

    def _ends(self, images: Tensor) -> Calibrator | Ends:
        """The value range where these images are."""
        return self.ends if images.device.type == "cpu" else self.calibrator


def _together(name: str, looks: Iterable[Images], count: int) -> Images:
    """Up to `count` images of these batches, of large ones fewer, as one."""
    parts: list[Images] = []
    for images in looks:
        parts.append(images)
        count = min(count, max(1, SAMPLE_NUMBERS // parts[0].pixels.shape[1:].numel()))
        if sum(len(part.pixels) for part in parts) >= count:
            break
    if not parts:
        raise ValueError(f"the {name} domain holds no images")
    labels = [part.labels for part in parts if part.labels is not None]
    return Images(
        torch.cat([part.pixels for part in parts])[:count],
        None,
        torch.cat(labels)[:count] if len(labels) == len(parts) else None,
    )


def _is_label(value: Any) -> bool:
    return not isinstance(value, str | bytes | Mapping) and (
        isinstance(value, int | float | np.generic | Tensor | np.ndarray)
    )


def _finite(images: Images) -> Images:
    """Without the images that hold a value that is not finite."""
    fine = images.pixels.flatten(1).isfinite().all(1)
    if bool(fine.all()):
        return images
    labels = None if images.labels is None else images.labels[fine]
    return images._replace(pixels=images.pixels[fine], labels=labels)


class _Once:
    """Batches that come once: those that `peek` looked at are given again, first."""

    def __init__(self, name: str, batches: Iterator[Any]) -> None:
        self.name, self.batches = name, batches
        self.looked_at: list[Any] = []
        self.given = 0

    def peek(self) -> Iterator[Any]:
        for batch in self.batches:
            self.looked_at.append(batch)
            yield batch

    def __iter__(self) -> Iterator[Any]:
        while self.looked_at:
            self.given += 1
            yield self.looked_at.pop(0)
        for batch in self.batches:
            self.given += 1
            yield batch
        raise ValueError(
            f"the {self.name} domain is an iterator and gave all of its {self.given} batches: give what can be begun "
            "again, such as a list or a DataLoader, or fewer steps"
        )


def in_range(images: Tensor, calibrator: Calibrator | Ends) -> Float[Tensor, "batch channels height width"]:
    """Bytes 0..255 spread over the calibrator's value range; floats as they are."""
    if images.dtype != torch.uint8:
        return images
    low, high = calibrator.low.to(images.device), calibrator.high.to(images.device)
    return (low + images.float() / 255 * (high - low)).clamp(low, high)


def filled(
    images: Float[Tensor, "batch channels height width"], calibrator: Calibrator | Ends
) -> Float[Tensor, "batch channels height width"]:
    """Values that are not finite as the lower end of the value range."""
    return torch.where(images.isfinite(), images, calibrator.low.to(images))


def as_floats(images: Tensor) -> Float[Tensor, "batch channels height width"]:
    """Bytes to floats in [0, 1]; floats as they are."""
    check_batch("images", images, numbers=ANY)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(
            f"images have the type {images.dtype}; give uint8 (0 to 255) or floating-point numbers"
        )
    return to_float(images) if images.dtype == torch.uint8 else images


def check_images(name: str, images: Tensor, calibrator: Calibrator | Ends) -> None:
    """Raises ValueError naming the domain if shape, channels, type or values do not fit the calibrator."""
    channels = calibrator.channels
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(
            f"{name} images have shape {tuple(images.shape)}, but the calibrator was built for {channels} channels: "
            "(batch, channels, height, width) of both domains must agree with it"
        )
    if not images.is_floating_point():
        raise ValueError(f"{name} images are {images.dtype}; give uint8 (0 to 255) or floats")
    if not images.numel():
        raise ValueError(f"a batch of the {name} images is empty, of shape {tuple(images.shape)}")
    low, high = (end.to(images.device) for end in (calibrator.low, calibrator.high))
    bad = torch.stack([~images.isfinite().all(), ~((images >= low) & (images <= high)).all()])
    infinite, outside = read_back(bad, FITS).tolist()
    if infinite:
        raise ValueError(f"{name} images hold values that are not finite (NaN or infinite)")
    if outside:
        raise ValueError(
            f"{name} images run from {float(images.min()):.4g} to {float(images.max()):.4g}, outside of the value "
            f"range {range_words(calibrator)}: bring both domains into the same range, or say value_range=(low, high)"
        )
