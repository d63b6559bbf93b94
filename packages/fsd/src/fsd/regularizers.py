"""Further losses on a render, as text-to-3D commonly adds them."""

import torch
from jaxtyping import Float
from torch import Tensor

from fsd.inputs import check_tensor


def sparsity(opacity: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Mean of sqrt(opacity^2 + 0.01): less matter; smooth at 0 (DreamFusion's released settings)."""
    check_tensor("opacity", opacity, "b 1 h w", "as in a Render; add a missing axis with opacity[:, None]")
    return (opacity.square() + 0.01).sqrt().mean()


def binary_entropy(opacity: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Mean of -o log o - (1 - o) log(1 - o), in nats: either matter or none."""
    check_tensor("opacity", opacity, "b 1 h w", "as in a Render; add a missing axis with opacity[:, None]")
    # In float32 at least: in bf16 the bound below 1 is 1 itself, and the mean is NaN.
    o = opacity.to(torch.promote_types(opacity.dtype, torch.float32)).clamp(1e-3, 1 - 1e-3)
    return (-o * o.log() - (1 - o) * torch.log1p(-o)).mean()
