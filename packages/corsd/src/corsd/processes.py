"""Joining the other processes of a torchrun, with accelerate; alone, it is the device and precision that are set."""

import os

from accelerate import Accelerator
from shared_core.run.device import choose_device, means_cpu

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Our names for the precisions, and accelerate's."""


def join(device: str, precision: str) -> Accelerator:
    """An accelerator on `device` (auto | cpu | cuda | cuda:N | mps) at a precision of PRECISION.

    Raises ValueError for a device that is not here, and for fp16 on a CPU.
    """
    choose_device(device)
    if precision == "fp16" and means_cpu(device):
        raise ValueError("precision fp16 needs a GPU; choose bf16 or fp32 on a CPU")
    if device not in ("auto", "cpu"):
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    return Accelerator(cpu=means_cpu(device), mixed_precision=PRECISION[precision])
