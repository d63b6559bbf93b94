"""The relations between all classes that a distiller has learned, one matrix per stage."""

import torch
from jaxtyping import Float, Int
from shared_core.ops.features import FeatureCapture
from torch import Tensor

from corsd.distiller import Distiller
from corsd.relation import Triplets


@torch.no_grad()
def relation_matrix(
    distiller: Distiller,
    images: Float[Tensor, "images ..."],
    labels: Int[Tensor, " images"],
    num_classes: int,
    pairs: int = 4_000,
    seed: int = 0,
) -> Float[Tensor, "stages classes classes"]:
    """Mean relation of an image of class a (row) to one of class b (column), in (0, 1): low is alike.

    Args:
        images: preprocessed, on the distiller's device; not those it was trained on.
        num_classes: rows and columns; images of later classes are left out.
        pairs: how many are compared in all; at least two for each of the num_classes ** 2 ordered pairs of classes, and
            at most as many as their images make.
        seed: of the random choice of images.

    An entry is NaN where a class holds no image.  A same-class pair has two different images if the class
    does.  The networks' running statistics are used and nothing of the distiller changes.
    """
    generator = torch.Generator().manual_seed(seed)
    anchor, partner, places = _pairs(
        labels.cpu(), num_classes, max(1, pairs // (2 * num_classes**2)), generator
    )
    modes = {module: module.training for module in distiller.modules()}
    distiller.eval()
    try:
        maps = stage_maps(distiller, images)
        totals = torch.zeros(len(maps), num_classes**2, dtype=torch.float64)
        for begin in range(0, len(anchor), 256):
            part = slice(begin, begin + 256)
            rows = Triplets(
                *(r.to(images.device) for r in (anchor[part], partner[part, 0], partner[part, 1]))
            )
            for stage, network in enumerate(distiller.relations):
                found = network(maps[stage], rows)
                mean = (found.same + found.other).double().cpu() / 2
                totals[stage].index_add_(0, places[part], mean)
    finally:
        for module, mode in modes.items():
            module.training = mode
    count = torch.bincount(places, minlength=num_classes**2)
    return (totals / count).float().view(-1, num_classes, num_classes)


def _pairs(
    labels: Int[Tensor, " images"], num_classes: int, repeats: int, generator: torch.Generator
) -> tuple[Int[Tensor, " anchors"], Int[Tensor, "anchors 2"], Int[Tensor, " anchors"]]:
    """Anchors, two partners of each from one class, and the place of that pair of classes in the matrix."""
    members = [(labels == label).nonzero().squeeze(1) for label in range(num_classes)]
    anchors, partners, places = [], [], []
    for a, first in enumerate(members):
        for b, second in enumerate(members):
            if len(first) == 0 or len(second) == 0:
                continue
            others = len(second) - 1 if a == b and len(first) > 1 else len(second)
            times = min(repeats, max(1, len(first) * others // 2))
            i = torch.randint(len(first), (times,), generator=generator)
            if others < len(second):
                j = i[:, None] + torch.randint(1, len(first), (times, 2), generator=generator)
                j = j % len(first)
            else:
                j = torch.randint(len(second), (times, 2), generator=generator)
            anchors.append(first[i])
            partners.append(second[j])
            places.append(torch.full((times,), a * num_classes + b))
    return torch.cat(anchors), torch.cat(partners), torch.cat(places)


def stage_maps(distiller: Distiller, images: Tensor) -> list[Tensor]:
    """The stages' maps of images, shallow to deep, computed 250 at a time in the net's own mode."""
    capture = FeatureCapture(distiller.net, [stage.name for stage in distiller.stages])
    parts: list[list[Tensor]] = [[] for _ in distiller.stages]
    for chunk in images.split(250):
        with capture:
            distiller.net(chunk)
        features = capture.pop()
        for part, stage in zip(parts, distiller.stages, strict=True):
            part.append(stage.map(features[stage.name]))
    return [torch.cat(part) for part in parts]
