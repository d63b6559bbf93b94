"""Joining the other processes of a torchrun, with accelerate; alone, it is the device and precision that are set."""

import os

from accelerate import Accelerator
from shared_core.run.device import means_cpu

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Our names for the precisions, and accelerate's."""


def join(device: str, precision: str) -> Accelerator:
    """An accelerator on `device` (auto | cpu | cuda | cuda:N | mps) at a precision of PRECISION.

    Raises ValueError for fp16 on a CPU.
    """
    if precision == "fp16" and means_cpu(device):
        raise ValueError("precision fp16 needs a GPU; choose bf16 or fp32 on a CPU")
    if device not in ("auto", "cpu"):
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", device)
    return Accelerator(cpu=means_cpu(device), mixed_precision=PRECISION[precision])
