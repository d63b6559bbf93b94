import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from fsd.cameras import orbit, place, turntable
from fsd.glb import read_glb
from fsd.mesh import Mesh, best_threshold, density_lattice, extract_mesh, outward_normals, write_mesh
from fsd.render import render_rays
from fsd.scene import Scene, grid_scene
from fsd.silhouette import silhouettes
from fsd.texture import bake_texture, plain_name, write_textured
from torch import nn

RED, GREEN, BLUE = [0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.9]


class Parts(nn.Module):
    """A green ball with a red nose on +y and a blue ear on -x, as hard as can be."""

    radius = 1.0

    def density(self, points):
        return self(points)[0]

    def forward(self, points):
        places = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [-0.6, 0.0, 0.3]])
        radii, colors = torch.tensor([0.45, 0.25, 0.2]), torch.tensor([GREEN, RED, BLUE])
        depth = radii - (points[:, None] - places).norm(dim=2)
        return 200 * (depth.amax(1) > 0), colors[depth.argmax(1)]


@pytest.fixture(scope="module")
def trained() -> Scene:
    """A grid that was fitted to pictures of `Parts`; on any background, or its opacity would be free."""
    target = Scene(Parts(), nn.Identity(), samples=64)
    scene = grid_scene(32, samples=48)
    optimizer = torch.optim.Adam(scene.field.parameters(), 0.2, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        cameras = orbit(4, generator, elevation_deg=(-40.0, 60.0))
        behind = torch.rand(3, generator=generator)
        with torch.no_grad():
            truth = target.render(cameras, 32, background=behind).image
        loss = (scene.render(cameras, 32, generator, background=behind).image - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.004
    return scene


@pytest.fixture(scope="module")
def mesh(trained: Scene) -> Mesh:
    return extract_mesh(trained, 64)


def overlap(scene: Scene, mesh: Mesh) -> float:
    """Intersection over union of the mesh's and the render's silhouettes on 24 views."""
    cameras = turntable(24)
    with torch.no_grad():
        shown = (scene.render(cameras, 64).opacity[:, 0] > 0.5).numpy()
    covered = silhouettes(mesh.vertices, mesh.faces, cameras, 64)
    return float((shown & covered).sum() / (shown | covered).sum())


@pytest.mark.slow
def test_the_meshs_silhouette_is_the_renders(trained: Scene, mesh: Mesh) -> None:
    assert overlap(trained, mesh) > 0.95


def test_no_other_threshold_is_much_better(trained: Scene, mesh: Mesh) -> None:
    best = best_threshold(trained, density_lattice(trained, 64))
    others = [overlap(trained, extract_mesh(trained, 64, best * factor)) for factor in (0.25, 0.5, 2.0)]
    assert overlap(trained, mesh) > max(others) - 0.01
    assert overlap(trained, mesh) > min(others) + 0.01


def test_the_mesh_is_closed_and_its_triangles_look_outwards(mesh: Mesh) -> None:
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert solid.is_watertight
    # 4/3 pi r^3 of the three balls, whose overlaps are small
    assert solid.volume == pytest.approx(4 / 3 * np.pi * (0.45**3 + 0.25**3 * 0.8 + 0.2**3), rel=0.15)
    top = mesh.vertices[:, 2].argmax()
    assert outward_normals(mesh.vertices, mesh.faces)[top, 2] > 0.5


def test_colours_are_those_one_sees(mesh: Mesh) -> None:
    for place_, color in (([0.0, 0.75, 0.0], RED), ([-0.65, 0.0, 0.5], BLUE), ([0.0, -0.45, 0.0], GREEN)):
        near = np.linalg.norm(mesh.vertices - place_, axis=1) < 0.12
        assert near.sum() > 10
        np.testing.assert_allclose(mesh.colors[near].mean(0), color, atol=0.15)


def test_colours_agree_with_the_render(trained: Scene, mesh: Mesh) -> None:
    # What rays from far in front bring back where the surface looks at them, beside the vertices' colours.
    front = (outward_normals(mesh.vertices, mesh.faces)[:, 1] > 0.8) & (mesh.vertices[:, 1] > 0.3)
    vertices = torch.from_numpy(mesh.vertices[front])
    towards = torch.tensor([[0.0, -1.0, 0.0]]).expand_as(vertices)
    with torch.no_grad():
        found = render_rays(trained.field, vertices - towards, towards, 256)
        at_the_vertex = trained.field(vertices)[1]
    # Not what hides behind something else.
    seen = (found.opacity > 0.9) & ((found.depth - 1).abs() < 0.15)
    color = (found.color / found.opacity[:, None])[seen]
    error = (color - torch.from_numpy(mesh.colors[front])[seen]).abs().mean()
    assert seen.sum() > 50
    assert error < 0.04
    # The field's own colour on the surface is another one: most of what one sees lies behind it.
    assert error < 0.8 * (color - at_the_vertex[seen]).abs().mean()


def test_an_object_that_touches_the_cube_is_closed_there() -> None:
    scene = grid_scene(8, blob_width=3.0)
    mesh = extract_mesh(scene, 16, threshold=1.0)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).is_watertight


def glb_tree(path) -> dict[str, Any]:
    data = path.read_bytes()
    assert data[:4] == b"glTF"
    (length,) = struct.unpack("<I", data[12:16])
    return json.loads(data[20 : 20 + length])


def test_a_glb_is_y_up_and_faces_z(mesh: Mesh, tmp_path) -> None:
    path = tmp_path / "deep" / "object.glb"
    write_mesh(mesh, path)
    tree = glb_tree(path)
    (primitive,) = tree["meshes"][0]["primitives"]
    position = tree["accessors"][primitive["attributes"]["POSITION"]]
    low, high = np.array(position["min"]), np.array(position["max"])
    # The nose, +y, is now on +z; the ear, -x, on the right of who looks at it: +x.
    assert high[2] > 0.7 > -low[2]
    assert high[0] > 0.7 > -low[0]
    material = tree["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0
    again = read_glb(path)
    np.testing.assert_allclose(again.vertices, mesh.vertices, atol=1e-6)
    assert (again.faces == mesh.faces).all()
    # Eight bits of linear light are coarse where it is dark.
    np.testing.assert_allclose(again.colors, mesh.colors, atol=0.05)


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_other_files_keep_the_worlds_axes(mesh: Mesh, suffix: str, tmp_path) -> None:
    write_mesh(mesh, tmp_path / f"object{suffix}")
    again = trimesh.load(tmp_path / f"object{suffix}", process=False)
    assert isinstance(again, trimesh.Trimesh)
    np.testing.assert_allclose(again.vertices, mesh.vertices, atol=1e-5)
    assert (again.faces == mesh.faces).all()
    np.testing.assert_allclose(again.visual.vertex_colors[:, :3] / 255, mesh.colors, atol=0.01)


@pytest.mark.parametrize("suffix", [".obj", ".glb"])
def test_a_baked_texture_shows_the_colours(trained: Scene, suffix: str, tmp_path) -> None:
    mesh = extract_mesh(trained, 24)
    textured = bake_texture(trained, mesh, texels=8)
    assert textured.uv.min() >= 0
    assert textured.uv.max() <= 1
    write_textured(textured, tmp_path / f"object{suffix}")
    again = trimesh.load(tmp_path / f"object{suffix}", process=False, force="mesh")
    assert isinstance(again, trimesh.Trimesh)
    visual: Any = again.visual
    picture = visual.material.baseColorTexture if suffix == ".glb" else visual.material.image
    pixels = np.asarray(picture.convert("RGB")) / 255
    # The colour in the middle of each triangle, looked up as a viewer does, is that of its corners.
    uv = visual.uv[again.faces].mean(1)
    height, width = pixels.shape[:2]
    found = pixels[((1 - uv[:, 1]) * height).astype(int), (uv[:, 0] * width).astype(int)]
    expected = mesh.colors[mesh.faces].mean(1)
    assert np.abs(found - expected).mean() < 0.05
    # As the nose is red and the rest is not, mixed-up triangles would be far off.
    assert np.abs(found - np.roll(expected, 50, 0)).mean() > 0.1


def test_silhouettes_of_a_single_triangle() -> None:
    # In front of the camera on +y, at its distance 1 pixel is 2 * 2 tan(20°) / 8.
    camera = place([0.0], 0.0, distance=2.0)
    unit = 2 * 2 * np.tan(np.deg2rad(20)) / 8
    corners = np.array([[3.0, 0.0, 3.0], [3.0, 0.0, -4.0], [-4.0, 0.0, 3.0]]) * unit
    covered = silhouettes(corners.astype(np.float64), np.array([[0, 1, 2]]), camera, 8)[0]
    # World +x is left: the right angle is at the upper left, one pixel in from the corner of the picture.
    expected = np.zeros((8, 8), dtype=bool)
    for row in range(1, 8):
        expected[row, 1 : 8 - row + 1] = True
    assert (covered[1:7, :7] == expected[1:7, :7]).all()
    assert not covered[0].any()
    assert not covered[:, 0].any()
    with pytest.raises(ValueError, match="behind a camera"):
        silhouettes(corners + np.array([0, 3, 0]), np.array([[0, 1, 2]]), camera, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: extract_mesh(grid_scene(4, blob_scale=0.0, offset=-20.0), 8),
            "the scene is empty.*blob_scale",
        ),
        (lambda: extract_mesh(grid_scene(4), 16, threshold=100.0), "no surface: the density reaches"),
        (lambda: extract_mesh(grid_scene(4), 16, threshold=0.0), "no surface"),
        (lambda: extract_mesh(grid_scene(4), 2), "at least 4 points"),
    ],
)
def test_what_has_no_surface_says_what_to_do(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_other_endings_and_empty_meshes_are_refused(tmp_path) -> None:
    scene = grid_scene(4)
    mesh = extract_mesh(scene, 8)
    with pytest.raises(ValueError, match=r"\.glb, \.obj, \.ply"):
        write_mesh(mesh, tmp_path / "object.stl")
    with pytest.raises(ValueError, match=r"\.glb or \.obj"):
        write_textured(bake_texture(scene, mesh), tmp_path / "object.ply")
    with pytest.raises(ValueError, match="at least 4 texels"):
        bake_texture(scene, mesh, texels=2)
    empty = Mesh(mesh.vertices, mesh.faces[:0], mesh.colors)
    with pytest.raises(ValueError, match="no triangle"):
        write_mesh(empty, tmp_path / "object.glb")
    with pytest.raises(ValueError, match="no triangle"):
        bake_texture(scene, empty)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a red mug", "ein schöner Pilz", "茸", "a#b", "-x", "a mug (2)", "tab\there"]
)
def test_any_prompt_can_be_the_name_of_an_obj(name: str, mesh: Mesh, trained: Scene, tmp_path: Path) -> None:
    few = mesh._replace(faces=mesh.faces[:20])
    textured = bake_texture(trained, few, texels=4)
    write_textured(textured, tmp_path / f"{name}.obj")
    text = (tmp_path / f"{name}.obj").read_text(encoding="utf-8")
    # As strict readers split: one word behind each key.
    (library,) = [line.split()[1:] for line in text.splitlines() if line.startswith("mtllib")]
    (material,) = [line.split()[1:] for line in text.splitlines() if line.startswith("usemtl")]
    assert len(library) == len(material) == 1
    described = [line.split() for line in (tmp_path / library[0]).read_text(encoding="ascii").splitlines()]
    assert ["newmtl", material[0]] in described
    (picture,) = [words[1:] for words in described if words and words[0] == "map_Kd"]
    assert len(picture) == 1
    assert (tmp_path / picture[0]).is_file()


def test_names_that_differ_in_what_an_obj_cannot_hold_stay_apart() -> None:
    assert plain_name("mug") == "mug"
    assert plain_name("a mug") != plain_name("a_mug") != plain_name("a\tmug")
