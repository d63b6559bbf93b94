"""Structured input: which images are compared.

Two forms.  *Triplets*, the method's own: every batch is a row of (anchor, positive, negative) images, chosen
by :func:`triplet_plan` for our loader or made by :class:`TripletDataset` for yours.  *In-batch* (ours): the
pairs are found among the images that an ordinary batch holds, so that no extra image is read.
"""

from collections.abc import Iterator, Sequence, Sized

import torch
from jaxtyping import Int
from shared_core.data.labels import as_labels
from shared_core.data.sampling import Plan
from shared_core.ops.host import read_back
from shared_core.ops.targets import class_numbers
from torch import Tensor
from torch.utils.data import Dataset

from corsd.relation import Triplets


def triplet_rows(labels: Int[Tensor, " batch"]) -> Triplets:
    """The triplets of a batch in the order anchor, positive, negative, anchor, positive, negative, ...

    Raises:
        ValueError: the batch has another form (its labels do not fit that order).
    """
    labels = class_numbers(labels)
    known = read_back(labels, "which classes does the batch hold?")
    a, p, n = known[0::3], known[1::3], known[2::3]
    if len(labels) == 0 or len(labels) % 3 or bool(((a != p) | (a == n)).any()):
        raise ValueError(
            "pairs='triplets' needs batches in the order anchor, positive (same class), negative (other "
            f"class), repeated; got {len(labels)} labels starting {known[:6].tolist()}. "
            "Use corsd.triplet_plan or corsd.TripletDataset, or pass pairs='in_batch'"
        )
    rows = torch.arange(0, len(labels), 3, device=labels.device)
    return Triplets(rows, rows + 1, rows + 2)


def in_batch_triplets(labels: Int[Tensor, " batch"], count: int, generator: torch.Generator) -> Triplets:
    """Up to ``count`` triplets of images that the batch already holds; random among the possible ones.

    Anchors differ as long as there are enough images with a partner of each kind, then they repeat with other
    partners.  A batch without a same-class pair, or of one class, gives no triplets.
    """
    labels = read_back(class_numbers(labels), "which classes does the batch hold?")
    size = len(labels)
    same = labels[:, None] == labels[None, :]
    other = ~same
    same.fill_diagonal_(False)
    able = (same.any(1) & other.any(1)).nonzero().squeeze(1)
    if len(able) == 0:
        return Triplets(able, able, able)
    rounds = [able[torch.randperm(len(able), generator=generator)] for _ in range(-(-count // len(able)))]
    anchor = torch.cat(rounds)[:count]
    # The highest of independent uniform scores is a uniform choice among the allowed partners.
    scores = torch.rand(2, len(anchor), size, generator=generator)
    positive = scores[0].masked_fill(~same[anchor], -1).argmax(1)
    negative = scores[1].masked_fill(~other[anchor], -1).argmax(1)
    return Triplets(anchor, positive, negative)


def other_classes(
    labels: Int[Tensor, " batch"], num_classes: int, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """For every label another class, uniform over the K - 1 others."""
    shift = torch.randint(1, num_classes, (len(labels),), generator=generator)
    return (labels + shift.to(labels.device)) % num_classes


def triplet_plan(labels: Tensor | Sequence[int], anchors: int, seed: int) -> Plan:
    """A plan of batches of ``anchors`` triplets: every image is an anchor once an epoch, in random order.

    The positive is another image of the anchor's class (the image itself, drawn anew, where it is alone), the
    negative an image of a uniformly chosen other class.  An epoch reads three times the images of the data
    set: count budgets in images, not in epochs.

    Raises:
        ValueError: fewer images than ``anchors``, or fewer than two classes that hold images.
    """
    labels = as_labels(labels)
    members = _members(labels)
    _check_anchors(anchors)
    if len(labels) < anchors:
        raise ValueError(f"{len(labels)} images are fewer than the {anchors} anchors of one batch")
    classes = torch.tensor(sorted(members))

    def plan(epoch: int) -> Int[Tensor, "batches batch 2"]:
        generator = _generator(seed, epoch)
        count = len(labels) // anchors * anchors
        anchor = torch.randperm(len(labels), generator=generator)[:count]
        positive = _partners(labels, anchor, members, generator)
        own = torch.searchsorted(classes, labels[anchor])
        shift = torch.randint(1, len(classes), (count,), generator=generator)
        negative = _choose(classes[(own + shift) % len(classes)], members, generator)
        rows = torch.stack([anchor, positive, negative], 1).reshape(-1, 3 * anchors)
        # The place in the epoch tells several draws of one image apart, so each is augmented anew.
        draw = torch.arange(rows.numel()).view_as(rows)
        return torch.stack([rows, draw], 2)

    return plan


def class_pair_plan(labels: Tensor | Sequence[int], anchors: int, seed: int) -> Plan:
    """Batches of ``anchors`` pairs (image, another image of its class), every image first once an epoch."""
    labels = as_labels(labels)
    members = _members(labels, least=1)
    _check_anchors(anchors)
    if len(labels) < anchors:
        raise ValueError(f"{len(labels)} images are fewer than the {anchors} anchors of one batch")

    def plan(epoch: int) -> Int[Tensor, "batches batch 2"]:
        generator = _generator(seed, epoch)
        anchor = torch.randperm(len(labels), generator=generator)[: len(labels) // anchors * anchors]
        positive = _partners(labels, anchor, members, generator)
        rows = torch.stack([anchor, positive], 1).reshape(-1, 2 * anchors)
        return torch.stack([rows, torch.arange(rows.numel()).view_as(rows)], 2)

    return plan


def last_batch_plan(num_images: int, fresh: int, seed: int) -> Plan:
    """Batches of pairs (new image, image of the last batch drawn anew): ``fresh`` of each."""
    if num_images < fresh:
        raise ValueError(f"{num_images} images are fewer than the {fresh} new ones of one batch")

    def plan(epoch: int) -> Int[Tensor, "batches batch 2"]:
        order = torch.randperm(num_images, generator=_generator(seed, epoch))
        now = order[: num_images // fresh * fresh].view(-1, fresh)
        rows = torch.stack([now, now.roll(1, 0)], 2).flatten(1)
        return torch.stack([rows, torch.arange(rows.numel()).view_as(rows)], 2)

    return plan


class TripletDataset(Dataset):
    """Items of three images and their three labels, for a loader of your own.

    ``labels[i]``, of any integer type, is the class of ``dataset[i][0]``.  Collate with
    :func:`collate_triplets`.  Random choices come from torch's global generator, so that a DataLoader's workers
    draw differently.
    """

    def __init__(self, dataset: Dataset, labels: Tensor | Sequence[int]):
        self.dataset, self.labels = dataset, as_labels(labels)
        if isinstance(dataset, Sized) and len(dataset) != len(self.labels):
            raise ValueError(f"there are {len(self.labels)} labels for {len(dataset)} images")
        self.members = _members(self.labels)
        self.classes = sorted(self.members)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        label = int(self.labels[index])
        place = int(torch.randint(len(self.classes) - 1, ()))
        other = self.classes[place + (self.classes[place] >= label)]
        same = self.members[label]
        rest = same[same != index] if len(same) > 1 else same
        positive = int(rest[torch.randint(len(rest), ())])
        negative = int(self.members[other][torch.randint(len(self.members[other]), ())])
        images = [self.dataset[i][0] for i in (index, positive, negative)]
        return images, [label, label, other]


def collate_triplets(items: list) -> tuple[Tensor, Int[Tensor, " batch"]]:
    """Items of :class:`TripletDataset` as one batch in the order anchor, positive, negative, anchor, ..."""
    shapes = {tuple(image.shape) for item, _ in items for image in item}
    if len(shapes) > 1:
        raise ValueError(
            f"images of one batch must have one shape; got {', '.join(map(str, sorted(shapes)))}"
        )
    images = torch.stack([image for item, _ in items for image in item])
    return images, torch.tensor([label for _, item in items for label in item])


def _members(labels: Tensor, least: int = 2) -> dict[int, Tensor]:
    members = {c: places for c, places in _by_class(labels) if len(places)}
    if len(members) < least:
        raise ValueError(
            f"pairs need images of at least {least} classes; the labels hold {sorted(members) or 'none'}"
        )
    return members


def _by_class(labels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each class up to the last, and its places in ascending order; one sort, for millions of images."""
    places = labels.argsort(stable=True)
    counts = torch.bincount(labels) if len(labels) else torch.zeros(0, dtype=torch.int64)
    return enumerate(places.split(counts.tolist()))


def _partners(labels: Tensor, anchor: Tensor, members: dict[int, Tensor], generator) -> Tensor:
    """For every anchor another image of its class; itself where the class has no other."""
    chosen = torch.empty_like(anchor)
    rows_of = dict(_by_class(labels[anchor]))
    for c, images in members.items():
        rows = rows_of.get(c, anchor[:0])
        place = torch.searchsorted(images, anchor[rows])
        step = torch.randint(1, max(len(images), 2), (len(rows),), generator=generator)
        chosen[rows] = images[(place + step) % len(images)]
    return chosen


def _choose(classes: Tensor, members: dict[int, Tensor], generator) -> Tensor:
    chosen = torch.empty_like(classes)
    rows_of = dict(_by_class(classes))
    for c, images in members.items():
        rows = rows_of.get(c, classes[:0])
        chosen[rows] = images[torch.randint(len(images), (len(rows),), generator=generator)]
    return chosen


def _check_anchors(anchors: int) -> None:
    if anchors < 1:
        raise ValueError(f"anchors={anchors}; a batch has at least one")


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
