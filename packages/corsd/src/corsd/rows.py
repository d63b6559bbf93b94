"""Relations as rows over the batch: every image is compared with all others, and a row is a distribution.

g_a is the unit embedding of image a at a stage, r_ab = g_a . g_b the relation of two images, tau a temperature.  The
diagonal, where an image meets itself, is left out of every softmax and target.  Supervised contrastive learning
(Khosla et al., NeurIPS 2020) is the case of unmixed labels.

    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> targets = row_targets(labels, labels, torch.ones(4))
    >>> relation_rows(cosine_relations(embeddings), targets, tau=0.1)
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.autocast import without_autocast
from shared_core.ops.inputs import INTEGERS, check_tensor
from torch import Tensor

from corsd.frame import widened


def cosine_relations(embeddings: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch"]:
    """Return r_ab = g_a . g_b in [-1, 1], g_a the embedding of image a divided by its length."""
    check_tensor("embeddings", embeddings, "batch width")
    with without_autocast(embeddings):
        unit = F.normalize(widened(embeddings), dim=1)
        return unit @ unit.T


def row_targets(
    first: Int[Tensor, " batch"], second: Int[Tensor, " batch"], lam: Float[Tensor, " batch"]
) -> Float[Tensor, "batch batch"]:
    """Return t_ab = y_a . y_b / sum_{c != a} y_a . y_c, t_aa = 0; a row without a match is 0.

    y_a = lam_a e_first(a) + (1 - lam_a) e_second(a) is the label of a (mixed) image; lam = 1 is an unmixed one.  The
    cost does not depend on the number of classes.
    """
    check_tensor("lam", lam, "batch")
    for name, labels in (("first", first), ("second", second)):
        check_tensor(name, labels, "batch", "one class per image", INTEGERS, batch=len(lam))
    shares = ((first, widened(lam)), (second, 1 - widened(lam)))
    overlap = sum(p[:, None] * q[None] * (a[:, None] == b[None]) for a, p in shares for b, q in shares)
    overlap = torch.as_tensor(overlap).masked_fill(_diagonal(first), 0)
    total = overlap.sum(1, keepdim=True)
    return torch.where(total > 0, overlap / torch.where(total > 0, total, 1), 0)


def relation_rows(
    relations: Float[Tensor, "batch batch"], targets: Float[Tensor, "batch batch"], tau: float = 0.1
) -> Float[Tensor, ""]:
    """Return -mean_a sum_{b != a} t_ab log p_ab, p_ab = softmax over b != a of r_ab / tau.

    The mean is over the rows that have a target; without any the loss is 0.
    """
    check_tensor("relations", relations, "batch batch", batch=_rows(relations))
    check_tensor("targets", targets, "batch batch", batch=_rows(relations))
    with without_autocast(relations):
        targets = targets.to(widened(relations).dtype)
        loss = -(targets * _log_rows(relations, tau)).sum(1)
        return loss.sum() / (targets.sum(1) > 0).sum().clamp_min(1)


def row_distillation(
    shallow: Float[Tensor, "batch batch"], deep: Float[Tensor, "batch batch"], tau: float = 0.1
) -> Float[Tensor, ""]:
    """Return mean_a KL(p_a of the deep stage || p_a of the shallow stage); the deep stage gets no gradient.

    The rows p_a are those of :func:`relation_rows`.
    """
    check_tensor("shallow", shallow, "batch batch", batch=_rows(shallow))
    check_tensor("deep", deep, "batch batch", batch=_rows(shallow))
    with without_autocast(shallow):
        teacher, student = _log_rows(deep.detach(), tau), _log_rows(shallow, tau)
        # The diagonal is 0 in both logarithms, so it adds nothing.
        return (teacher.exp() * (teacher - student)).sum() / max(len(shallow), 1)


def relation_auc(relations: Float[Tensor, "batch batch"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Return the area under the ROC curve of same-class against other-class pairs, each pair counted once.

    It is the probability that a same-class pair has the larger relation; ties count one half.  0.5 is chance, NaN
    means that one of the two kinds is absent.  Nothing is read back from the device.
    """
    check_tensor("relations", relations, "batch batch", batch=_rows(relations))
    check_tensor("labels", labels, "batch", "one class per image", INTEGERS, batch=len(relations))
    pair = torch.ones_like(_diagonal(labels)).triu(1)
    same = pair & (labels[:, None] == labels[None])
    other = pair & (labels[:, None] != labels[None])
    values = widened(relations.detach()).flatten()
    # Fixed shapes: what is no other-class pair goes to the end, above every relation.
    sorted_other = torch.where(other.flatten(), values, float("inf")).sort().values
    below = torch.searchsorted(sorted_other, values)
    ties = torch.searchsorted(sorted_other, values, right=True) - below
    wins = (below + ties / 2).to(values.dtype)[None] @ same.flatten().to(values.dtype)[:, None]
    return (wins / (same.sum() * other.sum())).reshape(())


def pair_auc(same: Float[Tensor, " same"], other: Float[Tensor, " other"]) -> Float[Tensor, ""]:
    """Return the probability that a value of ``same`` is larger than one of ``other``; ties count one half.

    The area under the ROC curve of pairs that are given one by one; NaN where one kind is absent.
    """
    values, others = widened(same.detach()), widened(other.detach()).sort().values
    below = torch.searchsorted(others, values)
    ties = torch.searchsorted(others, values, right=True) - below
    return (below + ties / 2).to(values.dtype).mean() / len(others)


def _rows(x: Any) -> int:
    return len(x) if isinstance(x, Tensor) and x.dim() else 0


def _log_rows(relations: Tensor, tau: float) -> Tensor:
    """log softmax of each row without the diagonal, where 0 stands."""
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it must be above 0")
    scaled, diagonal = widened(relations) / tau, _diagonal(relations)
    # A finite number: a row of -inf alone (a batch of one image) would have no gradient.
    hidden = scaled.masked_fill(diagonal, torch.finfo(scaled.dtype).min / 2)
    return hidden.log_softmax(1).masked_fill(diagonal, 0)


def _diagonal(x: Tensor) -> Tensor:
    return torch.eye(len(x), dtype=torch.bool, device=x.device)
