"""A mesh to turn by hand, inside a page that fetches nothing.

    >>> sections = [mesh_view(mesh, "seed 0"), mesh_view(other, "seed 1"), viewer_script()]
    >>> write_report("report.html", "Two mushrooms", sections)

Positions travel as 16-bit whole numbers along the mesh's longest side and colours as bytes, about 15 bytes a
triangle before base64.  The script `viewer.js` is ours: WebGL 2, no library.
"""

import base64
from importlib.resources import files

import numpy as np
from markupsafe import Markup

from fsd.mesh import Mesh

TRIANGLES = 20_000

_STYLE = """<style>
figure.mesh { position: relative; width: 14rem; margin: 0; }
figure.mesh canvas { display: block; width: 100%; aspect-ratio: 1; background: #808080; border-radius: 8px;
  cursor: grab; touch-action: pan-y; }
figure.mesh canvas:active { cursor: grabbing; }
figure.mesh canvas:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
figure.mesh p { position: absolute; inset: 0 0 auto; margin: 0; padding: 1rem; color: #ffffff; font-size: 0.85rem; }
figure.mesh.alive p { display: none; }
</style>"""


def mesh_view(mesh: Mesh, caption: str = "", triangles: int = TRIANGLES) -> Markup:
    """A section of a report that shows the mesh from its front and turns; `viewer_script` must follow once.

    Meshes of more than `triangles` are thinned out (`thin_out`).  Raises ValueError for a mesh without triangles.
    """
    if not len(mesh.faces):
        raise ValueError("the mesh has no triangles; there is nothing to show")
    small = thin_out(mesh, triangles)
    low, high = small.vertices.min(0), small.vertices.max(0)
    extent = max(float((high - low).max()), 1e-9)
    # Scaled alike along all axes, around the middle, so that shader and normals need one number.
    corner = (low + high) / 2 - extent / 2
    positions = np.round((small.vertices - corner) / extent * 65535).astype("<u2")
    colors = np.round(small.colors.clip(0, 1) * 255).astype(np.uint8)
    radius = float(np.linalg.norm(small.vertices - (low + high) / 2, axis=1).max())
    center_to_origin = corner - (low + high) / 2
    return Markup(
        '<figure class="mesh"><canvas class="mesh" tabindex="0" role="img" aria-label="{label}" title="{title}" '
        'data-corner="{corner}" data-extent="{extent}" data-radius="{radius}" '
        'data-positions="{positions}" data-colors="{colors}" data-faces="{faces}"></canvas>'
        "<p>This browser shows no WebGL 2. The mesh itself stands in the object's folder.</p>{caption}</figure>\n"
    ).format(
        label=f"3D view: {caption}" if caption else "3D view",
        title="Drag or use the arrow keys to turn; click, then wheel or + and - to zoom; space turns it on",
        corner=" ".join(f"{value:.6g}" for value in center_to_origin),
        extent=f"{extent:.6g}",
        radius=f"{max(radius, 1e-9):.6g}",
        positions=_base64(positions),
        colors=_base64(colors),
        faces=_base64(small.faces.astype("<u2")),
        caption=Markup("<figcaption>{}</figcaption>").format(caption) if caption else "",
    )


def viewer_script() -> Markup:
    """Style and script of all `mesh_view` sections before it, once per page."""
    script = files("fsd").joinpath("viewer.js").read_text(encoding="utf-8")
    return Markup(f"{_STYLE}\n<script>\n{script}</script>\n")


def thin_out(mesh: Mesh, triangles: int = TRIANGLES) -> Mesh:
    """The mesh with at most `triangles` triangles: vertices in one cell of a grid become their mean.

    The finest grid that suffices is taken; the outline keeps to within a cell.  Vertices that no triangle uses are
    dropped.  Raises ValueError for `triangles` outside [4, 21845], beyond which indices need more than 16 bits.
    """
    if not 4 <= triangles <= 21_845:
        raise ValueError(f"triangles={triangles}; give 4 to 21845")
    if len(mesh.faces) <= triangles:
        return _used(mesh)
    low = mesh.vertices.min(0)
    extent = max(float((mesh.vertices.max(0) - low).max()), 1e-9)
    # A surface has about cells^2 triangles: from too fine a grid down in steps of a twelfth.
    cells = int(4 * np.sqrt(triangles)) + 8
    while True:
        merged = _merged(mesh, np.floor((mesh.vertices - low) / extent * cells).astype(np.int64))
        if len(merged.faces) <= triangles:
            return merged
        cells = cells * 11 // 12


def _merged(mesh: Mesh, cell: np.ndarray) -> Mesh:
    _, group = np.unique(cell, axis=0, return_inverse=True)
    group = group.reshape(-1)
    count = np.bincount(group)[:, None]
    vertices, colors = (
        np.stack([np.bincount(group, values[:, k]) for k in range(3)], 1) / count
        for values in (mesh.vertices, mesh.colors)
    )
    faces = group[mesh.faces]
    a, b, c = faces.T
    return _used(Mesh(vertices, faces[(a != b) & (b != c) & (c != a)], colors))


def _used(mesh: Mesh) -> Mesh:
    kept, faces = np.unique(mesh.faces, return_inverse=True)
    return Mesh(mesh.vertices[kept], faces.reshape(-1, 3), mesh.colors[kept])


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
