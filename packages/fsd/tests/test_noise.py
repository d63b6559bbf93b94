"""Noise as a function of the camera: exact marginals, exact moves, exact state."""

import math
from functools import partial

import fsd
import pytest
import torch
from fsd.cameras import orbit, place, turntable
from fsd.noise import cosines, low_frequencies
from hypothesis import given
from hypothesis import strategies as st

SHAPE = (4, 16, 16)
KINDS = {
    "random": fsd.RandomNoise,
    "constant": fsd.ConstantNoise,
    "worldmap": fsd.WorldMapNoise,
    "shared": partial(fsd.WorldMapNoise, shared=3),
    "surface": fsd.SurfaceNoise,
}


def scene_of(cameras, size=32):
    """Opacity and depth of a ball of radius 0.6, from its equation."""
    origins, directions = fsd.cameras.rays(cameras, size, size)
    middle = -(origins * directions).sum(-1)
    reach = 0.36 - (origins + middle[..., None] * directions).square().sum(-1)
    depth = torch.where(reach > 0, middle - reach.clamp(min=0).sqrt(), 0.0)
    return (reach > 0).float()[:, None], depth[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_every_view_of_every_noise_is_standard_normal(kind):
    # One view each of many seeds: independent draws, judged at four standard errors.
    values = []
    cameras = place([37.0], 21.0)
    opacity, depth = scene_of(cameras)
    for seed in range(200):
        values.append(KINDS[kind](seed, latent_shape=SHAPE)(cameras, opacity, depth))
    drawn = torch.cat(values)
    n = drawn.numel()
    assert abs(drawn.mean()) < 4 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / n)
    kurtosis = (drawn**4).mean() / drawn.var() ** 2
    assert abs(kurtosis - 3) < 4 * math.sqrt(24 / n)
    # And pixel by pixel, over the seeds.
    assert drawn.var(0).min() > 0.55
    assert drawn.var(0).max() < 1.6


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_a_view_are_independent(kind):
    cameras = place([37.0], 21.0)
    opacity, depth = scene_of(cameras)
    drawn = torch.cat([KINDS[kind](seed, latent_shape=SHAPE)(cameras, opacity, depth) for seed in range(300)])
    flat = drawn[:, 0].flatten(1)
    neighbours = (drawn[..., 1:] * drawn[..., :-1]).mean((0, 1))
    # Cells that two neighbours share would make them alike; those of the surface are much smaller than its pixels.
    limit = 0.25 if kind == "surface" else 5 / math.sqrt(300 * SHAPE[0])
    assert neighbours.abs().max() < limit
    assert flat.shape == (300, 256)


@pytest.mark.parametrize("kind", KINDS)
def test_state_comes_back_and_draws_go_on(kind):
    cameras = orbit(4, torch.Generator().manual_seed(0))
    opacity, depth = scene_of(cameras)
    settings = {"refresh": 0.1} if kind == "surface" else {} if kind == "random" else {"beta": 0.5}
    noise = KINDS[kind](0, latent_shape=SHAPE, **settings)
    noise(cameras, opacity, depth)
    kept = {
        name: value.clone() if torch.is_tensor(value) else value for name, value in noise.state_dict().items()
    }
    straight = [noise(cameras, opacity, depth) for _ in range(2)]
    other = KINDS[kind](7, latent_shape=SHAPE, **settings)
    other.load_state_dict(kept)
    for wanted in straight:
        assert torch.equal(other(cameras, opacity, depth), wanted)


def test_seeds_share_no_stream():
    cameras = place([0.0], 0.0)
    drawn = [
        noise(cameras).flatten()
        for seed in range(4)
        for noise in (
            fsd.WorldMapNoise(seed, latent_shape=SHAPE),
            fsd.RandomNoise(seed, latent_shape=SHAPE, stream=1),
            fsd.ConstantNoise(seed + 100, latent_shape=SHAPE),
        )
    ]
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert correlation.abs().max() < 5 / math.sqrt(drawn[0].numel())


def test_map_closes_on_itself_in_azimuth():
    noise = fsd.WorldMapNoise(0, latent_shape=SHAPE)
    assert torch.equal(noise(place([0.0], 10.0)), noise(place([360.0], 10.0)))


@given(st.integers(0, 31), st.integers(0, 31))
def test_turning_by_whole_pixels_moves_the_window_by_them(start, turn):
    noise = fsd.WorldMapNoise(0, latent_shape=SHAPE)
    step = 180 / 16
    now, then = noise(place([start * step, (start + turn) * step], 0.0))
    if turn < 16:
        # The camera goes to its right: what it sees moves left.
        assert torch.equal(then[..., : 16 - turn], now[..., turn:])


@given(st.floats(-90, 85), st.integers(0, 7))
def test_rising_by_whole_pixels_moves_the_window_and_elevation_zero_is_no_seam(elevation, rise):
    noise = fsd.WorldMapNoise(0, latent_shape=SHAPE)
    step = 180 / 16
    low = min(elevation, 90 - rise * step - 0.5)
    now = noise.window(place(torch.tensor([40.0], dtype=torch.float64), low))[0]
    then = noise.window(place(torch.tensor([40.0], dtype=torch.float64), low + rise * step))[0]
    # From above, what is near lies lower in the image.
    best = max(
        range(max(0, rise - 1), min(16, rise + 2)),
        key=lambda shift: (then[:, shift:] * now[:, : 16 - shift]).mean().item(),
    )
    assert torch.equal(then[:, best:], now[:, : 16 - best])


def test_cosines_are_the_orthonormal_transform():
    from scipy.fft import dct

    whole = cosines(9, 20)
    assert whole.shape == (9, 9)
    assert torch.allclose(whole @ whole.T, torch.eye(9, dtype=torch.float64), atol=1e-12)
    x = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(whole[:4] @ x, torch.from_numpy(dct(x.numpy(), norm="ortho"))[:4], atol=1e-12)


def test_shared_frequencies_are_those_of_every_view_and_the_rest_is_the_map_s():
    cameras = place([0.0, 90.0, 200.0], [0.0, 20.0, -30.0])
    opacity, _ = scene_of(cameras)
    plain, shared = (fsd.WorldMapNoise(0, latent_shape=SHAPE, shared=shared) for shared in (0, 3))
    drawn, moved = shared(cameras, opacity), plain(cameras, opacity)
    low = low_frequencies(drawn, 3)
    assert torch.allclose(low, low_frequencies(shared.common, 3).expand_as(low), atol=1e-5)
    assert torch.allclose(drawn - low, moved - low_frequencies(moved, 3), atol=1e-5)
    assert not torch.allclose(moved, drawn, atol=0.1)


def test_all_frequencies_shared_are_constant_noise_and_none_the_world_map():
    cameras = place([0.0, 90.0], 10.0)
    front, side = fsd.WorldMapNoise(0, latent_shape=SHAPE, shared=16)(cameras)
    assert torch.allclose(front, side, atol=1e-5)
    none = fsd.WorldMapNoise(0, latent_shape=SHAPE)
    assert "common" not in none.state_dict()


def test_a_negative_number_of_frequencies_is_refused():
    with pytest.raises(ValueError, match="shared is -1; give the number of frequencies"):
        fsd.WorldMapNoise(0, shared=-1)


def test_released_rows_have_the_released_seam():
    noise = fsd.WorldMapNoise(0, latent_shape=(4, 64, 64), released_rows=True)
    ours = fsd.WorldMapNoise(0, latent_shape=(4, 64, 64))

    def alike(made):
        """One degree up moves the window by one row, from 32 to 31."""
        level, above = made(place([0.0, 0.0], [0.0, 1.0]))
        pair = torch.stack([level[:, :-1].flatten(), above[:, 1:].flatten()])
        return torch.corrcoef(pair)[0, 1].item()

    assert abs(alike(noise)) < 0.05
    assert alike(ours) == pytest.approx(1.0)


def test_map_degrees_set_the_speed():
    fast = fsd.WorldMapNoise(0, map_degrees=90.0, latent_shape=SHAPE)
    now, then = fast(place([0.0, 90.0 / 16], 0.0))
    assert torch.equal(then[..., :-1], now[..., 1:])
    assert fast.map.shape == (4, 2 * 16 + 16, 4 * 16)


def test_background_does_not_move():
    noise = fsd.WorldMapNoise(0, latent_shape=SHAPE)
    cameras = turntable(8)
    opacity = torch.zeros(8, 1, 32, 32)
    opacity[..., 8:24, 8:24] = 1
    drawn = noise(cameras, opacity)
    solid = torch.zeros(16, 16, dtype=torch.bool)
    solid[4:12, 4:12] = True
    assert torch.equal(drawn[0][:, ~solid], drawn[3][:, ~solid])
    assert torch.equal(drawn[3][:, solid], noise(cameras)[3][:, solid])
    assert not torch.equal(drawn[0][:, solid], drawn[3][:, solid])


def test_fresh_background_is_new_every_time():
    noise = fsd.WorldMapNoise(0, background="fresh", latent_shape=SHAPE)
    cameras, empty = place([0.0]), torch.zeros(1, 1, 32, 32)
    assert not torch.equal(noise(cameras, empty), noise(cameras, empty))


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9])
def test_beta_is_the_correlation_between_two_calls(beta):
    noise = fsd.WorldMapNoise(0, beta=beta, latent_shape=(16, 64, 64))
    cameras = place([12.0], 3.0)
    pair = torch.stack([noise(cameras).flatten(), noise(cameras).flatten()])
    assert torch.corrcoef(pair)[0, 1].item() == pytest.approx(beta, abs=4 / math.sqrt(pair.shape[1]))


def test_surface_noise_follows_the_surface():
    """Where two near cameras see the same part of a ball, noise moved along the surface is alike."""
    noise = fsd.SurfaceNoise(0, cells=24.0, rays_per_pixel=8, latent_shape=(16, 16, 16))
    cameras = place([0.0, 2.0], 0.0)
    opacity, depth = scene_of(cameras, 128)
    here, there = noise(cameras, opacity, depth)
    middle = (slice(None), slice(6, 10), slice(6, 10))
    moved = torch.corrcoef(torch.stack([here[middle].flatten(), there[middle].flatten()]))[0, 1]
    other = noise(place([0.0, 120.0], 0.0), *scene_of(place([0.0, 120.0], 0.0), 128))
    far = torch.corrcoef(torch.stack([other[0][middle].flatten(), other[1][middle].flatten()]))[0, 1]
    assert moved > 0.6
    assert abs(far) < 0.2


def test_surface_noise_against_a_plain_loop():
    noise = fsd.SurfaceNoise(3, cells=10.0, rays_per_pixel=2, latent_shape=(2, 8, 8))
    cameras = place([25.0], 10.0)
    opacity, depth = scene_of(cameras, 16)
    drawn = noise(cameras, opacity, depth)[0]
    origins, directions = fsd.cameras.rays(cameras, 16, 16)
    for row in range(8):
        for column in range(8):
            cells = set()
            for i in (2 * row, 2 * row + 1):
                for j in (2 * column, 2 * column + 1):
                    if opacity[0, 0, i, j] >= 0.5:
                        point = origins[0, i, j] + depth[0, 0, i, j] * directions[0, i, j]
                        x, y, z = (math.floor(value * 10) for value in point.tolist())
                        cells.add((x ^ (y * 2654435761) ^ (z * 805459861)) % 2**18)
            wanted = noise.behind[:, row, column]
            if cells:
                wanted = sum(noise.table[cell] for cell in cells) / math.sqrt(len(cells))
            assert torch.allclose(drawn[:, row, column], wanted, atol=1e-6)


def test_refresh_keeps_the_variance_and_forgets():
    noise = fsd.SurfaceNoise(0, refresh=0.5, latent_shape=SHAPE)
    first = noise.table.clone()
    cameras = place([0.0])
    opacity, depth = scene_of(cameras)
    noise(cameras, opacity, depth)
    assert noise.table.var().item() == pytest.approx(1, abs=0.01)
    assert (noise.table * first).mean().item() == pytest.approx(math.sqrt(0.5), abs=0.01)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: fsd.WorldMapNoise(beta=1.5), "beta is 1.5"),
        (lambda: fsd.WorldMapNoise(map_degrees=0.0), "map_degrees is 0"),
        (lambda: fsd.WorldMapNoise(background="grey"), "background is 'grey'"),
        (lambda: fsd.SurfaceNoise(cells=0.0), "cells=0"),
        (lambda: fsd.SurfaceNoise(refresh=-1.0), "refresh is -1"),
        (lambda: fsd.WorldMapNoise()(place([0.0])), "does not know its shape"),
        (lambda: fsd.SurfaceNoise(latent_shape=SHAPE)(place([0.0])), "needs the surface"),
        (lambda: fsd.ConstantNoise(latent_shape=SHAPE).allocate((3, 8, 8)), "one for each prior"),
    ],
)
def test_wrong_use_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()
