"""From a field to a mesh, and from a mesh to a file.

    >>> mesh = extract_mesh(scene, resolution=96)
    >>> write_mesh(mesh, "mushroom.glb")

A mesh keeps the world's axes: z up, the object faces +y.  So do .obj and .ply; a .glb is y up and faces +z, as its
standard wants, and holds linear colours where all else holds those of images.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsd.cameras import place, rays
from fsd.inputs import check_array, check_tensor
from fsd.render import interval, nerfacc
from fsd.scene import Scene

Array = np.ndarray
SUFFIXES = (".glb", ".obj", ".ply")


class Mesh(NamedTuple):
    """Triangles with a colour at each corner."""

    vertices: Float[Array, "n 3"]
    faces: Int[Array, "m 3"]  # counter-clockwise seen from outside
    colors: Float[Array, "n 3"]  # in [0, 1]


@torch.no_grad()
def extract_mesh(scene: Scene, resolution: int = 96, threshold: float | None = None) -> Mesh:
    """The surface on which the density is `threshold`, by marching cubes on `resolution`^3 points.

    threshold: density; None takes the one whose silhouette agrees best with the scene's own opacity
    (`best_threshold`).

    Raises ValueError for an empty scene and a threshold that nothing reaches.
    """
    from skimage.measure import marching_cubes

    if resolution < 4:
        raise ValueError(f"resolution={resolution}; marching cubes need at least 4 points a side")
    radius = scene.field.radius
    lattice = density_lattice(scene, resolution)
    if threshold is None:
        threshold = best_threshold(scene, lattice)
    highest = float(lattice.max())
    if not 0 < threshold < highest:
        raise ValueError(
            f"no surface: the density reaches {highest:.3g} and the threshold is {threshold:.3g}; give a threshold "
            "between 0 and that, or optimise the scene for longer"
        )
    # One layer of nothing around, so that what touches the cube's faces is closed there.
    padded = np.pad(lattice.cpu().numpy(), 1)
    corner, faces, _, _ = marching_cubes(padded, threshold)
    spacing = 2 * radius / (resolution - 1)
    vertices = ((corner - 1) * spacing - radius).astype(np.float32)
    # skimage's triangles are counter-clockwise seen from where the values are high: from inside.
    faces = np.ascontiguousarray(faces[:, ::-1]).astype(np.int64)
    outward = torch.from_numpy(outward_normals(vertices, faces))
    colors = surface_colors(scene, torch.from_numpy(vertices).to(lattice), outward.to(lattice))
    return Mesh(vertices, faces, colors.cpu().numpy())


@torch.no_grad()
def density_lattice(scene: Scene, resolution: int) -> Float[Tensor, "r r r"]:
    """The density on `resolution`^3 points that fill the scene's cube; axes x, y, z."""
    device = device_of(scene)
    axis = torch.linspace(-scene.field.radius, scene.field.radius, resolution, device=device)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    found = [scene.field.density(chunk) for chunk in points.split(2**18)]
    return torch.cat(found).view(resolution, resolution, resolution)


@torch.no_grad()
def best_threshold(scene: Scene, lattice: Float[Tensor, "r r r"], size: int = 64) -> float:
    """The density whose surface has the silhouette most like the scene's renders, by intersection over union.

    A pixel lies in the silhouette of the surface at a density exactly if the largest density along its ray is at
    least that, so one look along the rays of some views gives the silhouettes of all thresholds at once.

    Raises ValueError for a scene that is empty: no pixel is more than half opaque.
    """
    r = len(lattice)
    check_tensor("lattice", lattice, "r r r", "as density_lattice gives it", r=r)
    views = place([0.0, 60.0, 120.0, 180.0, 240.0, 300.0, 0.0], [0.0, 30.0, -20.0, 15.0, -40.0, 45.0, 80.0])
    views = views.to(lattice.device)
    shown = (scene.render(views, size).opacity > 0.5).flatten()
    if not bool(shown.any()):
        raise ValueError(
            "the scene is empty: nothing in it is more than half opaque; optimise it for longer, raise its density "
            "(blob_scale), or look at its renders first"
        )
    reached = _largest_along_rays(lattice, scene.field.radius, *rays(views, size, size))
    order = reached.argsort(descending=True)
    hits = shown[order].cumsum(0)
    # With the k highest pixels in the silhouette: intersection hits[k], union k + shown - hits[k].
    union = torch.arange(1, len(order) + 1, device=order.device) + shown.sum() - hits
    best = int((hits / union).argmax())
    ordered = reached[order]
    following = ordered[min(best + 1, len(order) - 1)]
    # Between the last pixel inside and the first outside; densities span decades, so in the geometric middle.
    return float((ordered[best].clamp_min(1e-8) * following.clamp_min(1e-8)).sqrt())


@torch.no_grad()
def surface_colors(
    scene: Scene, points: Float[Tensor, "n 3"], outward: Float[Tensor, "n 3"]
) -> Float[Tensor, "n 3"]:
    """What one sees of the scene at points of its surface, looking along the normal from just outside.

    Surfaces of fields are fog: much of what one sees at a place lies behind it, so a short ray is rendered there.
    Fitted to photographs, a third as far from what is seen as the field's colour at the point itself.
    """
    check_tensor("points", points, "n 3")
    check_tensor("outward", outward, "n 3", "one normal per point", n=len(points))
    edges = torch.linspace(-0.15, 0.45, 25, device=points.device) * scene.field.radius
    t = (edges[1:] + edges[:-1]) / 2
    found = []
    for near, away in zip(points.split(2**14), outward.split(2**14), strict=True):
        along = (near[:, None] - away[:, None] * t[:, None]).clamp(-scene.field.radius, scene.field.radius)
        density, color = scene.field(along.view(-1, 3))
        starts, ends = (edge.expand(len(near), -1) for edge in (edges[:-1], edges[1:]))
        weights, _, _ = nerfacc.render_weight_from_density(starts, ends, density.view(len(near), -1))
        weights = weights + 1e-8
        found.append(
            (weights[..., None] * color.view(len(near), -1, 3)).sum(1) / weights.sum(1, keepdim=True)
        )
    return torch.cat(found).clamp(0, 1)


def device_of(scene: Scene) -> torch.device:
    """Where the scene's numbers are."""
    return next((value.device for value in scene.state_dict().values()), torch.device("cpu"))


def write_mesh(mesh: Mesh, path: str | os.PathLike[str]) -> None:
    """Writes .glb, .obj or .ply by the path's ending.  Raises ValueError for another ending or an empty mesh."""
    import trimesh

    path = Path(os.path.expanduser(path))
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a mesh ends in one of {', '.join(SUFFIXES)}")
    check_mesh(mesh)
    glb = path.suffix.lower() == ".glb"
    colors = _linear(mesh.colors) if glb else mesh.colors
    made = trimesh.Trimesh(
        mesh.vertices @ TO_GLB.T if glb else mesh.vertices,
        mesh.faces,
        vertex_colors=(colors * 255).round().astype(np.uint8),
        process=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if glb:
        made.export(path, tree_postprocessor=_matte)
    else:
        made.export(path)


def check_mesh(mesh: Mesh) -> None:
    """Check the arrays of a mesh. Raises ValueError for an empty mesh, other shapes, or a corner that is not there."""
    check_array("vertices", mesh.vertices, "n 3")
    check_array("colors", mesh.colors, "n 3", "one colour in [0, 1] per vertex", n=len(mesh.vertices))
    check_array("faces", mesh.faces, "m 3", "three numbers of vertices per triangle")
    if len(mesh.faces) == 0:
        raise ValueError("the mesh has no triangle; extract it at another threshold")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise ValueError(
            f"faces holds {mesh.faces.min()} to {mesh.faces.max()}; with {len(mesh.vertices)} vertices it must be "
            f"0 to {len(mesh.vertices) - 1}"
        )


# Rows are the axes of glTF (x to the left of who faces +z, y up) in those of the world.
TO_GLB = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def _matte(tree: dict[str, Any]) -> None:
    """A material that does not shine: without one, glTF means polished metal."""
    tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive["material"] = 0


def _linear(colors: Array) -> Array:
    """From the colours of images (sRGB) to amounts of light, IEC 61966-2-1."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def _largest_along_rays(
    lattice: Tensor, radius: float, origins: Tensor, directions: Tensor
) -> Float[Tensor, " n"]:
    """The largest value of the interpolated lattice along each ray."""
    steps = 2 * lattice.shape[0]
    origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
    near, far = interval(origins, directions, radius)
    part = (torch.arange(steps, device=near.device) + 0.5) / steps
    largest = []
    for o, d, n, f in zip(*(x.split(2048) for x in (origins, directions, near, far)), strict=True):
        points = o[:, None] + d[:, None] * (n[:, None] + (f - n)[:, None] * part)[..., None]
        where = (points / radius).flip(-1)[None, None]
        values = torch.nn.functional.grid_sample(lattice[None, None], where, align_corners=True)[0, 0, 0]
        largest.append(torch.where(f > n, values.amax(1), torch.zeros_like(n)))
    return torch.cat(largest)


def outward_normals(vertices: Array, faces: Array) -> Array:
    """Unit normals at the vertices: those of the triangles around, weighted by area."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    across = np.cross(b - a, c - a)
    total = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(total, faces[:, k], across)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
