"""The ensemble of stages teaches every stage, the deployed logits included (DKS, ONE; Hinton et al. 2015 for T^2).

z_i are the logits of stage i = 1 ... S, shallow to deep; z_S are those of the deployed net.

    >>> teacher = stage_ensemble(logits)
    >>> ramp(step, 1000) * ensemble_distillation(logits, teacher)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from shared_core.ops.divergence import kl_divergence
from shared_core.ops.inputs import check_tensor
from torch import Tensor

from corsd.frame import widened


def stage_ensemble(
    logits: Sequence[Float[Tensor, "batch classes"]], beta: float = 1.6
) -> Float[Tensor, "batch classes"]:
    """Return z_e = sum_i beta^(i-1) z_i / sum_i beta^(i-1); beta above 1 trusts deeper stages more.

    Raises:
        ValueError: no stage, or beta is not above 0.
    """
    if not logits or not beta > 0:
        raise ValueError(f"an ensemble needs a stage and beta above 0; got {len(logits)} stages, beta={beta}")
    check_stages(logits)
    weights = [beta**depth for depth in range(len(logits))]
    weighted = [w * widened(z) for w, z in zip(weights, logits, strict=True)]
    return torch.stack(weighted).sum(0) / sum(weights)


def ensemble_distillation(
    logits: Sequence[Float[Tensor, "batch classes"]],
    teacher: Float[Tensor, "batch classes"],
    temperature: float = 3.0,
) -> Float[Tensor, ""]:
    """Return sum_i T^2 mean KL(softmax(teacher / T) || softmax(z_i / T)); the teacher gets no gradient."""
    if logits:
        check_stages(logits)
        batch, classes = logits[0].shape
        check_tensor("teacher", teacher, "batch classes", batch=batch, classes=classes)
    teacher = widened(teacher.detach())
    divergence = sum(kl_divergence(widened(z), teacher, temperature).sum() for z in logits)
    return temperature**2 * torch.as_tensor(divergence, device=teacher.device) / max(len(teacher), 1)


def check_stages(logits: Sequence[Tensor]) -> None:
    """Raises TypeError or ValueError unless these are logits of one shape (batch, classes), at least one."""
    if not len(logits):
        raise ValueError("got the logits of 0 stages; give those of at least one")
    check_tensor("logits[0]", logits[0], "batch classes")
    batch, classes = logits[0].shape
    for depth, z in enumerate(logits):
        check_tensor(
            f"logits[{depth}]", z, "batch classes", "all of the same images", batch=batch, classes=classes
        )


def ramp(step: int, steps: int) -> float:
    """Return (step + 1) / steps up to 1: a weight that rises over the first ``steps``; 1 without any."""
    return min(1.0, (step + 1) / max(steps, 1))
