"""Handcrafted relations of a batch's features: RKD, SP and PKT, the teacher's features detached by the caller."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from shared_core.ops.inputs import check_tensor
from torch import Tensor


def rkd(
    student: Float[Tensor, "batch channels"], teacher: Float[Tensor, "batch channels"]
) -> Float[Tensor, ""]:
    """Relational knowledge distillation (CVPR 2019): 25 Huber of distances / their mean + 50 Huber of angles."""
    check_tensor("student", student, "batch channels")
    check_tensor("teacher", teacher, "batch channels", "of the same images", batch=len(student))
    return 25 * F.smooth_l1_loss(_distances(student), _distances(teacher)) + 50 * F.smooth_l1_loss(
        _angles(student), _angles(teacher)
    )


def similarity_preserving(
    student: Float[Tensor, "batch channels"], teacher: Float[Tensor, "batch channels"]
) -> Float[Tensor, ""]:
    """SP (ICCV 2019): 3000 |G_t - G_s|_F^2 / b^2, G the row-normalised Gram matrix of the batch."""
    check_tensor("student", student, "batch channels")
    check_tensor("teacher", teacher, "batch channels", "of the same images", batch=len(student))
    gram_s, gram_t = F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1)
    return 3000 * (gram_t - gram_s).square().mean()


def probabilistic_transfer(
    student: Float[Tensor, "batch channels"], teacher: Float[Tensor, "batch channels"]
) -> Float[Tensor, ""]:
    """PKT (ECCV 2018): 30000 mean of S_t log(S_t / S_s), S the row-normalised (cosine + 1) / 2 of the batch."""
    check_tensor("student", student, "batch channels")
    check_tensor("teacher", teacher, "batch channels", "of the same images", batch=len(student))
    s, t = _affinity(student), _affinity(teacher)
    return 30000 * (t * ((t + 1e-7).log() - (s + 1e-7).log())).mean()


def _distances(x: Tensor) -> Tensor:
    # The square root's gradient is infinite at 0, where an image meets itself.
    distance = (x[:, None] - x[None]).square().sum(2).clamp_min(1e-12).sqrt()
    distance = distance * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return distance / distance.sum().clamp_min(1e-12) * (len(x) * (len(x) - 1))


def _angles(x: Tensor) -> Tensor:
    direction = F.normalize(x[None] - x[:, None], dim=2)
    return torch.einsum("aic,ajc->aij", direction, direction)


def _affinity(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    affinity = (unit @ unit.T + 1) / 2
    return affinity / affinity.sum(1, keepdim=True)
