"""Autocast on any kind of device, also on those that have none (the meta device, new back ends)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A block in which operators on the device of `x` keep the types of what they are given."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def under_autocast(x: Tensor) -> bool:
    """Whether autocast converts the inputs of operators on the device of `x`."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
