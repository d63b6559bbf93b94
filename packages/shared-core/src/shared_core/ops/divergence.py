"""Divergences between class distributions given by logits, one value per row.

All of them compute in float32 with autocast off when the input is of half precision, and in float64 when it
is float64: a softmax in bfloat16 has three digits, and a distillation loss is a difference of two of them.

    >>> kl_divergence(student, teacher.detach(), temperature=4.0).mean() * 4.0**2
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shared_core.ops.autocast import without_autocast


def kl_divergence(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    """KL(softmax(teacher / T) || softmax(student / T)) of each row, in nats.

    Gradients flow to both arguments: detach the teacher if it should not move.  There is no factor T**2
    (Hinton et al. 2015, section 2.1, multiply by it to keep the gradient's size over temperatures): that is
    the caller's.  Logits must be finite; values up to 1e4 in size are safe.  A value may be below zero by
    rounding.

    Raises ValueError if the shapes differ or the temperature is not positive, TypeError for integers.
    """
    _same_shape("teacher_logits", teacher_logits, "student_logits", student_logits)
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}; it must be above 0 (1 leaves the logits as they are)"
        )
    with without_autocast(student_logits):
        student = (_widen(student_logits) / temperature).log_softmax(dim=-1)
        teacher = (_widen(teacher_logits) / temperature).log_softmax(dim=-1)
        return (teacher.exp() * (teacher - student)).sum(dim=-1)


def soft_cross_entropy(
    logits: Float[Tensor, "batch classes"], target: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """Cross-entropy of each row against target probabilities, in nats.

    `target` rows are probabilities (not checked: they sum to one if the result is to be a cross-entropy);
    entries of exactly 0 are safe.  Raises ValueError if the shapes differ.
    """
    _same_shape("target", target, "logits", logits)
    with without_autocast(logits):
        return -(_widen(target) * _widen(logits).log_softmax(dim=-1)).sum(dim=-1)


def entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """Entropy of softmax(logits) of each row, in nats: 0 for a sure row, log(classes) for a uniform one."""
    _check_logits("logits", logits)
    with without_autocast(logits):
        log_probability = _widen(logits).log_softmax(dim=-1)
        return -(log_probability.exp() * log_probability).sum(dim=-1)


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check_logits(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            f"{name} must be a tensor of floating-point numbers of shape (batch, classes); got "
            + (f"{x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}")
        )
    if x.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (batch, classes)")


def _same_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    _check_logits(name, x)
    _check_logits(other_name, other)
    if x.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} and {other_name} has shape {tuple(other.shape)}; "
            "both must be (batch, classes)"
        )
