"""Tensor operations and module tools that need only torch."""

from shared_core.ops.bounded import project
from shared_core.ops.divergence import entropy, kl_divergence, soft_cross_entropy
from shared_core.ops.features import FeatureCapture
from shared_core.ops.freeze import changed, checksums, digest
from shared_core.ops.gather import all_gather, rank, world_size
from shared_core.ops.gradients import average_gradients, norm_of
from shared_core.ops.outputs import pick_logits
from shared_core.ops.snapshot import Snapshot, take_back
from shared_core.ops.targets import class_numbers

# The function `freeze` stays in its module: here it would hide the module of that name.
__all__ = [
    "FeatureCapture",
    "Snapshot",
    "all_gather",
    "average_gradients",
    "changed",
    "checksums",
    "class_numbers",
    "digest",
    "entropy",
    "kl_divergence",
    "norm_of",
    "pick_logits",
    "project",
    "rank",
    "soft_cross_entropy",
    "take_back",
    "world_size",
]
