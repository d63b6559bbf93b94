"""Sampling whose order and randomness are pure functions of (seed, epoch, index, draw).

A *plan* is a function `plan(epoch) -> Int64[Tensor, "batches batch 2"]`: the (index, draw) of every image of
every global batch of an epoch.  `Batches` cuts a plan into what one rank sees and can start anywhere in it,
so a run is continued mid-epoch bit for bit from two integers.

    >>> batches = Batches(shuffled_plan(len(data), 128, seed=0), rank=0, world=1)
    >>> batches.seek(epoch=3, step=17)
    >>> keys = next(iter(batches))          # [Key(epoch=3, index=1093, draw=0), ...]
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.utils.data import Sampler

Plan = Callable[[int], Int64[Tensor, "batches batch 2"]]


class Key(NamedTuple):
    """What a sampler hands to a data set: an image, and which randomness to look at it with.

    `draw` tells several draws of the same image within one epoch apart: each has its own augmentation.
    """

    epoch: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index
    draw: int


def shuffled_plan(n: int, batch_size: int, seed: int) -> Plan:
    """Every image at most once per epoch, in an order of its own each epoch; the incomplete batch is dropped.

    `batch_size` counts the global batch.  Raises ValueError if there are fewer images than one batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if n < batch_size:
        raise ValueError(f"{n} images do not fill one batch of {batch_size}: lower the batch size")
    batches = n // batch_size

    def plan(epoch: int) -> Int64[Tensor, "batches batch 2"]:
        generator = torch.Generator().manual_seed(keyed_generator_seed(seed, epoch, 0, 0))
        order = torch.randperm(n, generator=generator)[: batches * batch_size].view(batches, batch_size)
        return torch.stack([order, torch.zeros_like(order)], dim=-1)

    return plan


class Batches(Sampler[list[Key]]):
    """Batch sampler: this rank's contiguous slice of each global batch of a plan.

    Each `iter()` walks the epoch that `seek` named from the step that it named, and the next `iter()` the
    epoch after it from its beginning.  `len()` is the number of batches of a whole epoch.

    `group` images in a row (a triplet: 3) stay on one rank.  Raises ValueError, when iterated, if the global
    batch does not divide by `world * group`.
    """

    def __init__(self, plan: Plan, rank: int = 0, world: int = 1, group: int = 1) -> None:
        if world < 1 or group < 1 or not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}, group {group}: need 0 <= rank < world and group >= 1")
        self.plan, self.rank, self.world, self.group = plan, rank, world, group
        self.epoch, self.step = 0, 0
        self._table: tuple[int, Tensor] | None = None

    def seek(self, epoch: int, step: int = 0) -> None:
        """The next `iter()` starts at batch `step` of `epoch`."""
        if epoch < 0 or step < 0:
            raise ValueError(f"cannot seek to epoch {epoch}, step {step}: both count from 0")
        batches = len(self._planned(epoch))
        if step > batches:
            raise ValueError(f"cannot seek to step {step} of epoch {epoch}: it has {batches} batches")
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        return len(self._planned(self.epoch))

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.epoch, self.step
        table = self._planned(epoch)
        # Advanced here and not at the end: with workers the loader reads ahead, and a loop may break.
        self.epoch, self.step = epoch + 1, 0
        share = table.shape[1] // self.world
        for row in table[first:, self.rank * share : (self.rank + 1) * share]:
            yield [Key(epoch, index, draw) for index, draw in row.tolist()]

    def _planned(self, epoch: int) -> Tensor:
        if self._table is None or self._table[0] != epoch:
            table = self.plan(epoch)
            size, unit = table.shape[1], self.world * self.group
            if size % unit:
                raise ValueError(
                    f"a global batch of {size} does not divide by {unit} ({self.world} processes, groups of "
                    f"{self.group}): use {size // unit * unit or unit} or {(size // unit + 1) * unit}"
                )
            self._table = (epoch, table)
        return self._table[1]


def keyed_generator_seed(seed: int, epoch: int, index: int, draw: int) -> int:
    """A seed for a random generator, 0 <= result < 2**63, scattered over (seed, epoch, index, draw)."""
    return int(_hash(seed, np.array([[epoch, index, draw]]))[0] >> np.uint64(1))


def keyed_uniform(seed: int, keys: Sequence[Key], n: int) -> Float64[np.ndarray, "batch n"]:
    """`n` uniform numbers in [0, 1) for each key, a pure function of (seed, key, column).

    Counter-based: the key is hashed to the start of a splitmix64 stream (Steele, Lea, Flood 2014), of which
    the columns are the first `n` numbers, cut to 53 bits.
    """
    start = _hash(seed, np.array(keys, dtype=np.int64).reshape(-1, 3))
    columns = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(start[:, None] + columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _hash(seed: int, keys: np.ndarray) -> np.ndarray:
    state = _mix(np.full(len(keys), seed & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64) + _GOLDEN)
    # Chained and not summed, or (epoch 1, index 0) would meet (epoch 0, index 1).
    for column in keys.astype(np.uint64).T:
        state = _mix((state ^ column) + _GOLDEN)
    return state


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
