"""Normals of a field: the unit vector along which its density falls quickest.

Three ways, chosen by name.  "autograd" differentiates any field, exactly, at the price of a second backward pass;
"finite" takes central differences, six more questions to the field, and is the smoothest to train through;
"analytic" is the closed form of a `DenseGrid`, exact and the quickest.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fsd.fields import DenseGrid, Field
from fsd.inputs import check_tensor

STEP = 1e-2  # of the central differences, as a share of the field's radius


def surface_normals(field: Field, points: Float[Tensor, "n 3"], how: str = "finite") -> Float[Tensor, "n 3"]:
    """Outward unit normals at `points`, zero where the density is flat; differentiable in the field.

    Raises ValueError for a name other than "autograd", "finite", "analytic", TypeError for "analytic" with a field
    that has no closed form.
    """
    if how not in _WAYS:
        raise ValueError(f"normals={how!r}; they are one of {', '.join(_WAYS)}")
    check_tensor("points", points, "n 3", "one point per row")
    return -F.normalize(_WAYS[how](field, points), dim=1)


def _autograd(field: Field, points: Tensor) -> Tensor:
    trains = torch.is_grad_enabled()
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        return torch.autograd.grad(field.density(points).sum(), points, create_graph=trains)[0]


def _finite(field: Field, points: Tensor) -> Tensor:
    step = STEP * field.radius
    offsets = torch.eye(3, dtype=points.dtype, device=points.device) * step
    around = torch.cat([points[:, None] + offsets, points[:, None] - offsets], 1)
    ahead, behind = field.density(around.view(-1, 3)).view(-1, 2, 3).unbind(1)
    return (ahead - behind) / (2 * step)


def _analytic(field: Field, points: Tensor) -> Tensor:
    if not isinstance(field, DenseGrid):
        raise TypeError(
            f"normals='analytic' is for DenseGrid; give 'autograd' or 'finite' for {type(field).__name__}"
        )
    return field.density_gradient(points)


_WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "autograd": _autograd,
    "finite": _finite,
    "analytic": _analytic,
}
