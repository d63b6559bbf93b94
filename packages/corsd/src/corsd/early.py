"""What early exits buy: accuracy of every exit, of their ensemble, and accuracy against compute.

Compute is counted in multiply-adds times two (FLOPs) of convolutions and matrix products, for one image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from shared_core.data.loader import test_loader
from shared_core.data.preprocess import Preprocess
from shared_core.ops.features import FeatureCapture
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from corsd.exits import Exits, ensemble
from corsd.stages import Stage

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.01)


@torch.no_grad()
def exit_logits(
    net: nn.Module,
    stages: Sequence[Stage],
    exits: Exits,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
) -> tuple[Float[Tensor, "depths images classes"], Int[Tensor, " images"]]:
    """Logits of every exit and, last, of the net itself, with the labels; on the CPU in float32."""
    net.eval()
    exits.eval()
    capture = FeatureCapture(net, [stage.name for stage in stages])
    rows, all_labels = [], []
    for images, labels in test_loader(dataset, 500):
        with capture:
            deepest = net(preprocess(images.to(device)))
        features = capture.pop()
        maps = [stage.map(features[stage.name]) for stage in stages]
        rows.append(torch.stack([*exits(maps), deepest]).float().cpu())
        all_labels.append(labels)
    return torch.cat(rows, 1), torch.cat(all_labels)


def exit_accuracy(
    logits: Float[Tensor, "depths images classes"], labels: Int[Tensor, " images"], stages: Sequence[Stage]
) -> dict[str, float]:
    """Accuracy in percent of every exit by its stage's name, of the "net", and of the "ensemble" of all."""
    names = [*(stage.name for stage in stages), "net"]
    rows = dict(zip(names, logits, strict=True)) | {"ensemble": ensemble(list(logits))}
    return {name: 100 * (row.argmax(1) == labels).double().mean().item() for name, row in rows.items()}


@torch.no_grad()
def exit_flops(
    net: nn.Module, stages: Sequence[Stage], exits: Exits, image: Float[Tensor, "1 ..."]
) -> tuple[list[int], int]:
    """FLOPs up to and with each exit, last of the net after all exits were tried; and of the net alone."""
    net.eval()
    exits.eval()
    reached: dict[str, int] = {}
    maps: dict[str, Tensor] = {}
    with FlopCounterMode(display=False) as counter:

        def note(name: str):
            def hook(_module, _inputs, output):
                reached[name], maps[name] = counter.get_total_flops(), output

            return hook

        hooks = [net.get_submodule(s.name).register_forward_hook(note(s.name)) for s in stages]
        try:
            net(image)
        finally:
            for hook in hooks:
                hook.remove()
        whole = counter.get_total_flops()
    spent, costs = 0, []
    for stage, branch, head in zip(stages, exits.branches, exits.classifiers, strict=True):
        with FlopCounterMode(display=False) as counter:
            head(branch(stage.map(maps[stage.name])).mean((2, 3)))
        spent += counter.get_total_flops()
        costs.append(reached[stage.name] + spent)
    return [*costs, whole + spent], whole


def accuracy_against_compute(
    logits: Float[Tensor, "depths images classes"],
    labels: Int[Tensor, " images"],
    flops: Sequence[int],
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[dict[str, Any]]:
    """For each threshold: accuracy in percent, mean FLOPs per image and the share of images per exit.

    Every image leaves at the first exit whose largest probability reaches the threshold, the net being last.
    """
    confidence = logits.softmax(2).amax(2)
    right = logits.argmax(2) == labels
    rows = []
    for threshold in thresholds:
        sure = confidence >= threshold
        sure[-1] = True
        depth = sure.to(torch.uint8).argmax(0)
        hits = right.gather(0, depth[None])[0]
        share = torch.bincount(depth, minlength=len(flops)).double() / len(labels)
        cost = (share * torch.tensor(flops, dtype=torch.float64)).sum()
        rows.append(
            {
                "threshold": threshold,
                "accuracy": 100 * hits.double().mean().item(),
                "flops": cost.item(),
                "share_per_exit": share.tolist(),
            }
        )
    return rows
