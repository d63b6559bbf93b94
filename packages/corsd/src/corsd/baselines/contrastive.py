"""Contrastive deep supervision: stages learn by supervised contrast instead of labels (Zhang et al., ECCV 2022).

    L = CE(z, y) + weight sum_i SupCon_tau(g_i),    g_i = projection head of stage i, weight = 0.1, tau = 0.07

Positives are all other images of the class in the batch.  A second view of an image is such an image: batches that
hold two views of each (the paper's, ``views: 2`` in ``corsd train``) have a positive for every image; ordinary
batches have those that chance puts there, and images without one are left out of the mean.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.gather import all_gather
from shared_core.ops.inputs import check_tensor
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.exits import trunks
from corsd.frame import labels_for, maps_of, own_type, tapped, widened
from corsd.relation import Norm
from corsd.rows import cosine_relations, relation_rows, row_targets


def supervised_contrast(
    embeddings: Float[Tensor, "batch width"], labels: Int[Tensor, " batch"], tau: float = 0.07
) -> Float[Tensor, ""]:
    """Return SupCon: mean_a -1/|P(a)| sum_{p in P(a)} log softmax_{b != a}(g_a . g_b / tau)_p, g of unit length.

    P(a) are the other images of the class of a; the mean is over images with at least one, 0 without any.
    """
    check_tensor("embeddings", embeddings, "batch width")
    labels = class_numbers(labels, len(embeddings)).to(embeddings.device)
    certain = torch.ones_like(labels, dtype=widened(embeddings).dtype)
    return relation_rows(cosine_relations(embeddings), row_targets(labels, labels, certain), tau)


class ContrastiveSupervision(nn.Module):
    """Contrastive deep supervision around a net, with a trunk and a two-layer projection head per stage.

    Contrast ranges over the images of all processes.  ``stages`` and ``example`` are those of
    :func:`corsd.stages.find_stages`, ``norm`` is of the trunks, ``embedding`` the width of what is compared.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        stages: Sequence[str] | Literal["auto"] = "auto",
        example: Float[Tensor, "batch ..."] | None = None,
        weight: float = 0.1,
        tau: float = 0.07,
        embedding: int = 128,
        norm: Norm = "batch",
        output: Which = None,
    ):
        super().__init__()
        if not tau > 0 or embedding < 1:
            raise ValueError(
                f"tau={tau} and embedding={embedding}; tau must be above 0, embedding at least 1"
            )
        self.net, self.num_classes, self.output = net, num_classes, output
        self.weight, self.tau = weight, tau
        self.stages, self.capture = tapped(
            net, "ContrastiveSupervision", num_classes, stages, example, output
        )
        channels = [stage.channels for stage in self.stages]
        width = channels[-1]
        self.trunks = trunks(channels[:-1], width, norm).to(**own_type(net))
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embedding)) for _ in channels
        ).to(**own_type(net))

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        """Logits of the net, and the losses of a batch; ``index`` is ignored."""
        logits, maps = maps_of(self.net, images, self.output, self.stages, self.capture, self.projections)
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        everyone = all_gather(labels)
        contrast = [supervised_contrast(all_gather(g), everyone, self.tau) for g in self._embed(maps)]
        ce = F.cross_entropy(widened(logits), labels)
        return summed(logits, {"ce": ce, "contrast": self.weight * torch.stack(contrast).sum()})

    @torch.no_grad()
    def embeddings(self, images: Tensor) -> list[Float[Tensor, "batch width"]]:
        """What is compared, shallow to deep, for :func:`corsd.rows.relation_auc`."""
        return self._embed(
            maps_of(self.net, images, self.output, self.stages, self.capture, self.projections)[1]
        )

    def _embed(self, maps: list[Tensor]) -> list[Tensor]:
        read = [*(trunk(m) for trunk, m in zip(self.trunks, maps[:-1], strict=True)), maps[-1]]
        return [project(m.mean((2, 3))) for project, m in zip(self.projections, read, strict=True)]
