"""What the page's script is given: quantised arrays that give the mesh back, thinned out where it is large."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from fsd.glb import read_glb
from fsd.mesh import Mesh, extract_mesh, write_mesh
from fsd.viewer import mesh_view, thin_out, viewer_script
from skimage.measure import marching_cubes


def ball(points: int) -> Mesh:
    """Of radius 0.5 around (1, 2, 3), stretched threefold along z; its colour tells the height."""
    axis = np.linspace(-1, 1, points)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    vertices, faces, _, _ = marching_cubes(0.5 - np.sqrt(x**2 + y**2 + z**2), 0.0)
    unit = (vertices / (points - 1) * 2 - 1) * [1, 1, 3]
    height = (unit[:, 2:] + 1.5) / 3
    return Mesh(
        unit + np.array([1, 2, 3]),
        faces[:, ::-1],
        np.concatenate([height, 1 - height, 0 * height], 1).clip(0, 1),
    )


def attribute(html: str, name: str) -> str:
    found = re.search(f'data-{name}="([^"]*)"', html)
    assert found
    return found[1]


def decoded(html: str) -> Mesh:
    """As viewer.js reads it; positions are relative to the middle of the mesh's box."""
    arrays = {}
    for name, kind in (("positions", "<u2"), ("colors", "u1"), ("faces", "<u2")):
        arrays[name] = np.frombuffer(base64.b64decode(attribute(html, name)), kind).reshape(-1, 3)
    corner = np.array([float(number) for number in attribute(html, "corner").split()])
    vertices = arrays["positions"] / 65535 * float(attribute(html, "extent")) + corner
    return Mesh(vertices, arrays["faces"].astype(int), arrays["colors"] / 255)


def area(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def volume(mesh: Mesh) -> float:
    """Positive where triangles run counter-clockwise seen from outside."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def test_the_arrays_give_the_mesh_back() -> None:
    mesh = ball(20)
    shown = decoded(mesh_view(mesh))
    middle = (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2
    assert np.array_equal(shown.faces, mesh.faces)
    assert np.abs(shown.vertices - (mesh.vertices - middle)).max() <= 3.0 / 65535 + 1e-5
    assert np.abs(shown.colors - mesh.colors).max() <= 0.5 / 255 + 1e-9
    assert float(attribute(mesh_view(mesh), "radius")) == pytest.approx(1.5, abs=0.1)


def test_words_are_escaped_and_no_address_is_called() -> None:
    html = mesh_view(ball(8), '<b>"seed" & co</b>')
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    script = viewer_script()
    assert script.count("<script>") == script.count("</script>") == 1
    assert not re.search(r"https?:|//[a-z]+\.|fetch|XMLHttpRequest|import\s*\(", script)


def test_a_large_mesh_keeps_its_form_and_its_colours() -> None:
    mesh = ball(120)
    assert len(mesh.faces) > 20_000
    small = thin_out(mesh, 4_000)
    assert 2_000 < len(small.faces) <= 4_000
    assert volume(small) == pytest.approx(volume(mesh), rel=0.03)
    assert area(small) == pytest.approx(area(mesh), rel=0.05)
    height = (small.vertices[:, 2] - 3 + 1.5) / 3
    assert np.abs(small.colors[:, 0] - height).max() < 0.02
    assert len(np.unique(small.faces)) == len(small.vertices)
    assert mesh_view(mesh, triangles=4_000) == mesh_view(small)


def test_a_small_mesh_stays_but_for_vertices_that_nothing_uses() -> None:
    mesh = ball(10)
    lonely = Mesh(
        np.concatenate([[[9.0, 9, 9]], mesh.vertices]),
        mesh.faces + 1,
        np.concatenate([[[0, 0, 0]], mesh.colors]),
    )
    kept = thin_out(lonely)
    assert all(np.array_equal(a, b) for a, b in zip(kept, mesh, strict=True))


def test_errors() -> None:
    mesh = ball(8)
    with pytest.raises(ValueError, match="no triangles"):
        mesh_view(Mesh(mesh.vertices, mesh.faces[:0], mesh.colors))
    with pytest.raises(ValueError, match="triangles=30000; give 4 to 21845"):
        thin_out(mesh, 30_000)


def test_a_mesh_of_a_scene_comes_back_from_its_glb(made_up_run: Path, tmp_path: Path) -> None:
    from fsd.scene import load_scene

    mesh = extract_mesh(load_scene(made_up_run / "objects" / "a-toy-fsd-seed0" / "scene.safetensors"), 24)
    write_mesh(mesh, tmp_path / "a.glb")
    read = read_glb(tmp_path / "a.glb")
    assert np.allclose(read.vertices, mesh.vertices, atol=1e-6)
    assert np.array_equal(read.faces, mesh.faces)
    # A byte of linear light is up to 0.05 of an image's scale in the dark, a hundredth where it is bright.
    assert np.abs(read.colors - mesh.colors).max() < 0.05
    assert np.abs(read.colors - mesh.colors).mean() < 0.01
    (tmp_path / "a.glb").write_bytes(b"no mesh, but long enough to have a header")
    with pytest.raises(ValueError, match=r"a.glb is no GLB"):
        read_glb(tmp_path / "a.glb")
