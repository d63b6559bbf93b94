"""The value range of both domains: where it is known, and whether one domain visibly comes in another than the other.

>>> check_ranges(source_sample, target_sample, calibrator)        # raises ValueError, naming both
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from shared_core.ops.host import read_back
from torch import Tensor

from calib.calibrator import Calibrator

USUAL = ((0.0, 1.0), (-1.0, 1.0))
"""Ranges in which images usually come: as they are, and normalised by 0.5 and 0.5."""


class Ends(NamedTuple):
    """A calibrator's value range on the CPU, to check images there without a wait for the calibrator's device."""

    low: Float[Tensor, "channels 1 1"]
    high: Float[Tensor, "channels 1 1"]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.low)

    @property
    def value_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(low, high), one number per channel."""
        return tuple(self.low.flatten().tolist()), tuple(self.high.flatten().tolist())


def ends_of(calibrator: Calibrator) -> Ends:
    """The value range of a calibrator, read from its device once."""
    return Ends(*read_back(torch.stack([calibrator.low, calibrator.high]), "the value range").unbind())


def check_ranges(
    source: Float[Tensor, "sources channels height width"],
    target: Float[Tensor, "targets channels height width"],
    calibrator: Calibrator | Ends,
) -> None:
    """Raises ValueError if one domain visibly comes in another range than the other: the classic silent failure.

    Two signs: a domain that fills less than 1/50 of the value range while the other fills half of it (divided by
    255 twice), and a domain that has one of the USUAL ranges, which the other leaves (normalised in one domain only).
    """
    span = (calibrator.high - calibrator.low).cpu()
    ends, filled = {}, {}
    for name, images in (("source", source), ("target", target)):
        share = (images.detach().cpu() - calibrator.low.cpu()) / span
        ends[name] = (float(images.min()), float(images.max()))
        filled[name] = float(share.max() - share.min())
    for name, other in (("source", "target"), ("target", "source")):
        tiny = filled[name] < 0.02 and filled[other] > 0.5
        if tiny or any(_apart(ends[name], ends[other], usual, calibrator) for usual in USUAL):
            (low, high), (low_other, high_other) = ends[name], ends[other]
            raise ValueError(
                f"{name} images run from {low:.4g} to {high:.4g}, but {other} images from {low_other:.4g} to "
                f"{high_other:.4g}, in the value range {range_words(calibrator)}: the domains come in different "
                "ranges; scale both alike"
            )


def _apart(
    ends: tuple[float, float],
    other: tuple[float, float],
    usual: tuple[float, float],
    calibrator: Calibrator | Ends,
) -> bool:
    """Whether images fill this range as if it were theirs, while the other domain leaves it by a quarter or more."""
    low, high = usual
    margin = (high - low) / 4
    # A value range that starts where this one does has the same black: less of it is a dark domain.
    if not bool((calibrator.low < low - margin).all()):
        return False
    # Filled to nine tenths from end to end: merely dark, bright or pale images hardly stop at just these ends.
    fills = low <= ends[0] and ends[1] <= high and ends[1] - ends[0] >= 0.9 * (high - low)
    return fills and (other[0] < low - margin or other[1] > high + margin)


def range_words(calibrator: Calibrator | Ends) -> str:
    (low, high) = calibrator.value_range
    if len(set(low)) == len(set(high)) == 1:
        return f"[{low[0]:.4g}, {high[0]:.4g}]"
    return f"[{tuple(round(v, 4) for v in low)}, {tuple(round(v, 4) for v in high)}]"
