"""Joining the other processes of a torchrun, with accelerate; alone, it is the device and precision that are set."""

import os

from accelerate import Accelerator
from shared_core.run.device import means_cpu

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Our names for the precisions, and accelerate's."""


def join(device: str, precision: str) -> Accelerator:
    """An accelerator on `device` (auto | cpu | cuda | cuda:N | mps) at a precision of PRECISION."""
    if device not in ("auto", "cpu"):
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", device)
    return Accelerator(cpu=means_cpu(device), mixed_precision=PRECISION[precision])
