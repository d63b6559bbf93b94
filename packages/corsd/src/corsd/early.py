"""Accuracy of every exit and of their ensemble, and what early exit buys: accuracy against compute.

Compute is counted in multiply-adds times two (FLOPs) of convolutions and matrix products, for one image.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from shared_core.data.loader import dealt_loader
from shared_core.data.preprocess import Preprocess
from shared_core.ops.features import FeatureCapture
from shared_core.ops.gather import gather_objects, rank, world_size
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from corsd.exits import Exits, ensemble
from corsd.frame import run_net
from corsd.stages import Stage

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.01)


def exit_logits(
    net: nn.Module,
    stages: Sequence[Stage],
    exits: Exits,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
) -> tuple[Float[Tensor, "depths images classes"], Int[Tensor, " images"]]:
    """Logits of every exit and, last, of the net itself, with the labels; on the CPU in float32."""
    batches = list(_exit_batches(net, stages, exits, dataset, preprocess, device))
    return torch.cat([logits for logits, _ in batches], 1), torch.cat([labels for _, labels in batches])


def exit_accuracy(
    logits: Float[Tensor, "depths images classes"], labels: Int[Tensor, " images"], stages: Sequence[Stage]
) -> dict[str, float]:
    """Accuracy in percent of every exit by its stage's name, of the "net", and of the "ensemble" of all.

    The ensemble averages the probabilities of all exits and the net.
    """
    return _percent(stages, _hits(logits, labels), len(labels))


def stage_accuracy(
    net: nn.Module,
    stages: Sequence[Stage],
    exits: Exits,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    workers: int = 0,
    shared: bool = False,
) -> dict[str, float]:
    """:func:`exit_accuracy` on a whole data set, in one pass that keeps counts only.

    Args:
        workers, shared: as in :func:`corsd.evaluate.accuracy`.
    """
    hits, total = torch.zeros(len(stages) + 2, dtype=torch.int64), 0
    for logits, labels in _exit_batches(net, stages, exits, dataset, preprocess, device, workers, shared):
        hits, total = hits + _hits(logits, labels), total + len(labels)
    if shared:
        counts = gather_objects((hits, total))
        hits, total = torch.stack([h for h, _ in counts]).sum(0), sum(n for _, n in counts)
    return _percent(stages, hits, total)


def _exit_batches(
    net: nn.Module,
    stages: Sequence[Stage],
    exits: Exits,
    dataset: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    workers: int = 0,
    shared: bool = False,
) -> Iterator[tuple[Float[Tensor, "depths batch classes"], Int[Tensor, " batch"]]]:
    net.eval()
    exits.eval()
    capture = FeatureCapture(net, [stage.name for stage in stages])
    first, step = (rank(), world_size()) if shared else (0, 1)
    for images, labels in dealt_loader(dataset, 500, workers, first, step):
        # Not a decorator: whatever wraps a generator function hides from no_grad that it is one.
        with torch.no_grad(), capture:
            deepest = run_net(net, preprocess(images.to(device)))
        features = capture.pop()
        with torch.no_grad():
            maps = [stage.map(features[stage.name]) for stage in stages]
            logits = torch.stack([*exits(maps), deepest])
        yield logits.float().cpu(), labels


def _hits(
    logits: Float[Tensor, "depths batch classes"], labels: Int[Tensor, " batch"]
) -> Int[Tensor, " depths_and_ensemble"]:
    every = torch.cat([logits, ensemble(list(logits))[None]])
    return (every.argmax(2) == labels).sum(1)


def _percent(stages: Sequence[Stage], hits: Tensor, total: int) -> dict[str, float]:
    names = [*(stage.name for stage in stages), "net", "ensemble"]
    return {name: 100 * count / total for name, count in zip(names, hits.tolist(), strict=True)}


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
