"""Colours of a mesh as a picture instead of at its corners, which holds more detail on the same triangles.

Every two triangles share a square cell of the picture, one on each side of its diagonal, at `texels` a side: an
atlas without seams to find and without a library.

    >>> textured = bake_texture(scene, extract_mesh(scene, 64), texels=8)
    >>> write_textured(textured, "mushroom.glb")
"""

import math
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image

from fsd.mesh import TO_GLB, Mesh, check_mesh, device_of, outward_normals, surface_colors
from fsd.scene import Scene

Array = np.ndarray


class TexturedMesh(NamedTuple):
    """Triangles that share no corner, each with its place in the picture."""

    vertices: Float[Array, "n 3"]
    faces: Int[Array, "m 3"]
    uv: Float[Array, "n 2"]  # in [0, 1]; v grows upwards in the picture
    texture: UInt8[Array, "h w 3"]


@torch.no_grad()
def bake_texture(scene: Scene, mesh: Mesh, texels: int = 8) -> TexturedMesh:
    """The mesh with the scene's colours in a picture of at most `texels`^2 texels for every two triangles.

    Raises ValueError for fewer than 4 texels, which leave no inside to a triangle, and for an empty mesh.
    """
    if texels < 4:
        raise ValueError(f"texels={texels}; a cell needs at least 4 texels a side")
    check_mesh(mesh)
    count = len(mesh.faces)
    columns = math.ceil(math.sqrt((count + 1) // 2))
    rows = math.ceil((count + 1) // 2 / columns)

    # In cell coordinates: the first triangle's corners near the upper left, the second's near the lower right; the
    # gap between their long sides keeps the texels that filtering mixes on one side.
    inset, last = 0.5, texels - 0.5
    first = np.array([[inset, inset], [last - 1.5, inset], [inset, last - 1.5]])
    cell = np.arange(count) // 2
    origin = np.stack([cell % columns, cell // columns], 1) * texels
    place = np.where((np.arange(count) % 2 == 0)[:, None, None], first, texels - first)
    corners = place + origin[:, None]

    device = device_of(scene)
    normals = outward_normals(mesh.vertices, mesh.faces)
    texture = np.zeros((rows * texels, columns * texels, 3), dtype=np.uint8)
    # Every texel belongs to the triangle on its side of the diagonal, even a little outside of it.
    v, u = np.mgrid[:texels, :texels] + 0.5
    for odd in (0, 1):
        owned = (u + v < texels) if odd == 0 else (u + v >= texels)
        at = np.stack([u[owned], v[owned]], 1)
        corner = first if odd == 0 else texels - first
        weights = np.linalg.solve(np.vstack([corner.T, np.ones(3)]), np.vstack([at.T, np.ones(len(at))])).T
        weights = weights.clip(0, 1) / weights.clip(0, 1).sum(1, keepdims=True)
        faces = mesh.faces[odd::2]
        points = np.einsum("tk,mkd->mtd", weights, mesh.vertices[faces]).reshape(-1, 3)
        outward = np.einsum("tk,mkd->mtd", weights, normals[faces]).reshape(-1, 3)
        outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-12)
        places = (torch.from_numpy(x.astype(np.float32)).to(device) for x in (points, outward))
        found = surface_colors(scene, *places)
        y, x = (np.floor(at[:, k]).astype(int)[None] + origin[odd::2, k : k + 1] for k in (1, 0))
        texture[y, x] = (found.cpu().numpy() * 255).round().astype(np.uint8).reshape(*y.shape, 3)

    uv = corners.reshape(-1, 2) / [texture.shape[1], texture.shape[0]]
    uv[:, 1] = 1 - uv[:, 1]
    vertices = mesh.vertices[mesh.faces].reshape(-1, 3)
    return TexturedMesh(vertices, np.arange(3 * count).reshape(-1, 3), uv.astype(np.float32), texture)


def plain_name(name: str) -> str:
    """Return a name that an OBJ may hold: readers split `usemtl` and `mtllib` at blanks; few know more than ASCII."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "mesh"
    # The number keeps two names apart that differ in what was replaced.
    return plain if plain == name else f"{plain}-{sha256(name.encode()).hexdigest()[:6]}"


def write_textured(mesh: TexturedMesh, path: str | os.PathLike[str]) -> None:
    """Writes .glb, which holds the picture, or .obj with .mtl and .png beside it.  Raises ValueError for others."""
    import trimesh
    from trimesh.exchange.obj import export_obj
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial, SimpleMaterial

    path = Path(os.path.expanduser(path))
    if path.suffix.lower() not in (".glb", ".obj"):
        raise ValueError(f"{path}: a mesh with a texture ends in .glb or .obj")
    glb = path.suffix.lower() == ".glb"
    picture = Image.fromarray(mesh.texture)
    if glb:
        material = PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0)
    else:
        material = SimpleMaterial(image=picture)
        material.name = plain_name(path.stem)
    made = trimesh.Trimesh(
        mesh.vertices @ TO_GLB.T if glb else mesh.vertices,
        mesh.faces,
        visual=TextureVisuals(uv=mesh.uv, material=material),
        process=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if glb:
        made.export(path)
        return
    library = f"{plain_name(path.stem)}.mtl"
    text, files = export_obj(made, include_texture=True, return_texture=True, mtl_name=library)
    path.write_text(text, encoding="utf-8")
    for name, data in files.items():
        (path.parent / name).write_bytes(data)
