"""No sample at all is an ordinary case: rays that miss the cube, or a grid whose cells are all empty."""

import fsd
import pytest
import torch
from fsd.fields import DenseGrid, HashGrid
from fsd.normals import surface_normals
from fsd.scene import grid_scene, hash_scene

FIELDS = {
    "dense": lambda: DenseGrid(8),
    "hash": lambda: HashGrid(levels=2, log2_size=8, finest=32),
}
SCENES = {
    "dense": lambda **settings: grid_scene(8, **settings),
    "hash": lambda **s: hash_scene(log2_size=8, **s),
}
NOWHERE = torch.zeros(0, 3)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_nothing_to_say_of_no_points(name):
    field = FIELDS[name]()
    density, color = field(NOWHERE)
    assert (density.shape, color.shape) == ((0,), (0, 3))
    assert field.density(NOWHERE).shape == (0,)
    (density.sum() + color.sum()).backward()
    assert all(not p.grad.any() for p in field.parameters() if p.grad is not None)
    density, _ = field(NOWHERE.clone().requires_grad_())
    assert density.shape == (0,)


@pytest.mark.parametrize(
    ("name", "how"), [(n, h) for n in FIELDS for h in ("autograd", "finite")] + [("dense", "analytic")]
)
def test_no_points_have_no_normals(name, how):
    assert surface_normals(FIELDS[name](), NOWHERE, how).shape == (0, 3)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("shading", [False, True])
def test_a_render_of_nothing_is_the_background_and_can_be_trained_through(name, shading):
    scene = SCENES[name](samples=8, occupancy=8, shading=shading)
    scene.occupancy.occupied.zero_()
    cameras = fsd.cameras.orbit(batch=2, generator=torch.Generator().manual_seed(0))
    view = scene.render(cameras, 8, torch.Generator().manual_seed(0), background=torch.full((3,), 0.25))
    assert not view.opacity.any()
    assert torch.allclose(view.image, torch.tensor(0.25))
    view.image.sum().backward()


@pytest.mark.parametrize("name", SCENES)
def test_rays_that_all_miss_render_the_background(name):
    scene = SCENES[name](samples=8)
    camera = fsd.cameras.place([0.0], distance=1000.0, fov_deg=60.0)
    view = scene.render(camera, 2, background=torch.full((3,), 0.25))
    assert torch.allclose(view.image, torch.tensor(0.25), atol=1e-3)
