import json

import pytest
import torch
from fsd.cameras import Cameras, place
from fsd.scene import Scene, grid_scene, hash_scene, load_scene
from fsd.shading import draw_shading, light_near, shaded
from shared_core.testing import assert_same_state
from torch import nn


def asymmetric() -> Scene:
    """A ball with a red nose on +y and a blue ear on -x, which is on the right of who stands on +y."""

    class Parts(nn.Module):
        radius = 1.0

        def density(self, points):
            return self(points)[0]

        def forward(self, points):
            places = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [-0.6, 0.0, 0.3]])
            radii = torch.tensor([0.35, 0.2, 0.15])
            colors = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
            depth = radii - (points[:, None] - places).norm(dim=2)
            return 300 * (depth.amax(1) > 0), colors[depth.argmax(1)]

    from fsd.background import ConstantBackground

    return Scene(Parts(), ConstantBackground((0.0, 0.0, 0.0)), samples=128)


def test_the_object_stands_as_the_cameras_say() -> None:
    size = 48
    views = asymmetric().render(place([0.0, 90.0, 180.0], 0.0), size)
    red, green, blue = views.image.unbind(1)
    middle = size // 2
    # From the front: the nose in the middle, the ear at the upper right.
    assert red[0, middle, middle] > 0.9
    rows, columns = (blue[0] > 0.5).nonzero().float().mean(0)
    assert rows < middle - 3
    assert columns > middle + 8
    # Azimuth 90 has gone to its own right, to -x: now the nose is on the left, the ear in front.
    assert (red[1] > 0.5).nonzero()[:, 1].float().mean() < middle - 8
    assert (blue[1] > 0.5).nonzero()[:, 1].float().mean() == pytest.approx(middle - 0.5, abs=1)
    # From behind neither nose nor the right side.
    assert red[2].max() < 0.1
    assert green[2, middle, middle] > 0.9
    assert (blue[2] > 0.5).nonzero()[:, 1].float().mean() < middle - 8


def test_depth_is_the_distance_along_the_ray() -> None:
    view = asymmetric().render(place([180.0], 0.0), 33)
    assert view.depth.shape == view.opacity.shape == (1, 1, 33, 33)
    assert view.depth[0, 0, 16, 16].item() == pytest.approx(2.6 - 0.35, abs=0.03)
    assert view.depth[0, 0, 0, 0] == 0
    assert view.normal is None


def test_normals_are_in_world_axes() -> None:
    scene = grid_scene(8, samples=64)
    view = scene.render(place([0.0, 90.0], 0.0), 9, normals=True)
    assert view.normal is not None
    # The middle of a ball looks back at the camera: +y from the front, -x from its right.
    expected = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]) * view.opacity[:, :, 4, 4]
    torch.testing.assert_close(view.normal[:, :, 4, 4], expected, atol=0.02, rtol=0)


def test_another_background_takes_the_place_of_the_scenes() -> None:
    scene, camera = grid_scene(4, color=(1.0, 0.0, 0.0)), place([0.0])
    corner = scene.render(camera, 16).image[0, :, 0, 0]
    torch.testing.assert_close(corner, torch.tensor([1.0, 0.0, 0.0]), atol=1e-4, rtol=0)
    corner = scene.render(camera, 16, background=torch.tensor([0.0, 0.5, 1.0])).image[0, :, 0, 0]
    torch.testing.assert_close(corner, torch.tensor([0.0, 0.5, 1.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("background", ["learned", "map"])
def test_a_background_learns(background: str) -> None:
    torch.manual_seed(0)
    scene, camera = grid_scene(4, background=background, color=(0.2, 0.5, 0.8)), place([0.0])
    start = scene.render(camera, 8).image[0, :, 0, 0]
    torch.testing.assert_close(start, torch.tensor([0.2, 0.5, 0.8]), atol=0.15, rtol=0)
    optimizer = torch.optim.Adam(scene.background.parameters(), 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        (scene.render(camera, 8).image[0, :, 0, 0] - torch.tensor([0.9, 0.1, 0.4])).square().sum().backward()
        optimizer.step()
    end = scene.render(camera, 8).image[0, :, 0, 0]
    torch.testing.assert_close(end, torch.tensor([0.9, 0.1, 0.4]), atol=0.05, rtol=0)


SCENES = {
    "grid": lambda: grid_scene(6, background="map", samples=16, occupancy=8, color=(0.1, 0.2, 0.3)),
    "hash": lambda: hash_scene(levels=3, log2_size=8, background="learned", samples=16, fine_samples=8),
}


@pytest.mark.parametrize("kind", SCENES)
def test_a_saved_scene_comes_back_bit_for_bit(kind: str, tmp_path) -> None:
    torch.manual_seed(0)
    scene = SCENES[kind]()
    for parameter in scene.parameters():
        nn.init.normal_(parameter)
    scene.update_occupancy(0)
    scene.save(tmp_path / "a" / "scene.safetensors")
    again = load_scene(tmp_path / "a" / "scene.safetensors")
    assert_same_state(dict(scene.state_dict()), dict(again.state_dict()))
    with torch.no_grad():
        one, other = (s.render(place([40.0]), 12, torch.Generator().manual_seed(3)) for s in (scene, again))
    assert torch.equal(one.image, other.image)
    assert again.arguments == scene.arguments
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["scene.json", "scene.safetensors"]


def test_files_that_hold_no_scene_are_named(tmp_path) -> None:
    path = tmp_path / "scene.safetensors"
    with pytest.raises(FileNotFoundError, match=r"scene\.safetensors is absent"):
        load_scene(path)
    scene = grid_scene(4)
    scene.save(path)
    beside = path.with_suffix(".json")
    content = json.loads(beside.read_text())
    for change in ({"builder": "os.system"}, {"resolution": 5}, {"colour": 1}):
        beside.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match="holds no scene"):
            load_scene(path)
    beside.write_text(json.dumps(content))
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="holds no scene"):
        load_scene(path)
    beside.unlink()
    with pytest.raises(FileNotFoundError, match=r"scene\.json is absent"):
        load_scene(path)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        scene.save(tmp_path / "scene.pt")
    with pytest.raises(ValueError, match="by hand"):
        asymmetric().save(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grid_scene(4, background="sky"), "constant, learned, map"),
        (lambda: grid_scene(4, color=(0.0, 0.0, 2.0)), "three numbers in"),
        (lambda: grid_scene(4).render(place([0.0]), 0), "size=0"),
        (
            lambda: shaded("gouraud", torch.zeros(1, 3), torch.zeros(1), *[torch.zeros(1, 3)] * 2),
            "albedo, lambertian, textureless",
        ),
    ],
)
def test_bad_input_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_gradient_reaches_the_cameras_field_and_no_generator_means_no_chance() -> None:
    scene, camera = grid_scene(8), place([0.0, 120.0])
    assert torch.equal(scene.render(camera, 8).image, scene.render(camera, 8).image)
    scene.render(camera, 8).image.sum().backward()
    assert scene.field.values.grad is not None
    assert (scene.field.values.grad != 0).any()


def test_light_comes_by_lamberts_law() -> None:
    color, opacity = torch.tensor([[0.5, 0.25, 0.0]] * 3) * 0.5, torch.full((3,), 0.5)
    normal = torch.tensor([[0.0, 0.0, 1.0]] * 3) * 0.5
    to_light = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, 0.8], [0.0, 0.0, -1.0]])
    lit = shaded("lambertian", color, opacity, normal, to_light)
    torch.testing.assert_close(lit, color * torch.tensor([[1.0], [0.96], [0.8]]))
    white = shaded("textureless", color, opacity, normal, to_light)
    torch.testing.assert_close(white, torch.tensor([[0.5], [0.48], [0.4]]).expand(3, 3))
    assert shaded("albedo", color, opacity, normal, to_light) is color


def test_shading_comes_in_as_training_goes_on() -> None:
    generator = torch.Generator().manual_seed(0)

    def shares(progress: float) -> dict[str, float]:
        drawn = [draw_shading(progress, generator) for _ in range(2000)]
        return {kind: drawn.count(kind) / 2000 for kind in set(drawn)}

    assert shares(0.1) == {"albedo": 1.0}
    half = shares(0.6)
    assert half["albedo"] == pytest.approx(0.5, abs=0.05)
    assert half["textureless"] == pytest.approx(0.125, abs=0.03)
    assert set(shares(1.0)) == {"lambertian", "textureless"}


def test_light_stands_near_the_camera() -> None:
    positions = place(torch.linspace(0, 350, 500)).position
    light = light_near(positions, torch.Generator().manual_seed(0))
    assert (light - positions).norm(dim=1).mean().item() == pytest.approx(0.5 * 2.6, rel=0.1)


def test_a_scene_with_shading_is_lit_in_training_only() -> None:
    scene, camera = grid_scene(8, shading=True, samples=16), place([0.0])
    plain = scene.render(camera, 12).image
    pictures = [scene.render(camera, 12, torch.Generator().manual_seed(k)).image for k in range(3)]
    for picture in pictures:
        assert (picture - plain).abs().max() > 0.05
    assert torch.equal(plain, scene.render(camera, 12).image)
    early = scene.render(camera, 12, torch.Generator().manual_seed(0), progress=0.0).image
    assert (early - plain).abs().max() < 0.05


def test_half_the_rays_give_half_the_picture() -> None:
    scene, cameras = grid_scene(8), place([0.0, 50.0])
    both = scene.render(cameras, 8)
    one = scene.render(Cameras(cameras.c2w[1:], cameras.fov_deg[1:]), 8)
    torch.testing.assert_close(one.image, both.image[1:], rtol=1e-5, atol=1e-6)
