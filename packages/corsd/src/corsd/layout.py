"""In which order a net keeps its values in memory while it trains."""

import torch
from torch import nn

from corsd.config import TrainConfig


def layout(config: TrainConfig, method: nn.Module, device: torch.device) -> torch.memory_format:
    """Channels last if wanted, but not where oneDNN, on a CPU, would write past its memory.

    It does in the gradient of a strided 1x1 convolution with fewer channels than a vector register has floats (8 or
    16), and crashes or returns wrong numbers: oneDNN issue 6035, in torch 2.15 and before.
    """
    narrow = any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 16
        for m in method.modules()
    )
    wanted = config.channels_last and not (narrow and device.type == "cpu")
    return torch.channels_last if wanted else torch.contiguous_format
