"""The learning rate of a run, step by step; the same for every method of it."""

import math

import torch

from corsd.config import TrainConfig


def rate_schedule(
    config: TrainConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate, and in one cycle momentum, step by step; the same for every method of a run."""
    o = config.optim
    if o.schedule == "onecycle":
        # The rise takes one step at least, or the cycle of a very short run divides by 0.
        rise = min(max(o.warmup, 2 / (steps + 1)), 1.0)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, o.lr, total_steps=steps + 1, pct_start=rise)

    def factor(step: int) -> float:
        warm = max(o.warmup * steps, 1.0)
        if step < warm:
            return (step + 1) / (warm + 1)
        if o.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
