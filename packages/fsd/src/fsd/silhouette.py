"""Which pixels a mesh covers: what its shape is compared with renders by.

>>> covered = silhouettes(mesh.vertices, mesh.faces, cameras, size=64)
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from fsd.cameras import Cameras
from fsd.inputs import check_array, check_cameras

EDGE = 1e-9  # pixels; a centre on the edge of two triangles must lie in one of them after rounding


def silhouettes(
    vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "m 3"], cameras: Cameras, size: int
) -> Bool[np.ndarray, "b h w"]:
    """True where the ray through a pixel's centre meets a triangle.

    Every triangle's pixels are tested at once, so it is meant for small triangles, as marching cubes make them.
    Raises ValueError for a mesh that is not wholly in front of each camera.
    """
    check_cameras(cameras)
    check_array("vertices", vertices, "n 3")
    check_array("faces", faces, "m 3")
    return np.stack([_covered(vertices, faces, cameras[k : k + 1], size) for k in range(len(cameras))])


def _covered(vertices: np.ndarray, faces: np.ndarray, camera: Cameras, size: int) -> np.ndarray:
    c2w = camera.c2w[0].double().numpy()
    local = (vertices - c2w[:3, 3]) @ c2w[:3, :3]
    if not (local[:, 2] < 0).all():
        raise ValueError("the mesh reaches behind a camera; move the camera away from it")
    half = float(torch.tan(torch.deg2rad(camera.fov_deg[0].double()) / 2))
    across = local[:, :2] / -local[:, 2:] / half
    # In pixels, the centre of the upper left one at (0, 0).
    pixel = (across * [1, -1] + 1) * size / 2 - 0.5
    a, b, c = (pixel[faces[:, k]] for k in range(3))
    corners = np.stack([a, b, c])
    low = np.ceil(corners.min(0) - EDGE).astype(int)
    high = np.floor(corners.max(0) + EDGE).astype(int)
    covered = np.zeros((size, size), dtype=bool)
    reach = (high - low).max(initial=-1) + 1
    for dx in range(reach):
        for dy in range(reach):
            centre = low + np.array([dx, dy])
            near = (centre <= high).all(1) & (centre >= 0).all(1) & (centre < size).all(1)
            p = centre[near]
            sides = np.stack([_side(u[near], v[near], p) for u, v in ((a, b), (b, c), (c, a))])
            inside = (sides >= -EDGE).all(0) | (sides <= EDGE).all(0)
            covered[p[inside, 1], p[inside, 0]] = True
    return covered


def _side(u: np.ndarray, v: np.ndarray, p: np.ndarray) -> np.ndarray:
    """On which side of the line from u to v the points p lie."""
    return (v[:, 0] - u[:, 0]) * (p[:, 1] - u[:, 1]) - (v[:, 1] - u[:, 1]) * (p[:, 0] - u[:, 0])
