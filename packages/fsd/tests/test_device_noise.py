"""Noise and grids do not go through the host at every step."""

import pytest
import torch
from fsd.cameras import place
from fsd.marching import _KEPT, _estimator
from fsd.noise import ConstantNoise, RandomNoise, WorldMapNoise
from fsd.occupancy import OccupancyGrid
from fsd.surface_noise import SurfaceNoise
from shared_core.testing import pretend_device

META = torch.device("meta")


@pytest.mark.parametrize("refresh", [0.0, 0.5])
def test_surface_noise_stays_on_the_device(refresh, monkeypatch):
    noise = SurfaceNoise(seed=0, refresh=refresh, rays_per_pixel=2, latent_shape=(4, 8, 8)).to(META)
    cameras = place([0.0, 90.0]).to(META)
    opacity, depth = (torch.zeros(2, 1, 8, 8, device=META) for _ in range(2))
    monkeypatch.setattr("fsd.surface_noise.draw", lambda *_: pytest.fail("drawn on the CPU"))
    with pretend_device() as reasons:
        assert noise(cameras, opacity=opacity, depth=depth).shape == (2, 4, 8, 8)
    assert reasons == []


@pytest.mark.parametrize(
    "noise",
    [
        RandomNoise(latent_shape=(4, 8, 8)),
        ConstantNoise(beta=0.5, latent_shape=(4, 8, 8)),
        WorldMapNoise(beta=0.5, latent_shape=(4, 8, 8)),
        WorldMapNoise(background="fresh", shared=2, latent_shape=(4, 8, 8)),
    ],
    ids=lambda noise: type(noise).__name__,
)
def test_noise_of_the_camera_is_read_back_nowhere(noise):
    cameras = place([0.0, 90.0]).to(META)
    with pretend_device() as reasons:
        found = noise.to(META)(cameras, opacity=torch.zeros(2, 1, 16, 16, device=META))
    assert found.is_meta
    assert reasons == []


def test_renewed_noise_goes_on_where_it_was_saved():
    cameras = place([0.0])
    view = {"opacity": torch.ones(1, 1, 8, 8), "depth": torch.full((1, 1, 8, 8), 2.0)}
    straight, other = (SurfaceNoise(seed=3, refresh=0.5, latent_shape=(4, 8, 8)) for _ in range(2))
    straight(cameras, **view)
    other.load_state_dict(straight.state_dict())
    assert torch.equal(straight(cameras, **view), other(cameras, **view))
    assert other.renewals == 2


def test_a_grid_has_one_estimator_and_it_is_no_state():
    grid = OccupancyGrid(4)
    first = _estimator(grid)
    grid.occupied.zero_()
    assert _estimator(grid) is first
    assert not first.binaries.any()
    assert set(grid.state_dict()) == {"seen", "occupied"}
    assert _KEPT in vars(grid)
    assert [name for name, _ in grid.named_modules()] == [""]
