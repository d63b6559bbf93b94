"""One step of training a small prior: noise the pictures, predict v, judge, step, average.

>>> batch = noised(images, cameras, kept, views, generator)
>>> taken = take_step(learner, batch.to(rows, device), captions, step, config)      # None: left out
"""

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from shared_core.ops.gradients import average_gradients
from shared_core.ops.snapshot import take_back
from shared_core.run.guard import FiniteGuard, largest_gradient
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fsd.prior_config import PriorConfig


class Learner(NamedTuple):
    """What a step changes: `nets` are a "unet" and a "text_encoder", `averaged` their average."""

    nets: nn.ModuleDict
    averaged: nn.ModuleDict
    optimizer: Any  # accelerate's, around AdamW
    accelerator: Accelerator
    guard: FiniteGuard


class Noised(NamedTuple):
    """Pictures with noise, what the network is told of them, and the v it should predict."""

    inputs: dict[str, Tensor]
    target: Float[Tensor, "n 3 h w"]

    def to(self, rows: slice, device: torch.device) -> "Noised":
        """These rows, on the device."""
        return Noised(
            {name: value[rows].to(device) for name, value in self.inputs.items()},
            self.target[rows].to(device),
        )


class Learned(NamedTuple):
    """What a step saw."""

    loss: Float[Tensor, ""]
    gradient_norm: Float[Tensor, ""]
    learning_rate: float


def noised(
    images: Float[Tensor, "n 3 h w"],
    cameras: Float[Tensor, "n 16"] | None,
    kept: Float[Tensor, " levels"],
    views: int,
    generator: torch.Generator,
) -> Noised:
    """Pictures in [-1, 1], `views` of each object in a row, at one level of noise per object.

    The levels are spread evenly over a batch, which makes the loss less noisy.  `kept` is the scheduler's table of
    cumulative products; `cameras` are left out where views are single.
    """
    objects = len(images) // views
    place = torch.arange(objects) + torch.rand(objects, generator=generator)
    level = (place / objects * len(kept)).long().clamp(max=len(kept) - 1)
    level = level.repeat_interleave(views)
    alpha, sigma = (x[level].sqrt()[:, None, None, None] for x in (kept, 1 - kept))
    noise = torch.randn(images.shape, generator=generator)
    noisy, target = alpha * images + sigma * noise, alpha * noise - sigma * images
    told = {} if cameras is None else {"class_labels": cameras}
    return Noised({"sample": noisy, "timestep": level, **told}, target)


def take_step(
    learner: Learner, batch: Noised, captions: Int[Tensor, "n tokens"], step: int, config: PriorConfig
) -> Learned | None:
    """Step number `step`, from 0 on; None for one that the guard or fp16's loss scaler leaves out.

    Such a step changes nothing but the guard's counter.  The guard judges loss and gradient in one look, the only one
    at the device (a loss scaler looks once more).  Raises NonFiniteError as the guard does.
    """
    nets, averaged, optimizer, accelerator, guard = learner
    before = guard.snapshot(nets)
    with accelerator.autocast():
        words = nets["text_encoder"](captions)[0]
        out = nets["unet"](**batch.inputs, encoder_hidden_states=words, return_dict=False)[0]
    loss = mse_loss(out.float(), batch.target)
    optimizer.zero_grad()
    accelerator.backward(loss)
    average_gradients(nets)
    scaled = accelerator.scaler is not None
    # A loss scaler lets gradients overflow now and then, and leaves out such a step by itself.
    gradient = {} if scaled else {"gradient": largest_gradient(nets)}
    if not guard.accepts({"loss": loss, **gradient}, step + 1):
        take_back([before])
        optimizer.zero_grad()
        return None
    # Rate and average go with the steps that were taken.
    taken = step - guard.skipped
    lr = config.learning_rate * rate(taken, config)
    earlier = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = lr
    if scaled:
        accelerator.unscale_gradients(optimizer)
    norm = nn.utils.clip_grad_norm_(nets.parameters(), config.clip_norm)
    optimizer.step()
    if not guard.scaled(optimizer.step_was_skipped, step + 1):
        for group, rate_before in zip(optimizer.param_groups, earlier, strict=True):
            group["lr"] = rate_before
        take_back([before])
        return None
    average(averaged, nets, min(config.ema, (1 + taken) / (10 + taken)))
    return Learned(loss.detach(), norm, lr)


def rate(step: int, config: PriorConfig) -> float:
    """Share of the learning rate: a rise, a constant, and in the last part of the run a straight line to 0."""
    rise = (step + 1) / (config.warmup + 1)
    fall = (config.steps - step) / max(config.decay * config.steps, 1)
    return min(rise, 1.0, fall)


@torch.no_grad()
def average(averaged: nn.Module, nets: nn.Module, decay: float) -> None:
    """averaged = decay averaged + (1 - decay) nets."""
    for kept, new in zip(averaged.parameters(), nets.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
