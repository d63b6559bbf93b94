"""Shallow classifiers: early exit by confidence, ensembling, and the frame of deep supervision and BYOT.

exits = Exits(channels=[64, 128, 256], deepest=512, num_classes=100)
fast = EarlyExit(net, ["layer1", "layer2", "layer3"], exits, threshold=0.9)
logits, depth = fast(images)        # depth: which exit answered, len(exits) for the net itself
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.divergence import soft_cross_entropy
from shared_core.ops.host import read_back
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.frame import for_module, run_net, widened
from corsd.relation import Norm, SeparableBlock
from corsd.stages import Stage


class Exits(nn.Module):
    """One classifier per shallow stage: separable blocks that halve the map, pooling, a linear layer.

    ``features`` are the pooled vectors, all as wide as the deepest stage, for methods that compare them.
    """

    def __init__(self, channels: Sequence[int], deepest: int, num_classes: int, norm: Norm = "batch"):
        super().__init__()
        self.channels = list(channels)
        self.branches = trunks(channels, deepest, norm)
        self.classifiers = nn.ModuleList(nn.Linear(deepest, num_classes) for _ in channels)

    def __len__(self) -> int:
        return len(self.branches)

    def features(self, maps: Sequence[Float[Tensor, "batch _ _ _"]]) -> list[Float[Tensor, "batch deepest"]]:
        _check_maps(maps, self.channels)
        return [branch(m).mean((2, 3)) for branch, m in zip(self.branches, maps, strict=True)]

    def forward(self, maps: Sequence[Float[Tensor, "batch _ _ _"]]) -> list[Float[Tensor, "batch classes"]]:
        return [head(f) for head, f in zip(self.classifiers, self.features(maps), strict=True)]


def _check_maps(maps: Sequence[Tensor], channels: Sequence[int]) -> None:
    shapes = [tuple(m.shape) for m in maps]
    fitting = len(maps) == len(channels)
    if not fitting or any(len(s) != 4 or s[1] != c for s, c in zip(shapes, channels, strict=True)):
        raise ValueError(
            f"exits were made for maps (batch, channels, height, width) of {list(channels)} channels, shallow to "
            f"deep; got shapes {shapes}"
        )


def trunks(channels: Sequence[int], deepest: int, norm: Norm = "batch") -> nn.ModuleList:
    """Per shallow stage, separable blocks that each halve the map, up to the deepest's width; pool what they return."""
    return nn.ModuleList(
        nn.Sequential(*_branch(c, deepest, len(channels) - depth, norm)) for depth, c in enumerate(channels)
    )


def _branch(channels: int, deepest: int, blocks: int, norm: Norm) -> list[nn.Module]:
    factor = (deepest / channels) ** (1 / blocks)
    widths = [channels, *(round(channels * factor ** (i + 1)) for i in range(blocks - 1)), deepest]
    return [SeparableBlock(a, b, norm) for a, b in pairwise(widths)]


def exit_losses(
    exit_logits: Sequence[Float[Tensor, "batch classes"]],
    labels: Int[Tensor, " batch"],
    deep_logits: Float[Tensor, "batch classes"],
    ce: float = 0.7,
    kl: float = 0.3,
    temperature: float = 3.0,
) -> dict[str, Float[Tensor, ""]]:
    """Labels and the deepest logits teach the exits: ce * CE + kl * SCE at a temperature (TPAMI 2022 form)."""
    labels, deep_logits = class_numbers(labels).to(deep_logits.device), widened(deep_logits)
    exit_logits = [widened(z) for z in exit_logits]
    zero = deep_logits.new_zeros(())
    target = (deep_logits / temperature).softmax(1)
    return {
        "exit_ce": sum((ce * F.cross_entropy(z, labels) for z in exit_logits), zero),
        "exit_kl": sum((kl * soft_cross_entropy(z / temperature, target).mean() for z in exit_logits), zero),
    }


class EarlyExit(nn.Module):
    """The net with its exits: stops at the first exit at which every image of the batch is confident.

    Confidence is the largest softmax probability.  The net's code is not changed: a hook ends the forward
    pass.  Serve single images or sort by difficulty to gain most.
    """

    def __init__(
        self,
        net: nn.Module,
        stages: Sequence[Stage],
        exits: Exits,
        threshold: float = 0.9,
        output: Which = None,
    ):
        super().__init__()
        if threshold <= 0:
            raise ValueError(f"threshold={threshold}; give a probability (above 1 never exits early)")
        if len(stages) != len(exits):
            raise ValueError(f"{len(exits)} exits need as many stages; got {[s.name for s in stages]}")
        self.net, self.exits, self.stages, self.threshold = net, exits, list(stages), threshold
        self.output = output

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch ..."]) -> tuple[Float[Tensor, "batch classes"], int]:
        hooks = [
            self.net.get_submodule(stage.name).register_forward_hook(self._stop_if_sure(depth))
            for depth, stage in enumerate(self.stages)
        ]
        try:
            return run_net(self.net, images, self.output), len(self.exits)
        except _Sure as sure:
            return sure.logits, sure.depth
        finally:
            for hook in hooks:
                hook.remove()

    def _stop_if_sure(self, depth: int):
        def hook(_module, _inputs, output):
            feature = for_module(self.stages[depth].map(output), self.exits)
            branch, head = self.exits.branches[depth], self.exits.classifiers[depth]
            logits = head(branch(feature).mean((2, 3)))
            sure = (logits.softmax(1).amax(1) >= self.threshold).all()
            if bool(read_back(sure, "may the network stop here?")):
                raise _Sure(logits, depth)

        return hook


class _Sure(Exception):
    def __init__(self, logits: Tensor, depth: int):
        self.logits, self.depth = logits, depth


def ensemble(all_logits: Sequence[Float[Tensor, "batch classes"]]) -> Float[Tensor, "batch classes"]:
    """Log of the mean probability of several classifiers, such as all exits and the net itself."""
    return (
        torch.stack([z.log_softmax(1) for z in all_logits]).logsumexp(0) - torch.tensor(len(all_logits)).log()
    )
