"""The calibrator and its critics with all that trains them: optimizers, learning rates, the averaged calibrator.

>>> players = Players(calibrator, critics, features, Weights(), accelerator, steps=600)
>>> parts = players.play([(batch, patch)])
>>> players.kept                              # what is validated and kept: the averaged calibrator
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from shared_core.ops.gather import world_size
from shared_core.ops.snapshot import Snapshot
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from calib.critics import Patch
from calib.step import Ask, Batch, Critics, Game, Weights


class Players:
    """Both players of :class:`calib.step.Game`, trained by Adam; the arguments are those of :func:`calib.adapt`.

    With several processes all start from the first one's weights.
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
    ) -> None:
        if world_size() > 1:
            for tensor in [*calibrator.parameters(), *critics.parameters()]:
                torch.distributed.broadcast(tensor.detach(), 0)
        self.calibrator, self.critics, self.scaler = calibrator, critics, accelerator.scaler
        nets: dict[str, tuple[nn.Module, float]] = {"calibrator": (calibrator, learning_rate)}
        if critics.playing:
            nets["critics"] = (critics, critic_learning_rate or learning_rate)
        self.optimizers = {
            name: accelerator.prepare(
                torch.optim.Adam(net.parameters(), rate, betas, weight_decay=weight_decay)
            )
            for name, (net, rate) in nets.items()
        }
        self.schedules = {
            name: torch.optim.lr_scheduler.LambdaLR(
                optimizer.optimizer, lambda step: _factor(schedule, step, steps)
            )
            for name, optimizer in self.optimizers.items()
        }
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
        rounds: Sequence[tuple[Batch, Patch | None]],
        usable: Callable[[dict[str, Tensor]], bool] = lambda _parts: True,
        careful: bool = False,
    ) -> dict[str, Tensor]:
        """One step of the game, of the learning rates and of the average; see :meth:`calib.step.Game.play`.

        A step that `usable` refuses moves neither rates nor average; with `careful` nothing at all, generators
        included.
        """
        self.calibrator.train()
        self.critics.train()
        # Kept only where a step may be refused, at the cost of a copy of the critics and their optimizer a step.
        before = self._kept() if careful else None
        self.game.judges_critics = careful
        refused = False

        def judged(parts: dict[str, Tensor]) -> bool:
            nonlocal refused
            refused = refused or not usable(parts)
            return not refused

        parts = self.game.play(rounds, judged)
        if refused:
            if before is not None:
                self._put_back(before)
            return parts
        for schedule in self.schedules.values():
            schedule.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.calibrator)
        return parts

    def rates(self) -> dict[str, float]:
        """The learning rate of each net that is trained, as of the next step."""
        return {name: schedule.get_last_lr()[0] for name, schedule in self.schedules.items()}

    def _kept(self) -> tuple[Snapshot, list[Tensor], Any]:
        weights = [p.detach().clone() for p in self.critics.parameters()]
        optimizer = self.optimizers.get("critics")
        state = None if optimizer is None else deepcopy(optimizer.optimizer.state_dict())
        return Snapshot(self.calibrator, self.critics), weights, state

    @torch.no_grad()
    def _put_back(self, kept: tuple[Snapshot, list[Tensor], Any]) -> None:
        buffers, weights, state = kept
        for parameter, value in zip(self.critics.parameters(), weights, strict=True):
            parameter.copy_(value)
        if state is not None:
            self.optimizers["critics"].optimizer.load_state_dict(state)
        buffers.restore()

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
