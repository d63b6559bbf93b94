"""The calibrator and its critics with all that trains them: optimizers, learning rates, the averaged calibrator.

>>> players = Players(calibrator, critics, features, Weights(), accelerator, steps=600)
>>> parts = players.play([(batch, patch)])
>>> players.kept                              # what is validated and kept: the averaged calibrator
"""

import math
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from shared_core.ops.gather import world_size
from shared_core.ops.snapshot import Snapshot
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from calib.critics import Patch
from calib.step import Ask, Batch, Critics, Game, Weights


class _Kept(NamedTuple):
    """What a refused step puts back; the calibrator and its optimizer have not moved by then."""

    buffers: Snapshot
    weights: list[Tensor]
    optimizer: Any
    scaler: Any


class Players:
    """Both players of :class:`calib.step.Game`, trained by Adam; the arguments are those of :func:`calib.adapt`.

    With several processes all start from the first one's weights.  `watched`: other modules whose buffers a step moves.
    """

    def __init__(
        self,
        calibrator: nn.Module,
        critics: Critics,
        features: Ask | None,
        weights: Weights,
        accelerator: Accelerator,
        *,
        steps: int,
        learning_rate: float = 1e-3,
        critic_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        schedule: str = "constant",
        ema: float | None = 0.99,
        watched: Sequence[nn.Module] = (),
    ) -> None:
        if world_size() > 1:
            for tensor in [*calibrator.parameters(), *critics.parameters()]:
                torch.distributed.broadcast(tensor.detach(), 0)
        self.calibrator, self.critics, self.scaler = calibrator, critics, accelerator.scaler
        self.watched = watched
        nets: dict[str, tuple[nn.Module, float]] = {"calibrator": (calibrator, learning_rate)}
        if critics.playing:
            nets["critics"] = (critics, critic_learning_rate or learning_rate)
        plain = {
            name: torch.optim.Adam(net.parameters(), rate, betas, weight_decay=weight_decay)
            for name, (net, rate) in nets.items()
        }
        # Before accelerate takes the optimizers: under a loss scaler it goes back to the `step` that it finds.
        self.schedules = {
            name: torch.optim.lr_scheduler.LambdaLR(one, lambda step: _factor(schedule, step, steps))
            for name, one in plain.items()
        }
        self.optimizers = {name: accelerator.prepare(one) for name, one in plain.items()}
        first, second = (self.optimizers.get(name) for name in ("calibrator", "critics"))
        self.game = Game(calibrator, features, critics, first, second, weights, accelerator)
        self.averaged = (
            None if ema is None else AveragedModel(calibrator, multi_avg_fn=get_ema_multi_avg_fn(ema))
        )

    @property
    def kept(self) -> nn.Module:
        """The averaged calibrator; the trained one itself where nothing is averaged."""
        return self.calibrator if self.averaged is None else self.averaged.module

    def play(
        self,
        rounds: Iterable[tuple[Batch, Patch | None]],
        usable: Callable[[dict[str, Tensor]], bool] = lambda _parts: True,
        careful: bool = False,
    ) -> dict[str, Tensor]:
        """One step of the game, of the learning rates and of the average; see :meth:`calib.step.Game.play`.

        Each rate moves with its own net, and the average with the calibrator.  With `careful` a step that `usable`
        refuses, or a loss scaler leaves out (`left_out`), changes nothing but the scale of that scaler: generators and
        what `rounds` does while it is read, as a generator, are included.
        """
        # Kept only where a step may be refused, at the cost of a copy of the critics and their optimizer a step.
        before = self._kept() if careful else None
        rounds = list(rounds)
        self.calibrator.train()
        self.critics.train()
        parts = self.game.play(rounds, usable)
        if before is not None and "calibrator" not in self.game.moved:
            self._put_back(before)
            return parts
        for name in self.game.moved:
            self.schedules[name].step()
        if self.averaged is not None and "calibrator" in self.game.moved:
            self.averaged.update_parameters(self.calibrator)
        return parts

    @property
    def left_out(self) -> bool:
        """Whether a loss scaler left out the last step."""
        return self.game.left_out

    def rates(self) -> dict[str, float]:
        """The learning rate of each net that is trained, as of the next step."""
        return {name: schedule.get_last_lr()[0] for name, schedule in self.schedules.items()}

    def _kept(self) -> _Kept:
        optimizer = self.optimizers.get("critics")
        return _Kept(
            Snapshot(self.calibrator, self.critics, *self.watched),
            [p.detach().clone() for p in self.critics.parameters()],
            None if optimizer is None else deepcopy(optimizer.optimizer.state_dict()),
            # Read from the device: fp16 alone pays for it.
            None if self.scaler is None else self.scaler.state_dict(),
        )

    @torch.no_grad()
    def _put_back(self, kept: _Kept) -> None:
        for parameter, value in zip(self.critics.parameters(), kept.weights, strict=True):
            parameter.copy_(value)
        if kept.optimizer is not None:
            self.optimizers["critics"].optimizer.load_state_dict(kept.optimizer)
        # The scaler keeps the scale that it found too large: the next step may fit.
        if self.scaler is not None and kept.scaler is not None and not self.left_out:
            self.scaler.load_state_dict(kept.scaler)
        kept.buffers.restore()

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of them, by its name there."""
        found: dict[str, Any] = {"calibrator": self.calibrator}
        if self.critics.playing:
            found["critics"] = self.critics
        for name, optimizer in self.optimizers.items():
            found |= {f"{name}_optimizer": optimizer.optimizer, f"{name}_schedule": self.schedules[name]}
        if self.averaged is not None:
            found["averaged"] = self.averaged
        if self.scaler is not None:
            found["scaler"] = self.scaler
        return found


def _factor(schedule: str, step: int, steps: int) -> float:
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
