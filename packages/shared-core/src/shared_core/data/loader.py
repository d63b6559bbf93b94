"""Loaders whose batches depend on the sampler's keys alone, not on workers, order or the global generator.

>>> data = KeyedDataset(train, seed=0, batch_transform=lambda images, u: to_float(crop_flip(images, u)))
>>> loader = make_loader(data, Batches(shuffled_plan(len(train), 128, seed=0)), workers=2)
>>> for images, labels in loader: ...
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from shared_core.data.arrays import ArrayImages
from shared_core.data.masks import ArrayMasks
from shared_core.data.sampling import Batches, Key, keyed_generator_seed, keyed_uniform

BatchTransform = Callable[[Tensor, Float[Tensor, "batch n"]], Tensor]
Batch = tuple[Shaped[Tensor, "batch channel height width"], Tensor] | tuple[Tensor, Tensor, Tensor]


class KeyedDataset(Dataset):
    """Images of `dataset`, transformed with randomness that is a pure function of (seed, key).

    `transform(image)` sees one image at a time and may draw from the generators of torch, numpy and Python
    (any torchvision.transforms.v2 transform does): they are seeded from the key before and put back after.
    `batch_transform(images, uniforms)` sees the stacked batch and `uniforms` numbers in [0, 1) per image: the
    fast way.  With both, `transform` comes first.

    A list of keys gives `(images, labels)`, and `indices` (into `dataset`) third if `with_index`.  Labels are
    int64 [batch], or masks int64 [batch, height, width] if the items have one.  A transform does not see the
    mask: with masks, give none that moves pixels.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        transform: Callable[[Tensor], Tensor] | None = None,
        batch_transform: BatchTransform | None = None,
        with_index: bool = False,
        uniforms: int = 4,
    ) -> None:
        self.dataset, self.seed = dataset, seed
        self.transform, self.batch_transform = transform, batch_transform
        self.with_index, self.uniforms = with_index, uniforms

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, key: Key) -> tuple[Tensor, int | Tensor]:
        images, labels = self.__getitems__([key])[:2]
        return images[0], labels[0] if labels.dim() > 1 else int(labels[0])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        indices = torch.tensor([key.index for key in keys], dtype=torch.int64)
        if isinstance(self.dataset, ArrayImages):
            images: Any = self.dataset.images[indices]
            labels = self.dataset.labels[indices]
        elif isinstance(self.dataset, ArrayMasks):
            images, labels = self.dataset.images[indices], self.dataset.masks[indices].long()
        else:
            source = cast(Any, self.dataset)
            pairs = [source[key.index] for key in keys]
            images = [image for image, _ in pairs]
            labels = _labels([label for _, label in pairs])
        if self.transform is not None:
            images = [self._one(image, key) for image, key in zip(images, keys, strict=True)]
        images = images if isinstance(images, Tensor) else _stack(images)
        if self.batch_transform is not None:
            images = self.batch_transform(
                images, torch.from_numpy(keyed_uniform(self.seed, keys, self.uniforms))
            )
        return (images, labels, indices) if self.with_index else (images, labels)

    def _one(self, image: Tensor, key: Key) -> Tensor:
        assert self.transform is not None
        seed = keyed_generator_seed(self.seed, *key)
        python, numpy = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would reseed the GPUs as well.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)
            try:
                return self.transform(image)
            finally:
                random.setstate(python)
                np.random.set_state(numpy)


def make_loader(
    dataset: KeyedDataset, batches: Batches, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """A loader over `batches` with a generator of its own.

    `iter()` of a loader without one draws a number from the global generator, which shifts dropout on resume.
    `pin_memory` is ignored without a GPU.
    """
    return _loader(dataset, batches, workers, pin_memory)


def test_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int = 0,  # noqa: PT028
    rank: int = 0,  # noqa: PT028
    world: int = 1,  # noqa: PT028
) -> DataLoader:
    """All images in plain order, once over all ranks; the last batch may be smaller.

    `batch_size` is per rank; ranks may have one image more or less than others.  A Dataset that is not a
    KeyedDataset is read as it is.
    """
    keyed = dataset if isinstance(dataset, KeyedDataset) else KeyedDataset(dataset, seed=0)
    n = len(keyed)
    part = range(n * rank // world, n * (rank + 1) // world)
    return _loader(keyed, _InOrder(part, batch_size), workers, pin_memory=False)


test_loader.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  # pytest takes it for a test


def dealt_loader(
    dataset: Dataset, batch_size: int, workers: int = 0, rank: int = 0, world: int = 1
) -> DataLoader:
    """The whole batches of :func:`test_loader` on one process, dealt out in turn: `rank` gets every `world`-th.

    So each process computes exactly what one process would, and sums over processes are those of one.
    """
    keyed = dataset if isinstance(dataset, KeyedDataset) else KeyedDataset(dataset, seed=0)
    return _loader(keyed, _InOrder(range(len(keyed)), batch_size, rank, world), workers, pin_memory=False)


class _InOrder(Sampler[list[Key]]):
    """Batches of places in a row, from batch `first` on every `step`-th; made one by one, for sets of millions."""

    def __init__(self, places: range, batch_size: int, first: int = 0, step: int = 1) -> None:
        self.places, self.batch_size = places, batch_size
        self.starts = range(0, len(places), batch_size)[first::step]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in self.starts:
            yield [Key(0, place, 0) for place in self.places[start : start + self.batch_size]]


def _loader(
    dataset: KeyedDataset, batches: Iterable[list[Key]], workers: int, pin_memory: bool
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=cast(Any, batches),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory and torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(dataset.seed & 0x7FFFFFFFFFFFFFFF),
        worker_init_fn=_one_thread,
        persistent_workers=workers > 0,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _labels(labels: list[Any]) -> Int64[Tensor, "batch ..."]:
    if labels and getattr(labels[0], "ndim", 0) == 2:
        return _stack([torch.as_tensor(mask, dtype=torch.int64) for mask in labels])
    return torch.tensor([int(label) for label in labels], dtype=torch.int64)


def _stack(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"the images of a batch differ in shape ({', '.join(map(str, sorted(shapes)[:3]))}): "
            "give a transform that brings them to one size"
        )
    return torch.stack(images)
