"""Stop at the first number that is not finite, and say where it came from.

>>> check_finite({"ce": ce, "relation": relation}, step)
>>> guard = FiniteGuard(policy="skip")
>>> before = guard.snapshot(net)                 # None under policy "error"
>>> out = net(images); out.loss.backward()
>>> if guard.accepts({**out.parts, "gradient": largest_gradient(net)}, step): optimizer.step()
... else: take_back([before])                    # the running statistics of batch norm, random generators
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared_core.ops.gather import communication_device, rank, world_size
from shared_core.ops.host import read_back
from shared_core.ops.snapshot import Snapshot

ADVICE = (
    "look at the batch and at the step before; lower the learning rate or this part's weight, or use precision fp32 or "
    "bf16"
)
OVERFLOWS = 40
"""So many halvings bring a loss scaler from 2**16 below anything that float16 could use."""


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

    `skipped` counts the skipped steps of the run.  `together`: all ranks decide alike; False where each rank works on
    something of its own.  `advice` ends the error's message.
    """

    def __init__(
        self, policy: str = "error", patience: int = 10, together: bool = True, advice: str = ADVICE
    ) -> None:
        if policy not in ("error", "skip"):
            raise ValueError(f"policy is {policy!r}; it must be 'error' or 'skip'")
        if patience < 1:
            raise ValueError(f"patience is {patience}; it must be at least 1 step")
        self.policy, self.patience, self.together, self.advice = policy, patience, together, advice
        self.skipped = 0
        self.in_a_row = 0
        self.overflows_in_a_row = 0  # since the process began

    def accepts(self, parts: Mapping[str, Tensor], step: int) -> bool:
        """True: use this step.  False: leave it out.  The same on all ranks.  Raises NonFiniteError."""
        found = _first_bad(parts, self.together)
        if found is None:
            self.in_a_row = 0
            return True
        if self.policy == "error":
            raise NonFiniteError(_sentence(*found, step, self.advice))
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row > self.patience:
            raise NonFiniteError(
                f"{_sentence(*found, step, self.advice)} ({self.patience} steps before it were skipped in a row)"
            )
        return False

    def scaled(self, step_was_skipped: bool, step: int) -> bool:
        """Count a step that a loss scaler left out, under either policy; True if it was taken.

        A scaler finds its factor by letting gradients overflow now and then.  Raises NonFiniteError after OVERFLOWS
        steps in a row: no factor helps against gradients that are NaN.
        """
        if not step_was_skipped:
            self.overflows_in_a_row = 0
            return True
        self.skipped += 1
        self.overflows_in_a_row += 1
        if self.overflows_in_a_row >= OVERFLOWS:
            raise NonFiniteError(
                f"the loss scaler left out {OVERFLOWS} steps in a row up to step {step}: the gradient is not finite "
                f"whatever its factor; {self.advice}"
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


def largest_gradient(of: nn.Module | Iterable[nn.Parameter]) -> Tensor:
    """The largest absolute value in the gradients of a module or of parameters, 0 without any.

    It is finite if and only if all gradients are, also where the sum of their squares would overflow.
    """
    parameters = of.parameters() if isinstance(of, nn.Module) else of
    gradients = [p.grad for p in parameters if p.grad is not None]
    gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    if not gradients:
        return torch.zeros(())
    return torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The parts of several micro-batches by name, stacked, so that one look judges all of them."""
    names = dict.fromkeys(name for one in parts for name in one)
    return {name: torch.stack([one[name].detach() for one in parts if name in one]) for name in names}


def _first_bad(parts: Mapping[str, Tensor], together: bool = True) -> tuple[str, str, int] | None:
    """Name, value and rank of the first part, in the order given, that is not finite on some rank (or on this one)."""
    if not parts:
        return None
    # One reduction and one wait for the device for all parts and ranks.
    bad = [(~torch.isfinite(part.detach())).any() for part in parts.values()]
    mine = read_back(torch.stack([value.to(bad[-1].device) for value in bad]), "is the step finite?")
    worst = torch.where(mine, rank(), world_size()).to(communication_device())
    if together and world_size() > 1:
        dist.all_reduce(worst, op=dist.ReduceOp.MIN)
    for (name, part), where in zip(parts.items(), worst.tolist(), strict=True):
        if where < world_size():
            return name, _value(part) if where == rank() else "not finite", where
    return None


def _value(part: Tensor) -> str:
    flat = part.detach().flatten()
    return str(flat[~torch.isfinite(flat)][0].item())


def _sentence(name: str, value: str, where: int, step: int, advice: str = ADVICE) -> str:
    on = f" on rank {where}" if world_size() > 1 else ""
    return f"loss part {name!r} is {value} at step {step}{on}: {advice}"
