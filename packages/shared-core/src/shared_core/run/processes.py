"""The processes of a torchrun: joining the others, which of them writes, and parting at the end."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from shared_core.ops.gather import rank
from shared_core.run.device import choose_device

if TYPE_CHECKING:  # It takes seconds to import, and whoever only asks which process writes does without.
    from accelerate import Accelerator

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Our names for the precisions, and accelerate's."""

PATIENCE = timedelta(hours=12)
"""How long a process waits for others, which may train a baseline or look at a large data set meanwhile."""

_joined: tuple[str, str] | None = None
"""Device and precision of the last `join`, to know a setting of accelerate's that is ours from somebody else's."""


def join(device: str = "auto", precision: str = "fp32") -> "Accelerator":
    """An accelerator on `device` (auto | cpu | cuda | cuda:N | mps) at a precision of PRECISION, among all processes.

    accelerate keeps one setting for a process.  `join` changes that of an earlier `join`, whose run is over by then,
    but not that of an accelerator which the caller made: there the caller's device is taken.

    Raises ValueError for a device that is not here or that all processes would share, for fp16 on a CPU, and for
    another precision than that of the caller's accelerator, or the CPU where that one is on a GPU.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import InitProcessGroupKwargs, patch_environment

    global _joined
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device.startswith("cuda:") and several:
        raise ValueError(
            f"device {device}: all processes would share that GPU; give cuda, and each takes its own"
        )
    cpu = choose_device(device).type == "cpu"
    if precision == "fp16" and cpu:
        raise ValueError("precision fp16 needs a GPU; choose bf16 or fp32 on a CPU")
    if _joined not in (None, (device, precision)):
        # accelerate 1.2 to 1.15 has no public way to change a precision; a test looks for one in later versions.
        AcceleratorState._reset_state(reset_partial_state=True)
        _joined = None
    callers = _joined is None and is_initialized()
    # Only where accelerate would choose another: told of a device, it puts all processes there.
    told = {} if device in ("auto", "cpu", "cuda") else {"ACCELERATE_TORCH_DEVICE": device}
    waiting: Any = {"kwargs_handlers": [InitProcessGroupKwargs(timeout=PATIENCE)]} if several else {}
    try:
        with patch_environment(**told):
            accelerator = Accelerator(cpu=cpu, mixed_precision=PRECISION[precision], **waiting)
    except ValueError as error:
        if not callers:
            raise
        raise ValueError(
            f"device {device}, precision {precision}: this process has an accelerator with another setting; give that "
            f"one's, or use a process of its own ({error})"
        ) from error
    _joined = (device, precision)
    return accelerator


def is_main() -> bool:
    """Whether this process writes files."""
    return rank() == 0


def leave() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
