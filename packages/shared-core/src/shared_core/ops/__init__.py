"""Tensor operations and module tools that need only torch."""

from shared_core.ops.divergence import entropy, kl_divergence, soft_cross_entropy
from shared_core.ops.features import FeatureCapture
from shared_core.ops.gather import all_gather, rank, world_size

__all__ = [
    "FeatureCapture",
    "all_gather",
    "entropy",
    "kl_divergence",
    "rank",
    "soft_cross_entropy",
    "world_size",
]
