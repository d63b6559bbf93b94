"""Cameras that look at the origin, and their rays.

The world is right-handed with z up.  A camera looks along its own -z, with x to the right and y up (the axes of
OpenGL and of NeRF data).  Azimuth 0 stands on +y, in front of an object that faces +y, and grows counter-clockwise
seen from above: the camera moves to its own right, and what is near moves left in the image.  Angles are degrees in
everything public and radians inside.

    >>> cameras = orbit(4, torch.Generator().manual_seed(0), views=4)     # one object from four sides
    >>> origins, directions = rays(cameras, 64, 64)                       # (4, 64, 64, 3) each
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fsd.inputs import check_tensor


@dataclass(frozen=True)
class Cameras:
    """A batch of cameras: `c2w` maps camera to world coordinates, `fov_deg` is the vertical field of view.

    Raises TypeError and ValueError for tensors of another type or shape.
    """

    c2w: Float[Tensor, "b 4 4"]
    fov_deg: Float[Tensor, " b"]

    def __post_init__(self) -> None:
        check_tensor(
            "c2w",
            self.c2w,
            "b 4 4",
            "one matrix per camera; a single one is c2w[None], or cameras[n : n + 1]",
        )
        check_tensor("fov_deg", self.fov_deg, "b", "one angle per camera", b=len(self.c2w))
        if self.c2w.dtype != self.fov_deg.dtype:
            raise TypeError(
                f"c2w has the type {self.c2w.dtype} and fov_deg {self.fov_deg.dtype}; give both the same, for "
                "instance fov_deg.to(c2w)"
            )

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, index: slice | Tensor) -> "Cameras":
        return Cameras(self.c2w[index], self.fov_deg[index])

    def to(self, *args: Any, **kwargs: Any) -> "Cameras":
        """As Tensor.to, for every tensor."""
        return Cameras(*(getattr(self, field.name).to(*args, **kwargs) for field in fields(self)))

    @property
    def position(self) -> Float[Tensor, "b 3"]:
        """Where the cameras stand."""
        return self.c2w[:, :3, 3]

    @property
    def distance(self) -> Float[Tensor, " b"]:
        """From the origin."""
        return self.position.norm(dim=1)

    @property
    def azimuth_deg(self) -> Float[Tensor, " b"]:
        """In [0, 360); of a camera straight above or below, of its right-hand axis."""
        x, y, _ = self.position.unbind(1)
        right = self.c2w[:, :3, 0]
        pole = torch.hypot(x, y) < 1e-5 * self.distance
        angle = torch.where(pole, torch.atan2(-right[:, 1], -right[:, 0]), torch.atan2(-x, y))
        degrees = torch.rad2deg(angle)
        # A tiny negative angle plus 360 rounds to 360 itself.
        wrapped = torch.where(degrees < 0, degrees + 360, degrees)
        return torch.where(wrapped >= 360, torch.zeros_like(wrapped), wrapped)

    @property
    def elevation_deg(self) -> Float[Tensor, " b"]:
        """In [-90, 90]; positive above the horizon."""
        x, y, z = self.position.unbind(1)
        return torch.rad2deg(torch.atan2(z, torch.hypot(x, y)))


def place(
    azimuth_deg: Sequence[float] | Tensor,
    elevation_deg: float | Sequence[float] | Tensor = 15.0,
    distance: float | Sequence[float] | Tensor = 2.6,
    fov_deg: float | Sequence[float] | Tensor = 40.0,
) -> Cameras:
    """Cameras at given angles, looking at the origin; single numbers hold for all.

    Raises ValueError for an elevation outside [-90, 90], a distance that is not positive, or a field of view
    outside (0, 180).
    """
    azimuth = torch.as_tensor(azimuth_deg)
    azimuth = azimuth if azimuth.is_floating_point() else azimuth.float()
    if azimuth.ndim != 1:
        raise ValueError(f"azimuth_deg has shape {tuple(azimuth.shape)}; give one number per camera")
    elevation, away, fov = (
        torch.as_tensor(value, dtype=azimuth.dtype, device=azimuth.device).expand(len(azimuth))
        for value in (elevation_deg, distance, fov_deg)
    )
    _refuse_outside("elevation_deg", elevation, (elevation >= -90) & (elevation <= 90), "in [-90, 90]")
    _refuse_outside("distance", away, away > 0, "positive")
    _refuse_outside("fov_deg", fov, (fov > 0) & (fov < 180), "between 0 and 180")
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    zero = torch.zeros_like(a)
    back = torch.stack([-e.cos() * a.sin(), e.cos() * a.cos(), e.sin()], 1)
    right = torch.stack([-a.cos(), -a.sin(), zero], 1)
    up = torch.linalg.cross(back, right)
    c2w = torch.eye(4, dtype=a.dtype, device=a.device).repeat(len(a), 1, 1)
    c2w[:, :3, :] = torch.stack([right, up, back, back * away[:, None]], 2)
    return Cameras(c2w, fov)


def orbit(
    batch: int,
    generator: torch.Generator,
    views: int = 1,
    azimuth_deg: tuple[float, float] = (0.0, 360.0),
    elevation_deg: tuple[float, float] = (0.0, 40.0),
    distance: tuple[float, float] = (2.6, 2.6),
    fov_deg: tuple[float, float] = (40.0, 40.0),
) -> Cameras:
    """Random cameras around the object, each number uniform in its range.

    With `views` > 1 the batch falls into groups of that many, `views` equal steps of azimuth apart and alike in all
    else, as multi-view priors want them; azimuths of a batch are stratified over the groups.
    Raises ValueError if `views` does not divide `batch`.
    """
    if batch < 1 or views < 1 or batch % views:
        raise ValueError(
            f"batch={batch} with views={views}; give at least one camera, a multiple of the views of an object"
        )
    groups = batch // views
    u = torch.rand(4, groups, generator=generator, device=generator.device)
    low, high = azimuth_deg
    step = (high - low) / views
    start = (torch.arange(groups, device=u.device) + u[0]) / groups * step
    azimuth = low + start[:, None] + step * torch.arange(views, device=u.device)
    rest = [
        (a + (b - a) * row).repeat_interleave(views)
        for (a, b), row in zip((elevation_deg, distance, fov_deg), u[1:], strict=True)
    ]
    return place(azimuth.flatten(), *rest)


def turntable(
    count: int,
    elevation_deg: float = 15.0,
    distance: float = 2.6,
    fov_deg: float = 40.0,
    start_deg: float = 0.0,
) -> Cameras:
    """`count` cameras once around the object in equal steps."""
    return place(start_deg + torch.arange(count) * (360.0 / count), elevation_deg, distance, fov_deg)


def rays(
    cameras: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h w 3"]]:
    """Origins and unit directions of the rays through the pixels' centres; row 0 is the top of the image."""
    c2w = cameras.c2w
    half = torch.tan(torch.deg2rad(cameras.fov_deg) / 2)
    x = (torch.arange(width, dtype=c2w.dtype, device=c2w.device) + 0.5) * 2 - width
    y = height - (torch.arange(height, dtype=c2w.dtype, device=c2w.device) + 0.5) * 2
    grid = torch.stack(torch.broadcast_tensors(x[None, :] / height, y[:, None] / height), -1)
    xy = grid * half[:, None, None, None]
    camera = torch.cat([xy, -torch.ones_like(xy[..., :1])], -1)
    directions = torch.einsum("bij,bhwj->bhwi", c2w[:, :3, :3], camera)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    return cameras.position[:, None, None].expand_as(directions), directions


def to_json(cameras: Cameras, path: str | os.PathLike[str], width: int, height: int) -> None:
    """Writes the NeRF form: `frames` with `transform_matrix`, and the horizontal angle of each in radians.

    Widely read programs know one `camera_angle_x` for the file: it is written where all cameras share it.
    """
    half = torch.tan(torch.deg2rad(cameras.fov_deg.double()) / 2) * width / height
    angles = (2 * torch.atan(half)).tolist()
    frames = [
        {"file_path": f"{n:03d}.png", "camera_angle_x": angle, "transform_matrix": matrix}
        for n, (angle, matrix) in enumerate(zip(angles, cameras.c2w.tolist(), strict=True))
    ]
    content: dict[str, Any] = {"w": width, "h": height, "frames": frames}
    if max(angles) == min(angles):
        content = {"camera_angle_x": angles[0], **content}
    Path(os.path.expanduser(path)).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def from_json(path: str | os.PathLike[str]) -> Cameras:
    """Reads the NeRF form; without `w` and `h` the images are taken to be square.

    Raises ValueError for a file without frames, angles or 4x4 matrices.
    """
    try:
        content = json.loads(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
        frames = content["frames"]
        shared = content.get("camera_angle_x")
        wide = torch.tensor([f.get("camera_angle_x", shared) for f in frames], dtype=torch.float64)
        c2w = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float32)
        aspect = content.get("h", 1) / content.get("w", 1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no camera file in the NeRF form: it needs `frames` with `transform_matrix`, and "
            f"`camera_angle_x` ({type(error).__name__}: {error})"
        ) from error
    if c2w.ndim != 3 or c2w.shape[1:] != (4, 4):
        raise ValueError(f"{path}: the matrices have shape {tuple(c2w.shape[1:])}; it must be (4, 4)")
    fov = 2 * torch.atan(torch.tan(wide / 2) * aspect)
    return Cameras(c2w, (fov * (180 / math.pi)).float())


def _refuse_outside(name: str, values: Tensor, fine: Tensor, allowed: str) -> None:
    if not bool(fine.all()):
        raise ValueError(f"{name} holds {values[~fine][0].item():g}; it must be {allowed}")
