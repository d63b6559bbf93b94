"""Model selection without target labels: numbers that tend to rise with target accuracy.  Higher is better.

| name | what | source |
|---|---|---|
| `entropy` | minus the mean entropy of the predictions | Grandvalet and Bengio 2004 |
| `information` | entropy of the mean prediction minus the mean entropy: sure, of many classes | Krause et al. 2010 |
| `neighbourhood` | entropy of soft neighbourhoods: dense clusters (SND) | Saito et al. 2021, arXiv 2108.10860 |
| `confusion` | how often the critics take calibrated images for source | the method's own critics |
| `source_kept` | share of source images still named right (without labels: named as before), in percent | |
"""

import torch
from jaxtyping import Float, Int
from shared_core.ops.divergence import entropy as entropy_of
from shared_core.ops.inputs import INTEGERS, check_tensor
from torch import Tensor

NAMES = ("information", "entropy", "neighbourhood", "confusion", "last", "oracle")


def entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """-mean H(p), from -ln(classes) to 0."""
    return -entropy_of(logits).mean()


def information(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """H(mean p) - mean H(p), the mutual information of image and class, from 0 to ln(classes)."""
    check_tensor("logits", logits, "batch classes")
    mean = logits.float().softmax(1).mean(0)
    return torch.special.entr(mean).sum() - entropy_of(logits).mean()


def neighbourhood(logits: Float[Tensor, "batch classes"], temperature: float = 0.05) -> Float[Tensor, ""]:
    """Mean entropy of softmax(cosine similarity / temperature) over the other images, on softmax outputs (SND).

    Raises:
        ValueError: fewer than three images.
    """
    check_tensor("logits", logits, "batch classes")
    if len(logits) < 3:
        raise ValueError(f"there are {len(logits)} images; neighbourhoods need three or more")
    features = torch.nn.functional.normalize(logits.float().softmax(1))
    similar = features @ features.T / temperature
    similar.fill_diagonal_(-torch.inf)
    weights = similar.softmax(1)
    return torch.special.entr(weights).sum(1).mean()


def confusion(groups: Float[Tensor, "batch 4"]) -> Float[Tensor, ""]:
    """Mean probability of "source" that a critic gives to calibrated images, from 0 to 1."""
    check_tensor("groups", groups, "batch 4")
    return groups.float().softmax(1)[:, 0].mean()


def source_kept(
    logits: Float[Tensor, "batch classes"], reference: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Share of images, in percent, whose predicted class is the reference: a label, or the clean prediction."""
    check_tensor("logits", logits, "batch classes")
    check_tensor("reference", reference, "batch", "one class per image", INTEGERS, batch=len(logits))
    return 100 * (logits.argmax(1) == reference).float().mean()
