"""Class-balanced batches, P classes x M images, and several augmented views of each image.

In your own loop, one line:

    >>> batches = PlanBatches(balanced_plan(labels, classes=16, per_class=4, seed=0))
    >>> loader = DataLoader(dataset, batch_sampler=batches)

With a second view of each image, which the data set augments anew because it reads the image twice:

    >>> PlanBatches(with_views(balanced_plan(labels, 8, 4, seed=0)), group=4)
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from shared_core.data.labels import as_labels
from shared_core.data.sampling import Batches, Plan, keyed_generator_seed
from shared_core.ops.gather import rank, world_size
from torch import Tensor
from torch.utils.data import Sampler


def balanced_plan(labels: Tensor | Sequence[int], classes: int, per_class: int, seed: int) -> Plan:
    """A plan of batches that hold ``per_class`` images of each of ``classes`` different classes.

    An epoch of N images has B = N // (classes * per_class) batches.  Classes are drawn in proportion to their images,
    so an image of a small class is as likely as any other: its expected number in an epoch is B * classes * per_class
    / N, which is 1 where batches divide the images.  Exactly:

    - a class of n images is in s = B * classes * n / N batches of an epoch, rounded down or up at random;
    - the numbers of times of two images of a class differ by at most one;
    - a batch holds an image once, but a class of fewer than ``per_class`` images repeats its own there, each augmented
      anew;
    - a class of more than 1 / classes of all images is in every batch: its images are seen less often, and those of
      all other classes more often.  With as many classes as the labels hold, every class is in every batch.

    Neighbours 2k and 2k + 1 are of different classes, so they can be mixed (:mod:`corsd.mixing`).  A batch is
    ``per_class`` rounds over all its classes: a process of W gets per_class / W images of each class.

    Raises:
        ValueError: fewer than two classes or one image of each, more classes than the labels hold, or fewer images
            than one batch.
    """
    labels = as_labels(labels)
    size = classes * per_class
    sizes = torch.unique(labels, return_counts=True)[1]
    if classes < 2 or per_class < 1:
        raise ValueError(
            f"a balanced batch holds at least 2 classes and 1 image of each; got {classes} and {per_class}"
        )
    if classes > len(sizes):
        raise ValueError(
            f"a batch of {classes} classes with {per_class} images each needs as many classes; the labels hold "
            f"{len(sizes)}: make batches smaller or give more images of a class"
        )
    if len(labels) < size:
        raise ValueError(f"{len(labels)} images do not fill one batch of {classes} classes x {per_class}")
    batches = len(labels) // size
    starts = sizes.cumsum(0) - sizes

    def plan(epoch: int) -> Int[Tensor, "batches batch 2"]:
        generator = torch.Generator().manual_seed(keyed_generator_seed(seed, epoch, 0, 0))
        counts = _appearances(sizes, batches, classes, generator)
        chosen = _spread(counts, batches, classes, generator)
        # Each class walks through its images in a new order, and starts again when it has shown all of them.
        shuffled = torch.randperm(len(labels), generator=generator)
        by_class = shuffled[labels[shuffled].argsort(stable=True)]
        slots = _earlier(chosen)[..., None] * per_class + torch.arange(per_class)
        images = by_class[starts[chosen][..., None] + slots % sizes[chosen][..., None]]
        rows = images.transpose(1, 2).gather(2, _rounds(batches, per_class, classes, generator)).flatten(1)
        # The place in the epoch tells several draws of one image apart, so each is augmented anew.
        return torch.stack([rows, torch.arange(rows.numel()).view_as(rows)], 2)

    return plan


def with_views(plan: Plan, views: int = 2) -> Plan:
    """The plan with ``views`` augmented views of each image: batches of ``views`` times as many images.

    Order: images a, b, then a, b again, then the next two images.  So neighbours 2k and 2k + 1 stay different images,
    which can be mixed, and all views of an image are on one process if it gets whole groups of 2 * ``views``.  Every
    view has a draw of its own, so :class:`shared_core.data.loader.KeyedDataset` augments each anew.

    Raises:
        ValueError: fewer than one view, or (from the plan) an odd number of images in a batch.
    """
    if views < 1:
        raise ValueError(f"views={views}; an image has at least one")

    def plan_of_views(epoch: int) -> Int[Tensor, "batches batch 2"]:
        keys = plan(epoch)
        batches, size, _ = keys.shape
        if size % 2:
            raise ValueError(f"views are laid out for two images at a time; a batch has {size} images")
        pairs = keys.view(batches, size // 2, 1, 2, 2).repeat(1, 1, views, 1, 1)
        pairs[..., 1] = pairs[..., 1] * views + torch.arange(views)[:, None]
        return pairs.flatten(1, 3)

    return plan_of_views


class PlanBatches(Sampler[list[int]]):
    """Batch sampler for a DataLoader of yours: the places of this process's images in each batch of a plan.

    What it gives is a pure function of the plan's seed and of the position: ``seek(epoch, step)`` starts there, and
    each later ``iter()`` walks the next epoch.  A sampler cannot know which batch a loop has reached, because workers
    read ahead, so your checkpoint keeps epoch and step.  All processes together get what one process would.

    Args:
        plan: of this module, :mod:`corsd.pairs` or :mod:`shared_core.data.sampling`.
        number, processes: this process and how many there are; default: those of torch.distributed.  Where accelerate
            prepares the loader, which deals batches out by itself, leave the loader out of ``prepare``.
        group: images in a row that stay on one process: 2 where neighbours are mixed, 2 * views with views.

    Raises:
        ValueError: from ``iter()`` and ``len()``, if a batch does not divide into groups for all processes.
    """

    def __init__(
        self, plan: Plan, number: int | None = None, processes: int | None = None, group: int = 1
    ) -> None:
        number, processes = (
            rank() if number is None else number,
            world_size() if processes is None else processes,
        )
        self.batches = Batches(plan, number, processes, group)

    def seek(self, epoch: int, step: int = 0) -> None:
        """The next ``iter()`` starts at batch ``step`` of ``epoch``; both count from 0."""
        self.batches.seek(epoch, step)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for keys in self.batches:
            yield [key.index for key in keys]


def _appearances(
    sizes: Int[Tensor, " classes"], batches: int, chosen: int, generator: torch.Generator
) -> Int[Tensor, " classes"]:
    """In how many batches each class is: its share, rounded at random to a whole number, the sum being exact."""
    largest = sizes.sort(descending=True)
    left, total = batches * chosen, int(sizes.sum())
    # A class cannot be in more batches than there are; what it would have had falls to the others.
    capped = 0
    for size in largest.values.tolist():
        if size * left <= batches * total:
            break
        capped, left, total = capped + 1, left - batches, total - size
    counts = torch.full_like(sizes, batches)
    free = largest.indices[capped:][torch.randperm(len(sizes) - capped, generator=generator)]
    if len(free):
        # Systematic rounding in whole numbers: the marks of a ruler that fall into each class's piece.
        ends = sizes[free].cumsum(0) * left + torch.randint(total, (), generator=generator)
        marks = ends.div(total, rounding_mode="floor")
        counts[free] = marks.diff(prepend=marks.new_zeros(1))
    return counts


def _spread(
    counts: Int[Tensor, " classes"], batches: int, chosen: int, generator: torch.Generator
) -> Int[Tensor, "batches chosen"]:
    """Which classes each batch holds: ``chosen`` different ones, class c in ``counts[c]`` batches.

    All appearances in a line, class after class, are cut into ``chosen`` rows with a column per batch, and each row is
    shuffled.  A class is in one row or, where it was cut, in two; there it takes columns that it has not yet.
    """
    order = torch.randperm(len(counts), generator=generator)
    line = order.repeat_interleave(counts[order]).view(chosen, batches)
    rows = torch.empty_like(line)
    for number, row in enumerate(line):
        columns = torch.randperm(batches, generator=generator)
        has_it = rows[number - 1][columns] == row[0] if number else torch.zeros(batches, dtype=torch.bool)
        first = columns[~has_it][: int((row == row[0]).sum())]
        rest = torch.ones(batches, dtype=torch.bool).index_fill_(0, first, False).nonzero().squeeze(1)
        rest = rest[torch.randperm(len(rest), generator=generator)]
        rows[number, torch.cat([first, rest])] = row
    return rows.T


def _earlier(chosen: Int[Tensor, "batches classes"]) -> Int[Tensor, "batches classes"]:
    """How often each entry's class stands in the rows above."""
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat)
    number = torch.arange(len(flat)) - (counts.cumsum(0) - counts)[flat[order]]
    return torch.empty_like(flat).scatter_(0, order, number).view_as(chosen)


def _rounds(
    batches: int, rounds: int, classes: int, generator: torch.Generator
) -> Int[Tensor, "batches rounds classes"]:
    """Places of all classes in every round, in random order; neighbours 2k and 2k + 1 of a batch differ."""
    order = torch.rand(batches, rounds, classes, generator=generator).argsort(2)
    if classes % 2:
        # Here a pair reaches from one round into the next: before each odd round.
        first, second = order[:, 1::2, 0].clone(), order[:, 1::2, 1].clone()
        met = order[:, 0::2, -1][:, : first.shape[1]] == first
        order[:, 1::2, 0], order[:, 1::2, 1] = (
            torch.where(met, second, first),
            torch.where(met, first, second),
        )
    return order
