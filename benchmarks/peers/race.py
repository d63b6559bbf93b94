"""How soon does a method reach an accuracy?  The clock runs while it trains and stands still while it is scored.

Imports torch and nothing of this project, since the separate environments use it too.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch


def race(
    steps: Iterator[Any],
    predict: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    goal: float,
    budget: float,
    every: int,
) -> dict[str, Any]:
    """Advance `steps` and score every `every` steps on (images, labels): bytes [n, c, h, w], int64 [n].

    Ends at `goal` percent, after `budget` processor seconds, or where `steps` end.  Setting up inside of the first
    step counts.  Returns `reached` (seconds, None if not), `best`, `last` and the whole `curve`, each score with
    its `step` and `seconds`.
    """
    curve: list[dict[str, float]] = []
    seconds, step, more = 0.0, 0, True
    while more and seconds < budget:
        begin = time.process_time()
        more = next(steps, steps) is not steps
        seconds += time.process_time() - begin
        step += more
        if (more and step % every == 0) or ((not more or seconds >= budget) and step % every):
            accuracy = score(predict, images, labels)
            curve.append({"step": step, "seconds": seconds, "accuracy": accuracy})
            if accuracy >= goal:
                break
    best = max(curve, key=lambda point: point["accuracy"])
    reached = curve[-1]["seconds"] if curve[-1]["accuracy"] >= goal else None
    return {"reached": reached, "best": best, "last": curve[-1], "curve": curve}


@torch.no_grad()
def score(
    predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> float:
    """Accuracy in percent."""
    parts = zip(images.split(500), labels.split(500), strict=True)
    right = sum(int((predict(x.float() / 255).argmax(1) == y).sum()) for x, y in parts)
    return 100 * right / len(labels)
