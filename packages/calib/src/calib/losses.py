"""The two sides of the game (arXiv 1911.12796, equations 5 to 7), for logits of any shape (batch, 4, ...).

>>> critic = critic_loss([D(source), D(target), D(calibrated_source), D(calibrated_target)])
>>> calibrator = calibrator_loss(D(calibrated_source), D(calibrated_target), source_weight=0.1)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from shared_core.ops.inputs import check_tensor
from torch import Tensor
from torch.nn import functional

SOURCE = 0
GROUP_LOGITS = "batch 4 ..."


def critic_loss(groups: Sequence[Float[Tensor, "_batch 4 *_pixels"]]) -> Float[Tensor, ""]:
    """Sum over the four groups of the mean cross-entropy with the group's own number (equations 5 and 6).

    Raises:
        ValueError: there are not four groups.
    """
    if isinstance(groups, Tensor) or not isinstance(groups, Sequence):
        raise TypeError(f"groups are a {type(groups).__name__}; give a list of the logits of four groups")
    if len(groups) != 4:
        raise ValueError(
            f"there are {len(groups)} groups; give the logits of source, target, and both calibrated"
        )
    for number, logits in enumerate(groups):
        check_tensor(f"groups[{number}]", logits, GROUP_LOGITS)
    return torch.stack([_towards(logits, group) for group, logits in enumerate(groups)]).sum()


def calibrator_loss(
    calibrated_source: Float[Tensor, "_batch 4 *_pixels"],
    calibrated_target: Float[Tensor, "_batch 4 *_pixels"],
    source_weight: float = 0.1,
) -> Float[Tensor, ""]:
    """Both calibrated groups should pass for source (one line of equation 7).

    The paper prints equal weights; its released code weighs the source's part 0.1 on digits and 0.2 in
    segmentation: what keeps the source domain safe against what wins the target.
    """
    for name, logits in (("calibrated_source", calibrated_source), ("calibrated_target", calibrated_target)):
        check_tensor(name, logits, GROUP_LOGITS)
    return _towards(calibrated_target, SOURCE) + source_weight * _towards(calibrated_source, SOURCE)


def agreement_loss(
    logits: Float[Tensor, "batch classes"], taught: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of `logits` with the likeliest class of `taught` (ours, see :mod:`calib.views`).

    A row of zeros teaches nothing and counts as 0: the less the teacher knows, the less it weighs.
    """
    check_tensor("logits", logits, "batch classes")
    check_tensor("taught", taught, "batch classes", batch=len(logits), classes=logits.shape[1])
    likeliest, labels = taught.detach().max(1)
    # In float32 at least, as below.
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (functional.cross_entropy(wide, labels, reduction="none") * (likeliest > 0)).mean()


def _towards(logits: Tensor, group: int) -> Tensor:
    labels = logits.new_full((len(logits), *logits.shape[2:]), group, dtype=torch.int64)
    # In float32 at least: a softmax in half precision has three digits.
    return functional.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
