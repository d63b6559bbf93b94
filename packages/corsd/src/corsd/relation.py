"""Trainable relations: the network that compares two images at one stage, and the one that compares logits.

A relation network reads the stage's maps of an ordered pair, joined along the channels, and returns

- a *relation* in (0, 1), trained to be small for a same-class pair and large for an other-class pair, and
- *auxiliary logits* over the K classes: which classes does the pair hold? (the class-oriented part).

The first block is linear up to its first normalisation, so it splits into one part per image: an anchor that
stands in two pairs is convolved once, and no pair of full-size maps is ever built.  The result is that of the
plain form on joined maps (a test holds the two together).
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Norm = Literal["batch", "group"]


class Triplets(NamedTuple):
    """Rows of a batch: an anchor, an image of the same class, an image of another class."""

    anchor: Int[Tensor, " triplets"]
    positive: Int[Tensor, " triplets"]
    negative: Int[Tensor, " triplets"]


class Relation(NamedTuple):
    """What a relation network says of T triplets, that is of T same-class and T other-class pairs."""

    same: Float[Tensor, " triplets"]
    other: Float[Tensor, " triplets"]
    same_logits: Float[Tensor, "triplets classes"]
    other_logits: Float[Tensor, "triplets classes"]


class RelationNetwork(nn.Module):
    """Compares two images by their maps at one stage.

    Args:
        channels: channels C of the stage's map.
        widths: channels after each halving block; the last is the width of the pair's vector.  Empty for the
            deepest stage, whose vector is the two pooled maps joined (2 C wide).
        num_classes: K of the auxiliary classifier.
        hidden: width of the relation head.
        norm: "batch" as in the released code, or "group", which makes every pair independent of the others.
        attention: weigh the map by a learned sigmoid mask first.
    """

    def __init__(
        self,
        channels: int,
        widths: list[int],
        num_classes: int,
        hidden: int,
        norm: Norm = "batch",
        attention: bool = False,
    ):
        super().__init__()
        self.attention = Attention(channels, norm) if attention else None
        self.first = PairBlock(channels, widths[0], norm) if widths else None
        self.blocks = nn.Sequential(*(SeparableBlock(a, b, norm) for a, b in pairwise(widths)))
        vector = widths[-1] if widths else 2 * channels
        self.relation = nn.Sequential(
            nn.Linear(vector, hidden),
            _norm(norm, hidden, nn.BatchNorm1d),
            nn.ReLU(),
            nn.Linear(hidden, 1),
            nn.Sigmoid(),
        )
        self.classifier = nn.Linear(vector, num_classes)

    def vectors(
        self,
        first: Float[Tensor, "triplets channels height width"],
        second: Float[Tensor, "pairs channels height width"],
    ) -> Float[Tensor, "pairs vector"]:
        """Vectors of the pairs (first[i mod T], second[i]): every image of ``first`` meets pairs / T others."""
        if self.attention is not None:
            first, second = self.attention(first), self.attention(second)
        repeats = len(second) // len(first)
        if self.first is None:
            left, right = first.mean((2, 3)), second.mean((2, 3))
            return torch.cat([left.repeat(repeats, 1), right], 1)
        return self.blocks(self.first(first, second, repeats)).mean((2, 3))

    def forward(self, maps: Float[Tensor, "batch channels height width"], triplets: Triplets) -> Relation:
        """Relations and auxiliary logits of both pairs of each triplet, in one pass.

        The one pass means that batch norm takes its statistics over both kinds of pairs.  The released code
        normalises the two kinds apart, which hides from the network how they differ.
        """
        first = maps[triplets.anchor]
        second = maps[torch.cat([triplets.positive, triplets.negative])]
        vectors = self.vectors(first, second)
        same, other = self.relation(vectors).squeeze(1).chunk(2)
        same_logits, other_logits = self.classifier(vectors).chunk(2)
        return Relation(same, other, same_logits, other_logits)


class PairBlock(nn.Module):
    """A separable block on two joined maps: 2 C channels in, half the size and ``out`` channels out.

    ``depthwise`` and ``pointwise`` are the plain block's weights over 2 C channels; their halves are applied
    to the images of each role before the pairs are put together.
    """

    def __init__(self, channels: int, out: int, norm: Norm):
        super().__init__()
        self.channels = channels
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, 2, 1, groups=2 * channels, bias=False)
        self.pointwise = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.norm = _norm(norm, 2 * channels)
        self.expand = _separable(2 * channels, out, 1)
        self.out_norm = _norm(norm, out)

    def forward(
        self,
        first: Float[Tensor, "triplets channels height width"],
        second: Float[Tensor, "pairs channels height width"],
        repeats: int,
    ) -> Float[Tensor, "pairs out half_height half_width"]:
        c = self.channels
        left = self._half(first, slice(0, c))
        right = self._half(second, slice(c, 2 * c))
        joined = left.repeat(repeats, 1, 1, 1) + right
        return F.relu(self.out_norm(self.expand(F.relu(self.norm(joined)))))

    def _half(self, images: Tensor, channels: slice) -> Tensor:
        x = F.conv2d(images, self.depthwise.weight[channels], stride=2, padding=1, groups=self.channels)
        return F.conv2d(x, self.pointwise.weight[:, channels])


class SeparableBlock(nn.Module):
    """Halves the map and changes its channels by two separable convolutions (section 1.4 of the method)."""

    def __init__(self, channels: int, out: int, norm: Norm):
        super().__init__()
        self.reduce = _separable(channels, channels, 2)
        self.norm = _norm(norm, channels)
        self.expand = _separable(channels, out, 1)
        self.out_norm = _norm(norm, out)

    def forward(self, x: Float[Tensor, "pairs channels height width"]) -> Tensor:
        x = F.relu(self.norm(self.reduce(x)))
        return F.relu(self.out_norm(self.expand(x)))


class Attention(nn.Module):
    """A sigmoid mask from a separable block, brought back to the map's size and multiplied onto it."""

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        self.block = nn.Sequential(_separable(channels, channels, 2), _norm(norm, channels), nn.ReLU())

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Tensor:
        mask = F.interpolate(self.block(maps), size=maps.shape[2:], mode="bilinear", align_corners=False)
        return maps * mask.sigmoid()


class LogitRelation(nn.Module):
    """Equation 6: relates the softmax of an image to its class prototype and to another class's.

    ``prototypes`` starts at the identity.  "mean" keeps the mean of all softmax outputs seen per class, "ema"
    forgets old ones, "sum" is the released code's unbounded running sum.
    """

    prototypes: Float[Tensor, "classes classes"]

    def __init__(self, num_classes: int, prototype: str = "mean", norm: Norm = "batch", decay: float = 0.99):
        super().__init__()
        self.prototype, self.decay = prototype, decay
        self.project = nn.Linear(2 * num_classes, 1)
        # A group of one value has no spread: without batch statistics the value is passed on as it is.
        self.norm = nn.BatchNorm1d(1) if norm == "batch" else nn.Identity()
        self.scale = nn.Linear(1, 1)
        self.register_buffer("prototypes", torch.eye(num_classes))

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        own: Int[Tensor, " batch"],
        other: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """g(softmax, own prototype) - g(softmax, other prototype) per image, in (-1, 1); lower is better."""
        softmax = (logits if logits.dtype == torch.float64 else logits.float()).softmax(1)
        # Only the rows of this batch: all K x K would cost more than the net where classes are many.
        rows = self.prototypes[torch.cat([own, other])]
        if self.prototype == "mean":
            rows = rows / rows.sum(1, keepdim=True)
        # The layer on (softmax, row) in its two halves: each softmax once, and no joined copy of both.
        dtype, classes = self.project.weight.dtype, logits.shape[1]
        of_softmax, of_row = self.project.weight.split(classes, 1)
        left = F.linear(softmax.to(dtype), of_softmax, self.project.bias)
        pairs = left.repeat(2, 1) + F.linear(rows.to(dtype), of_row)
        value = torch.sigmoid(self.scale(F.relu(self.norm(pairs)))).squeeze(1)
        return value[: len(logits)] - value[len(logits) :]

    @torch.no_grad()
    def update(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> None:
        """Take the images of one (global) batch into the prototypes of their classes.

        Images whose logits are not finite (a step that a loss scaler leaves out) add nothing: one of them would
        make every later loss of its class not a number.
        """
        softmax = logits.to(self.prototypes.dtype).softmax(1)
        finite = softmax.isfinite().all(1)
        softmax = torch.where(finite[:, None], softmax, 0.0)
        # Sums of the classes of this batch, each in the row of its first image; no other row is touched.
        same = labels[:, None] == labels[None, :]
        first = same.to(torch.uint8).argmax(1)
        total = torch.zeros_like(softmax).index_add_(0, first, softmax)
        if self.prototype == "ema":
            counted = (same & finite).sum(1, keepdim=True)
            rows = self.prototypes[labels]
            moved = rows.lerp(total[first] / counted.clamp_min(1), 1 - self.decay)
            self.prototypes[labels] = torch.where(counted > 0, moved, rows)
        else:
            self.prototypes.index_add_(0, labels, total)

    def _apply(self, fn, recurse=True):
        kept = self.prototypes
        super()._apply(fn, recurse)
        if self.prototypes.dtype in (torch.float16, torch.bfloat16):
            # A running sum in half precision stops growing after some hundred images.
            self.prototypes = kept.to(self.prototypes.device, torch.float32)
        return self


def relation_networks(
    channels: list[int], num_classes: int, norm: Norm = "batch", attention: bool = False
) -> nn.ModuleList:
    """One network per stage, shallow to deep; stage i of S halves its maps S - 1 - i times.

    Vectors of all stages end at twice the deepest stage's channels, reached by equal factors: for a residual
    net, whose channels double from stage to stage, every block doubles them.
    """
    deepest = 2 * channels[-1]
    networks = []
    for depth, c in enumerate(channels):
        blocks = len(channels) - 1 - depth
        factor = (deepest / (2 * c)) ** (1 / max(blocks, 1))
        widths = [_multiple_of_8(2 * c * factor ** (i + 1)) for i in range(blocks)]
        vector = widths[-1] if widths else deepest
        hidden = max(vector // (8 if blocks else 4), 8)
        networks.append(RelationNetwork(c, widths, num_classes, hidden, norm, attention))
    return nn.ModuleList(networks)


def _separable(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.Conv2d(channels, out, 1, bias=False),
    )


def _norm(kind: Norm, channels: int, batch_norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    if kind == "group":
        # Groups of eight channels at least: where one value stands for a channel (vectors, maps of one pixel)
        # a smaller group would leave only signs, and a group of one value nothing at all.
        return nn.GroupNorm(8 if channels % 64 == 0 else 1, channels)
    return batch_norm(channels)


def _multiple_of_8(width: float) -> int:
    return max(8, 8 * round(width / 8))
