"""The processes of a torchrun: which of them writes, and parting at the end."""

import torch.distributed as dist

from shared_core.ops.gather import rank


def is_main() -> bool:
    """Whether this process writes files."""
    return rank() == 0


def leave() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
