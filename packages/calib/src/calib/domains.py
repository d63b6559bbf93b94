"""The two domains of an adaptation: streams of images whose labels, if there are any, are dropped at the door.

A map-style data set is read in an order that is a pure function of (seed, step), so a resumed run sees the same
images bit for bit.  Any other iterable of batches (a DataLoader) is read as it comes, over and over again.
"""

from collections.abc import Iterable, Iterator, Sized
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from shared_core.data.augment import to_float
from shared_core.data.loader import KeyedDataset, make_loader, test_loader
from shared_core.data.sampling import Batches, shuffled_plan
from shared_core.ops.host import read_back
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from calib.calibrator import Calibrator

USUAL = ((0.0, 1.0), (-1.0, 1.0))
"""Ranges in which images usually come: as they are, and normalised by 0.5 and 0.5."""
SAMPLE_NUMBERS = 2**29
"""A sample to validate on has at most so many numbers (2 GB of floats)."""


class Images(NamedTuple):
    """Floats in the value range; places in the data set (None from a loader); labels if the domain has any."""

    pixels: Float[Tensor, "batch channels height width"]
    places: Int64[Tensor, " batch"] | None
    labels: Tensor | None


class Bare(Dataset):
    """Items that are images, or tuples of an image alone, as (image, -1)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = cast(Any, self.dataset)[index]
        return (item[0] if isinstance(item, list | tuple) else item), -1


class Domain:
    """One domain.  `next_batch` gives the next images, `some` a fixed sample to validate on.

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
    ) -> None:
        self.name, self.given, self.calibrator, self.seed = name, given, calibrator, seed
        self.dataset: Dataset | None = None
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
            self.dataset = given if _has_labels(given) else Bare(given)
            keyed = KeyedDataset(self.dataset, seed, with_index=True)
            self._source: Iterable[Any] = make_loader(keyed, self.batches, workers)
        elif isinstance(given, Iterable) and not isinstance(given, Tensor):
            self._source = given
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
                return self._images(found, device)
            self._stream = None
        raise ValueError(f"the {self.name} domain holds no images")

    def some(self, count: int) -> Images:
        """A fixed sample of up to `count` images on the CPU: drawn once per seed, or a loader's first ones.

        Of large images it holds fewer, so that it stays within SAMPLE_NUMBERS numbers.
        """
        if self.dataset is not None:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed))
            sample = Subset(self.dataset, order[:count].tolist())
            batches: Iterable[Any] = test_loader(cast(Dataset, sample), 500)
        else:
            batches = self._source
        parts: list[Images] = []
        for batch in batches:
            parts.append(self._images(batch, torch.device("cpu")))
            count = min(count, max(1, SAMPLE_NUMBERS // parts[0].pixels[0].numel()))
            if sum(len(part.pixels) for part in parts) >= count:
                break
        if not parts:
            raise ValueError(f"the {self.name} domain holds no images")
        labels = [part.labels for part in parts if part.labels is not None]
        return Images(
            torch.cat([part.pixels for part in parts])[:count],
            None,
            torch.cat(labels)[:count] if len(labels) == len(parts) else None,
        )

    def all_images(self, batch_size: int = 500) -> Iterator[Tensor]:
        """Every image of a data set once, in its own order, on the CPU."""
        assert self.dataset is not None
        for batch in test_loader(self.dataset, batch_size):
            yield self._images(batch, torch.device("cpu")).pixels

    def _images(self, batch: Any, device: torch.device) -> Images:
        pixels, *rest = batch if isinstance(batch, list | tuple) else (batch,)
        if not isinstance(pixels, Tensor):
            raise ValueError(
                f"a batch of the {self.name} domain starts with a {type(pixels).__name__}; "
                "it must be images, or (images, labels, ...)"
            )
        bare = isinstance(self.dataset, Bare)
        labels = rest[0] if rest and isinstance(rest[0], Tensor) and not bare else None
        places = rest[1] if self.dataset is not None and len(rest) > 1 else None
        # Bytes are in range once they are spread over it; floats are looked at where they come from.
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != self.calibrator.channels:
            check_images(self.name, in_range(pixels, self.calibrator), self.calibrator)
        pixels = in_range(pixels.to(device, non_blocking=True), self.calibrator)
        return Images(pixels, places, labels)


def _has_labels(dataset: Dataset) -> bool:
    item = cast(Any, dataset)[0]
    return isinstance(item, list | tuple) and len(item) > 1


def in_range(images: Tensor, calibrator: Calibrator) -> Float[Tensor, "batch channels height width"]:
    """Bytes 0..255 spread over the calibrator's value range; floats as they are."""
    if images.dtype != torch.uint8:
        return images
    low, high = calibrator.low.to(images.device), calibrator.high.to(images.device)
    return (low + images.float() / 255 * (high - low)).clamp(low, high)


def as_floats(images: Tensor) -> Float[Tensor, "batch channels height width"]:
    """Bytes to floats in [0, 1]; floats as they are."""
    return to_float(images) if images.dtype == torch.uint8 else images


def check_images(name: str, images: Tensor, calibrator: Calibrator) -> None:
    """Raises ValueError naming the domain if shape, channels, type or values do not fit the calibrator."""
    channels = calibrator.channels
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(
            f"{name} images have shape {tuple(images.shape)}, but the calibrator was built for {channels} channels: "
            "(batch, channels, height, width) of both domains must agree with it"
        )
    if not images.is_floating_point():
        raise ValueError(f"{name} images are {images.dtype}; give uint8 (0 to 255) or floats")
    low, high = (end.to(images.device) for end in (calibrator.low, calibrator.high))
    bad = torch.stack([~images.isfinite().all(), ~((images >= low) & (images <= high)).all()])
    infinite, outside = read_back(bad, "do the images fit the calibrator?").tolist()
    if infinite:
        raise ValueError(f"{name} images hold values that are not finite (NaN or infinite)")
    if outside:
        raise ValueError(
            f"{name} images run from {float(images.min()):.4g} to {float(images.max()):.4g}, outside of the value "
            f"range {_words(calibrator)}: bring both domains into the same range, or say value_range=(low, high)"
        )


def check_ranges(
    source: Float[Tensor, "sources channels height width"],
    target: Float[Tensor, "targets channels height width"],
    calibrator: Calibrator,
) -> None:
    """Raises ValueError if one domain visibly comes in another range than the other: the classic silent failure.

    Two signs: a domain that fills less than 1/50 of the value range while the other fills half of it (divided by
    255 twice), and a domain that has one of the USUAL ranges, which the other leaves (normalised in one domain only).
    """
    span = (calibrator.high - calibrator.low).cpu()
    ends, filled = {}, {}
    for name, images in (("source", source), ("target", target)):
        share = (images.detach().cpu() - calibrator.low.cpu()) / span
        ends[name] = (float(images.min()), float(images.max()))
        filled[name] = float(share.max() - share.min())
    for name, other in (("source", "target"), ("target", "source")):
        tiny = filled[name] < 0.02 and filled[other] > 0.5
        if tiny or any(_apart(ends[name], ends[other], usual, calibrator) for usual in USUAL):
            (low, high), (low_other, high_other) = ends[name], ends[other]
            raise ValueError(
                f"{name} images run from {low:.4g} to {high:.4g}, but {other} images from {low_other:.4g} to "
                f"{high_other:.4g}, in the value range {_words(calibrator)}: the domains come in different ranges; "
                "scale both alike"
            )


def _apart(
    ends: tuple[float, float], other: tuple[float, float], usual: tuple[float, float], calibrator: Calibrator
) -> bool:
    """Whether images fill this range as if it were theirs, while the other domain leaves it by a quarter or more."""
    low, high = usual
    margin = (high - low) / 4
    # A value range that starts where this one does has the same black: less of it is a dark domain.
    if not bool((calibrator.low < low - margin).all()):
        return False
    # Filled to nine tenths from end to end: merely dark, bright or pale images hardly stop at just these ends.
    fills = low <= ends[0] and ends[1] <= high and ends[1] - ends[0] >= 0.9 * (high - low)
    return fills and (other[0] < low - margin or other[1] > high + margin)


def _words(calibrator: Calibrator) -> str:
    (low, high) = calibrator.value_range
    if len(set(low)) == len(set(high)) == 1:
        return f"[{low[0]:.4g}, {high[0]:.4g}]"
    return f"[{tuple(round(v, 4) for v in low)}, {tuple(round(v, 4) for v in high)}]"
