"""The mesh back from a .glb that `fsd.mesh.write_mesh` wrote.

trimesh reads such a file, too, but drops colours of vertices that stand beside a material.

    >>> mesh = read_glb("mushroom.glb")
"""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fsd.mesh import Mesh

_TYPES = {5121: "<u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def read_glb(path: str | os.PathLike[str]) -> Mesh:
    """The first mesh of the file on the world's axes (z up, faces +y), its colours as those of images.

    Raises ValueError for a file that is no such GLB.
    """
    content = Path(os.path.expanduser(path)).read_bytes()
    try:
        magic, _, _, length, _ = struct.unpack_from("<4sIIII", content)
        if magic != b"glTF":
            raise ValueError("it does not begin with glTF")
        tree = json.loads(content[20 : 20 + length])
        binary = content[20 + length + 8 :]
        (primitive,) = tree["meshes"][0]["primitives"]
        x, y, z = _values(tree, binary, primitive["attributes"]["POSITION"]).T
        linear = _values(tree, binary, primitive["attributes"]["COLOR_0"])[:, :3] / 255
        faces = _values(tree, binary, primitive["indices"]).reshape(-1, 3)
    except (KeyError, IndexError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is no GLB of `fsd export` or `fsd generate` ({error})") from error
    # From amounts of light to the colours of images (sRGB), IEC 61966-2-1.
    colors = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Mesh(np.stack([-x, z, y], 1), faces.astype(np.int64), colors)


def _values(tree: dict[str, Any], binary: bytes, number: int) -> np.ndarray:
    accessor = tree["accessors"][number]
    view = tree["bufferViews"][accessor["bufferView"]]
    width = _WIDTHS[accessor["type"]]
    start = view["byteOffset"] + accessor.get("byteOffset", 0)
    values = np.frombuffer(binary, _TYPES[accessor["componentType"]], accessor["count"] * width, start)
    return values.reshape(-1, width)
