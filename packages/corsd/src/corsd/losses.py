"""The terms of class-oriented relational self-distillation, each a plain function (arXiv 2305.00918).

The body of the paper is not public; the formulas are numbered as in ``docs/explanation/corsd.md``, which
restates them from the abstract and from the losses that the authors released.  Every function returns the
mean over its pairs; weights live in :class:`Weights`, alternatives in :class:`Variant`.

    >>> import torch
    >>> triplet_hinge(torch.tensor([0.2]), torch.tensor([0.9]), margin=1.0)
    tensor(0.3000)
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.divergence import kl_divergence, soft_cross_entropy
from shared_core.ops.inputs import INTEGERS, check_tensor
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """What each term counts in the total; the defaults are the constants of the released code.

    ``warmup_steps`` raises every weight but cross-entropy's linearly from 0 over the first steps.
    """

    triplet: float = 0.01
    same_ce: float = 0.04
    same_kl: float = 0.16
    other_ce: float = 0.01
    other_kl: float = 0.04
    relation: float = 0.01
    logit_relation: float = 0.01
    warmup_steps: int = 0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"weights.{name} is {value}; it must be a finite number from 0 up")


@dataclass(frozen=True)
class Variant:
    """Readings of the method where paper and released code leave room.

    ========================  =====================  ==========================  ====================
    field                     intended (default)     code as released            ours
    ========================  =====================  ==========================  ====================
    ``detach_teacher``        True                   False
    ``aux_kl``                "temperature"          "raw_logits" (diverges)
    ``soft_label``            "two_hot"              "softmaxed" (near uniform)
    ``logit_relation``        "mean"                 "sum"                       "off"
    ``prototype``             "mean"                 "sum" (grows unbounded)     "ema"
    ``deepest_ce``            "full"                 "reduced"
    ``attention``             False                  False                       True (as in BYOT's heir)
    ========================  =====================  ==========================  ====================
    """

    detach_teacher: bool = True
    aux_kl: Literal["temperature", "raw_logits"] = "temperature"
    soft_label: Literal["two_hot", "softmaxed"] = "two_hot"
    logit_relation: Literal["mean", "sum", "off"] = "mean"
    prototype: Literal["mean", "ema", "sum"] = "mean"
    deepest_ce: Literal["full", "reduced"] = "full"
    attention: bool = False
    temperature: float = 3.0
    margin: float = 1.0

    @classmethod
    def released(cls) -> "Variant":
        """The losses as published on the authors' page; kept for study, they are known to diverge."""
        return cls(
            detach_teacher=False,
            aux_kl="raw_logits",
            soft_label="softmaxed",
            logit_relation="sum",
            prototype="sum",
            deepest_ce="reduced",
        )

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"variant.temperature is {self.temperature}; it must be above 0")


def triplet_hinge(
    same: Float[Tensor, " triplets"], other: Float[Tensor, " triplets"], margin: float = 1.0
) -> Float[Tensor, ""]:
    """Equation 2: a relation is a distance, small for a same-class pair and large for an other-class one.

    Args:
        same, other: relation values in (0, 1) of the two pairs of one anchor.
        margin: 1 keeps the hinge open everywhere, because relations stay inside (0, 1).
    """
    check_tensor("same", same, "triplets")
    check_tensor("other", other, "triplets", triplets=len(same))
    return F.relu(same - other + margin).mean()


def pair_cross_entropy(
    logits: Float[Tensor, "pairs classes"], first: Int[Tensor, " pairs"], second: Int[Tensor, " pairs"]
) -> Float[Tensor, ""]:
    """Equations 3 and 4: which classes does the pair hold?  Half of the label's mass on each image's class.

    For a same-class pair this is the ordinary cross-entropy.
    """
    check_tensor("logits", logits, "pairs classes")
    for name, labels in (("first", first), ("second", second)):
        check_tensor(name, labels, "pairs", "one class per pair", INTEGERS, pairs=len(logits))
    log_probs = _float(logits).log_softmax(1)
    chosen = log_probs.gather(1, torch.stack([first, second], 1))
    return -chosen.mean()


def softmaxed_pair_cross_entropy(
    logits: Float[Tensor, "pairs classes"],
    first: Int[Tensor, " pairs"],
    second: Int[Tensor, " pairs"],
    temperature: float = 3.0,
) -> Float[Tensor, ""]:
    """Equation 4 as released: the two-hot label itself goes through a softmax, which leaves almost no label."""
    check_tensor("logits", logits, "pairs classes")
    for name, labels in (("first", first), ("second", second)):
        check_tensor(name, labels, "pairs", "one class per pair", INTEGERS, pairs=len(logits))
    classes = logits.shape[1]
    two_hot = (F.one_hot(first, classes) + F.one_hot(second, classes)).to(_float(logits).dtype) / 2
    target = (two_hot / temperature).softmax(1)
    return soft_cross_entropy(logits / temperature, target).mean()


def auxiliary_distillation(
    shallow: Float[Tensor, "pairs classes"], deep: Float[Tensor, "pairs classes"], temperature: float = 3.0
) -> Float[Tensor, ""]:
    """Equations 3 and 4: KL(softmax(deep / T) || softmax(shallow / T)), without a factor T**2.

    Detach ``deep`` to let the deepest stage teach without being taught.
    """
    check_tensor("shallow", shallow, "pairs classes")
    check_tensor("deep", deep, "pairs classes", pairs=len(shallow), classes=shallow.shape[1])
    return kl_divergence(shallow, deep, temperature).mean()


def raw_logit_divergence(
    shallow: Float[Tensor, "pairs classes"], deep: Float[Tensor, "pairs classes"]
) -> Float[Tensor, ""]:
    """Equations 3 and 4 as released: t (log t - s) over positive raw logits t.  Not a divergence; unbounded.

    Old versions of torch masked targets at or below zero; newer ones return NaN.  The mask is kept here.
    """
    check_tensor("shallow", shallow, "pairs classes")
    check_tensor("deep", deep, "pairs classes", pairs=len(shallow), classes=shallow.shape[1])
    deep, shallow = _float(deep), _float(shallow)
    safe = deep.clamp_min(torch.finfo(deep.dtype).tiny)
    return torch.where(deep > 0, deep * (safe.log() - shallow), 0).mean()


def relation_distillation(
    shallow: Float[Tensor, " pairs"], deep: Float[Tensor, " pairs"]
) -> Float[Tensor, ""]:
    """Equation 5: squared distance of a shallow stage's relations to the deepest stage's on the same pairs."""
    check_tensor("shallow", shallow, "pairs")
    check_tensor("deep", deep, "pairs", pairs=len(shallow))
    return F.mse_loss(_float(shallow), _float(deep))


def _float(x: Tensor) -> Tensor:
    """Logarithms and squares of half-precision values are taken in float32."""
    return x if x.dtype == torch.float64 else x.float()
