"""One step of ``corsd train``: the micro-batches of a batch, one judgement of all of them, one update."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from shared_core.ops.host import read_back
from shared_core.ops.snapshot import take_back
from shared_core.run.guard import FiniteGuard, joined, largest_gradient
from torch import Tensor, nn

from corsd.config import TrainConfig
from corsd.data import Data
from corsd.distiller import Output
from corsd.layout import layout
from corsd.schedule import rate_schedule


class Taken(NamedTuple):
    """What the last micro-batch of a step gave; ``shares`` as of :func:`gradient_shares` where they were asked for."""

    out: Output
    labels: Tensor
    shares: dict[str, float]


@dataclass
class Trained:
    """All that a step reads and changes: the method around the net, its optimizer, its rate, its guard."""

    method: Any
    model: Any
    optimizer: Any
    schedule: Any
    guard: FiniteGuard
    accelerator: Accelerator
    memory_format: torch.memory_format

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps, by its name there."""
        scaler = {} if self.accelerator.scaler is None else {"scaler": self.accelerator.scaler}
        return {
            "method": self.method,
            "optimizer": self.optimizer.optimizer,
            "schedule": self.schedule,
            "guard": self.guard,
            **scaler,
        }


def prepared(config: TrainConfig, method: Any, steps: int, accelerator: Accelerator) -> Trained:
    """The method on its device, with gradient descent at its first step."""
    memory_format = layout(config, method, accelerator.device)
    method = method.to(accelerator.device, memory_format=memory_format)
    if config.compile:
        method.net.compile()
    o = config.optim
    optimizer = torch.optim.SGD(
        method.parameters(), o.lr, momentum=o.momentum, weight_decay=o.weight_decay, nesterov=o.nesterov
    )
    schedule = rate_schedule(config, optimizer, steps)
    model, optimizer = accelerator.prepare(method, optimizer)
    guard = FiniteGuard(config.on_nonfinite)
    return Trained(method, model, optimizer, schedule, guard, accelerator, memory_format)


def take_step(
    config: TrainConfig,
    trained: Trained,
    data: Data,
    batches: Iterator[list[Tensor]],
    number: int,
    shares: bool,
) -> Taken:
    """Train on the next ``config.accumulate`` batches as on one; ``number`` is the step's, for messages.

    Raises:
        NonFiniteError: the loss or gradient is not finite; under on_nonfinite "skip", too often in a row.
    """
    t, accelerator, guard = trained, trained.accelerator, trained.guard
    before, judged, found = [], [], {}
    for part in range(config.accumulate):
        # labels and places stay on the CPU, where methods look at them without a wait for the device
        images, labels, *index = next(batches)
        images = data.preprocess(images.to(accelerator.device, non_blocking=True))
        images = images.to(memory_format=t.memory_format)
        last = part == config.accumulate - 1
        # processes exchange gradients once a step, with its last part
        with nullcontext() if last else accelerator.no_sync(t.model):
            # what a refused step puts back: statistics, prototypes, tables, random generators
            skips = guard.policy == "skip" and hasattr(t.method, "written_rows")
            rows = t.method.written_rows(labels, *index) if skips else {}
            before.append(guard.snapshot(t.method, rows=rows))
            out: Output = t.model(images, labels, *index)
            judged.append(out.parts)
            if last and shares:
                found = gradient_shares(out.parts, t.method.net)
            accelerator.backward(out.loss / config.accumulate)
    # one look at all micro-batches; a loss scaler lets gradients overflow now and then and copes
    gradient = {} if accelerator.scaler is not None else {"gradient": largest_gradient(t.method)}
    accepted = guard.accepts({**joined(judged), **gradient}, number)
    if accepted:
        if config.clip_grad_norm is not None:
            accelerator.clip_grad_norm_(t.model.parameters(), config.clip_grad_norm)
        t.optimizer.step()
    if accepted and guard.scaled(t.optimizer.step_was_skipped, number):
        t.schedule.step()
    else:
        take_back(before)
    t.optimizer.zero_grad()
    return Taken(out, labels, found)


def gradient_shares(parts: dict[str, Tensor], net: nn.Module) -> dict[str, float]:
    """Norm of each part's gradient in the net's weights, as shares of their sum."""
    weights = [p for p in net.parameters() if p.requires_grad]
    squares = {}
    for name, part in parts.items():
        if part.requires_grad:
            gradients = torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True)
            squares[name] = [g.float().square().sum() for g in gradients if g is not None]
    values = [value for found in squares.values() for value in found]
    known = iter(read_back(torch.stack(values), "gradient shares").tolist() if values else [])
    norms = {name: math.sqrt(sum(next(known) for _ in found)) for name, found in squares.items()}
    total = sum(norms.values()) or 1.0
    return {name: norm / total for name, norm in norms.items()}
