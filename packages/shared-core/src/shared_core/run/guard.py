"""Stop at the first number that is not finite, and say where it came from.

>>> check_finite({"ce": ce, "relation": relation}, step)
>>> guard = FiniteGuard(policy="skip")
>>> before = guard.snapshot(net)                 # None under policy "error"
>>> out = net(images); out.loss.backward()
>>> if guard.accepts({**out.parts, "gradient": largest_gradient(net)}, step): optimizer.step()
... else: take_back([before])                    # the running statistics of batch norm, random generators
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared_core.ops.gather import communication_device, rank, world_size
from shared_core.ops.host import read_back
from shared_core.ops.snapshot import Snapshot


class NonFiniteError(RuntimeError):
    """A part of the loss is NaN or infinite; the message names the first one, its value and the step."""


def check_finite(parts: Mapping[str, Tensor], step: int) -> None:
    """Raises NonFiniteError, on all ranks alike, if any value of any part is not finite on any rank.

    All ranks must give the same names in the same order.
    """
    found = _first_bad(parts)
    if found is not None:
        raise NonFiniteError(_sentence(*found, step))


class FiniteGuard:
    """Policy "error" raises at once; "skip" lets up to `patience` bad steps in a row pass, then raises.

    `skipped` counts the skipped steps of the run.
    """

    def __init__(self, policy: str = "error", patience: int = 10) -> None:
        if policy not in ("error", "skip"):
            raise ValueError(f"policy is {policy!r}; it must be 'error' or 'skip'")
        if patience < 1:
            raise ValueError(f"patience is {patience}; it must be at least 1 step")
        self.policy, self.patience = policy, patience
        self.skipped = 0
        self.in_a_row = 0

    def accepts(self, parts: Mapping[str, Tensor], step: int) -> bool:
        """True: use this step.  False: leave it out.  The same on all ranks.  Raises NonFiniteError."""
        found = _first_bad(parts)
        if found is None:
            self.in_a_row = 0
            return True
        if self.policy == "error":
            raise NonFiniteError(_sentence(*found, step))
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row > self.patience:
            raise NonFiniteError(
                f"{_sentence(*found, step)} ({self.patience} steps before it were skipped in a row)"
            )
        return False

    def snapshot(self, *modules: nn.Module, rows: Mapping[str, Tensor] | None = None) -> "Snapshot | None":
        """The state that a forward pass may change, for `take_back`; None under policy "error"."""
        return Snapshot(*modules, rows=rows) if self.policy == "skip" else None

    def state_dict(self) -> dict[str, int]:
        """The two counters, for the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Puts the two counters back."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def largest_gradient(module: nn.Module) -> Tensor:
    """The largest absolute value in the gradients of a module's parameters, 0 without any.

    It is finite if and only if all gradients are, also where the sum of their squares would overflow.
    """
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    if not gradients:
        return torch.zeros(())
    return torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The parts of several micro-batches by name, stacked, so that one look judges all of them."""
    names = dict.fromkeys(name for one in parts for name in one)
    return {name: torch.stack([one[name].detach() for one in parts if name in one]) for name in names}


def _first_bad(parts: Mapping[str, Tensor]) -> tuple[str, str, int] | None:
    """Name, value and rank of the first part, in the order given, that is not finite on some rank."""
    if not parts:
        return None
    # One reduction and one wait for the device for all parts and ranks.
    bad = [(~torch.isfinite(part.detach())).any() for part in parts.values()]
    mine = read_back(torch.stack([value.to(bad[-1].device) for value in bad]), "is the step finite?")
    worst = torch.where(mine, rank(), world_size()).to(communication_device())
    if world_size() > 1:
        dist.all_reduce(worst, op=dist.ReduceOp.MIN)
    for (name, part), where in zip(parts.items(), worst.tolist(), strict=True):
        if where < world_size():
            return name, _value(part) if where == rank() else "not finite", where
    return None


def _value(part: Tensor) -> str:
    flat = part.detach().flatten()
    return str(flat[~torch.isfinite(flat)][0].item())


def _sentence(name: str, value: str, where: int, step: int) -> str:
    on = f" on rank {where}" if world_size() > 1 else ""
    return (
        f"loss part {name!r} is {value} at step {step}{on}: look at the batch and at the step before; "
        "lower the learning rate or this part's weight, or use precision fp32 or bf16"
    )
