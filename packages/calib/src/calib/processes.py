"""Joining the other processes of a torchrun, with accelerate; alone, it is the device and precision that are set."""

import os

import torch.distributed as dist
from accelerate import Accelerator
from shared_core.ops.gather import rank

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Our names for the precisions, and accelerate's."""


def join(device: str, precision: str) -> Accelerator:
    """An accelerator on `device` (auto | cpu | cuda | cuda:N | mps) at a precision of PRECISION."""
    if device not in ("auto", "cpu"):
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", device)
    return Accelerator(cpu=device == "cpu", mixed_precision=PRECISION[precision])


def is_main() -> bool:
    """Whether this process writes files."""
    return rank() == 0


def leave() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
