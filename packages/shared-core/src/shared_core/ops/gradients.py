"""The mean of gradients over the processes of a distributed run, for training without DistributedDataParallel."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from shared_core.ops.gather import world_size


def average_gradients(of: nn.Module | Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    """Average the gradients of a module or of parameters over all processes, in one message; return their norm.

    In place of DistributedDataParallel, which wants one forward pass before each backward pass: nets that play against
    each other have several.  Every process must have gradients for the same parameters.

    Raises ValueError if there is no gradient at all.
    """
    parameters = of.parameters() if isinstance(of, nn.Module) else of
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise ValueError("no parameter that was given has a gradient: call backward() before")
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    if world_size() > 1:
        dist.all_reduce(flat)
        flat /= world_size()
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    return flat.float().norm()


def norm_of(module: nn.Module) -> Float[Tensor, ""]:
    """The norm of all gradients together, in float32."""
    return torch.stack([p.grad.float().norm() for p in module.parameters() if p.grad is not None]).norm()
