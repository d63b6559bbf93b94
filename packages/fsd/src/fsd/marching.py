"""Marching through the occupied cells with nerfacc's CUDA kernels: opt-in, quicker than dense samples on a GPU.

nerfacc compiles the kernels when they are first wanted, which takes minutes and a CUDA toolkit.  So nothing here
calls them to find out: `obstacle` looks where the rays are, announces the compile and gives the reason if there
will be none; `fsd.render.render_rays` is what to fall back on.
"""

import sys
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fsd.fields import Field
from fsd.normals import surface_normals
from fsd.occupancy import OccupancyGrid
from fsd.render import Rays, check_rays, interval, nerfacc

_KEPT = "_nerfacc_estimator"


def obstacle(rays: Tensor) -> str | None:
    """Why marching is impossible for these rays, or None if it works; the first call on a GPU may compile."""
    if not rays.is_cuda:
        return f"marching needs rays on a CUDA device and these are on {rays.device}"
    print(
        "marching: loading nerfacc's CUDA kernels; the first time they compile, for minutes", file=sys.stderr
    )
    try:
        from nerfacc.cuda import _backend
    except (ImportError, OSError, RuntimeError) as error:
        return f"nerfacc's CUDA kernels do not compile here ({type(error).__name__}: {error})"
    return None if getattr(_backend, "_C", None) is not None else "nerfacc found no CUDA toolkit (nvcc)"


def march_rays(
    field: Field,
    origins: Float[Tensor, "n 3"],
    directions: Float[Tensor, "n 3"],
    occupancy: OccupancyGrid,
    step_length: float,
    generator: torch.Generator | None = None,
    normals: str | None = None,
) -> Rays:
    """As `fsd.render.render_rays`, with samples `step_length` apart in occupied cells alone.

    A generator shifts all samples of a ray by a part of a step.  Memory grows with what is occupied: there are no
    chunks.  Raises ValueError for rays that are not on a CUDA device.
    """
    check_rays(origins, directions)
    if not origins.is_cuda:
        raise ValueError(f"rays are on {origins.device}; marching needs CUDA, render_rays works anywhere")
    near, far = interval(origins, directions, field.radius)
    if generator is not None:
        shift = torch.rand(len(near), generator=generator, device=generator.device)
        near = near + shift.to(near) * step_length
    with torch.no_grad():
        ray, starts, ends = _estimator(occupancy).sampling(
            origins, directions, t_min=near, t_max=far, render_step_size=step_length
        )
    middle = (starts + ends) / 2
    points = origins[ray] + directions[ray] * middle[:, None]
    density, color = field(points)
    count = len(origins)
    weights, _, _ = nerfacc.render_weight_from_density(starts, ends, density, ray_indices=ray, n_rays=count)

    def along(values: Tensor | None) -> Tensor:
        return nerfacc.accumulate_along_rays(weights, values, ray, count)

    opacity = along(None)
    depth = along(middle[:, None]) / opacity.clamp_min(torch.finfo(opacity.dtype).eps)
    normal = None
    if normals is not None:
        mean = along(surface_normals(field, points, normals))
        normal = mean / (mean.square().sum(1, keepdim=True) + 1e-12).sqrt() * opacity
    return Rays(along(color), opacity[:, 0], depth[:, 0], normal)


def _estimator(occupancy: OccupancyGrid) -> Any:
    """nerfacc's grid with our cells in it, made once for a grid and device: making one copies from the host."""
    device = occupancy.occupied.device
    # Beside the module's own state: neither a parameter nor part of a checkpoint.
    estimator = vars(occupancy).get(_KEPT)
    if estimator is None or estimator.binaries.device != device:
        cube = torch.tensor([-occupancy.radius] * 3 + [occupancy.radius] * 3)
        estimator = nerfacc.OccGridEstimator(cube, occupancy.resolution, levels=1).to(device)
        vars(occupancy)[_KEPT] = estimator
    estimator.binaries = occupancy.occupied[None]
    return estimator
