"""Area under the ROC curve of the relations that a method has learned, at every stage: do they tell classes apart?

>>> images, labels = some_of_each(data.test, most=2_000)
>>> relation_areas(method, images, labels, data.preprocess)
{'layer1': 0.71, 'layer2': 0.78, 'layer3': 0.86, 'layer4': 0.93}
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int, Shaped
from shared_core.data.labels import labels_of
from shared_core.data.loader import test_loader
from shared_core.ops.host import read_back
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from corsd.baselines.contrastive import ContrastiveSupervision
from corsd.distiller import Distiller
from corsd.pairs import in_batch_triplets
from corsd.relation import Relation, Triplets
from corsd.relation_matrix import stage_maps
from corsd.relational import RelationalDistiller
from corsd.rows import cosine_relations, pair_auc, relation_auc

WATCHED, JUDGED = 500, 2_000
"""At most so many images are compared now and then in a training, and so many test images after it."""
CHUNK = 250
Prepare = Callable[[Tensor], Tensor]


def learns_relations(method: nn.Module) -> bool:
    """Whether :func:`relation_areas` has something to say of this method."""
    return isinstance(method, Distiller | ContrastiveSupervision) or (
        isinstance(method, RelationalDistiller) and method.weights.rows > 0
    )


@torch.no_grad()
def relation_areas(
    method: nn.Module,
    images: Shaped[Tensor, "images ..."],
    labels: Int[Tensor, " images"],
    prepare: Prepare = lambda images: images,
) -> dict[str, float]:
    """The probability that a same-class pair is more alike than an other-class pair, by the stage's name.

    0.5 is chance and 1 perfect.  Methods with an embedding per image compare all pairs; version 1 compares one
    same-class and one other-class pair for each image, among up to 250 others.  Nothing of the method changes.

    Args:
        labels: on the CPU.
        prepare: brings up to 250 images to the method's device as its input.

    Returns:
        {} for a method that learns no relations, or images without a pair of each kind.
    """
    counts = torch.bincount(labels)
    if not learns_relations(method) or (counts > 0).sum() < 2 or counts.max() < 2:
        return {}
    modes = {module: module.training for module in method.modules()}
    method.eval()
    try:
        areas = (_of_pairs if isinstance(method, Distiller) else _of_rows)(method, images, labels, prepare)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not areas:
        return {}
    values = read_back(torch.stack(areas), "how well do relations tell classes apart?").tolist()
    stages: Any = method.stages
    return dict(zip((stage.name for stage in stages), values, strict=True))


def some_of_each(dataset: Dataset, most: int) -> tuple[Tensor, Int[Tensor, " images"]]:
    """At most ``most`` images, evenly spread over classes and over each class's images; at least four of a class.

    With many classes only some of them, evenly spread, so that there are pairs of one class to compare.
    """
    labels = labels_of(dataset)
    places = [p for p in labels.argsort(stable=True).split(torch.bincount(labels).tolist()) if len(p)]
    each = max(4, most // len(places))
    chosen = [places[i] for i in _evenly(len(places), most // each)]
    indices = torch.cat([p[_evenly(len(p), each)] for p in chosen]).sort().values.tolist()
    batches = list(test_loader(Subset(dataset, indices), CHUNK))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def _evenly(count: int, wanted: int) -> Int[Tensor, " places"]:
    """Up to ``wanted`` places among ``count``, at even distances."""
    wanted = max(1, min(count, wanted))
    return torch.arange(wanted) * count // wanted


def _of_rows(method: Any, images: Tensor, labels: Tensor, prepare: Prepare) -> list[Tensor]:
    parts = [method.embeddings(prepare(chunk)) for chunk in images.split(CHUNK)]
    stages = [torch.cat(stage) for stage in zip(*parts, strict=True)]
    labels = labels.to(stages[0].device)
    return [relation_auc(cosine_relations(stage), labels) for stage in stages]


def _of_pairs(method: Any, images: Tensor, labels: Tensor, prepare: Prepare) -> list[Tensor]:
    """Of batches, like those it learns from: maps of all images at once would take gigabytes."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    found: list[list[Relation]] = [[] for _ in method.stages]
    for part in order.split(CHUNK):
        rows = in_batch_triplets(labels[part], len(part), generator)
        if len(rows.anchor) == 0:
            continue
        maps = stage_maps(method, prepare(images[part]))
        rows = Triplets(*(r.to(maps[0].device) for r in rows))
        for stage, network in enumerate(method.relations):
            found[stage].append(network(maps[stage], rows))
    # A small relation is a pair of one class.
    return [
        pair_auc(-torch.cat([r.same for r in stage]), -torch.cat([r.other for r in stage]))
        for stage in found
        if stage
    ]
