"""What a public function cannot take is refused in one sentence, also where jaxtyping's checks are off."""

from collections.abc import Callable
from typing import Any

import fsd
import numpy as np
import pytest
import torch
from fsd import metrics
from fsd.cameras import Cameras, turntable
from fsd.fields import DenseGrid, HashGrid
from fsd.mesh import Mesh, write_mesh
from fsd.normals import surface_normals
from fsd.occupancy import OccupancyGrid
from fsd.regularizers import binary_entropy, sparsity
from fsd.render import render_rays
from fsd.sampling import ddim
from fsd.scene import BACKGROUNDS
from fsd.shading import light_near, shaded
from fsd.silhouette import silhouettes
from fsd.turntable import to_bytes, write_video
from fsd.world.judge import load_judge

SHAPE = (4, 8, 8)
FOUR = turntable(4)
NOISES = {
    "random": fsd.RandomNoise,
    "constant": fsd.ConstantNoise,
    "worldmap": fsd.WorldMapNoise,
    "surface": fsd.SurfaceNoise,
}
ONE = torch.ones(4, 1, 8, 8)


@pytest.fixture(autouse=True)
def _users(as_a_user: None) -> None:
    """All of these are calls that jaxtyping would stop first."""


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("name", ["opacity", "depth"])
@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (ONE[:, 0], ValueError, r"has shape \(4, 8, 8\); it must be \(b=4, 1, h, w\): .*\[:, None\]"),
        (ONE[:1], ValueError, r"has shape \(1, 1, 8, 8\); it must be \(b=4"),
        (ONE.expand(-1, 4, -1, -1), ValueError, r"has shape \(4, 4, 8, 8\)"),
        (ONE > 0, TypeError, r"has the type torch.bool; give floating-point numbers"),
        (ONE.numpy(), TypeError, "is a ndarray; give a torch.Tensor"),
    ],
)
def test_maps_of_another_shape_never_reach_the_noise(
    kind: str, name: str, wrong: Any, error: type[Exception], says: str
) -> None:
    noise = NOISES[kind](seed=0, latent_shape=SHAPE)
    with pytest.raises(error, match=f"{name} {says}"):
        noise(FOUR, **{"opacity": ONE, "depth": ONE, name: wrong})
    guide = fsd.FlowScoreDistillation(prior(), noise=NOISES[kind](seed=0))
    with pytest.raises(error, match=f"{name} {says}"):
        guide(torch.rand(4, *SHAPE), "any", FOUR, 0.5, **{"opacity": ONE, "depth": ONE, name: wrong})


def prior() -> fsd.MixturePrior:
    return fsd.MixturePrior(torch.zeros(2, 256), latent_shape=SHAPE)


def points(call: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: call(torch.rand(2, 5, 3))


GRID, HASH = DenseGrid(4), HashGrid(levels=2, log2_size=4, base=2, finest=4, width=4)
RAY = torch.tensor([[0.0, 0.0, 1.0]])
CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "one matrix": (lambda: Cameras(FOUR.c2w[0], FOUR.fov_deg), r"c2w has shape \(4, 4\); .*c2w\[None\]"),
    "a camera by number": (lambda: FOUR[0], r"c2w has shape \(4, 4\); .*cameras\[n : n \+ 1\]"),
    "angles": (lambda: Cameras(FOUR.c2w, FOUR.fov_deg[:2]), r"fov_deg has shape \(2,\); it must be \(b=4\)"),
    "two types": (
        lambda: Cameras(FOUR.c2w.double(), FOUR.fov_deg),
        "c2w has the type torch.float64 and fov_deg",
    ),
    "numbers": (lambda: Cameras(FOUR.c2w.tolist(), FOUR.fov_deg), "c2w is a list; give a torch.Tensor"),
    "matrices for cameras": (lambda: grid().render(FOUR.c2w, 8), "cameras is a Tensor; give fsd.Cameras"),
    "no camera": (lambda: grid().render(FOUR[:0], 8), "there is no camera"),
    "ground": (lambda: grid().render(FOUR, 8, background=torch.rand(4, 3)), r"background has shape \(4, 3\)"),
    "rays of an image": (
        lambda: render_rays(GRID, torch.rand(2, 4, 4, 3), torch.rand(2, 4, 4, 3)),
        r"origins has shape \(2, 4, 4, 3\); it must be \(n, 3\): .*reshape",
    ),
    "one origin": (lambda: render_rays(GRID, RAY, RAY.expand(5, 3)), r"directions has shape \(5, 3\)"),
    "a lattice": (points(GRID), r"points has shape \(2, 5, 3\); it must be \(n, 3\)"),
    "its density": (points(GRID.density), "points has shape"),
    "a hash grid": (points(HASH), "points has shape"),
    "a hash grid's density": (points(HASH.density), "points has shape"),
    "normals": (points(lambda p: surface_normals(GRID, p)), "points has shape"),
    "cells": (points(OccupancyGrid(4)), "points has shape"),
    "whole points": (lambda: GRID(torch.ones(3, 3, dtype=torch.long)), "points has the type torch.int64"),
    "light": (
        lambda: shaded("lambertian", RAY, torch.ones(1, 1), RAY, RAY),
        r"opacity has shape \(1, 1\); it must be \(n=1\)",
    ),
    "one light": (
        lambda: shaded("lambertian", RAY.expand(5, 3), torch.ones(5), RAY.expand(5, 3), RAY),
        r"to_light has shape \(1, 3\)",
    ),
    "lights": (lambda: light_near(FOUR.c2w, torch.Generator()), r"positions has shape \(4, 4, 4\)"),
    "sparsity": (lambda: sparsity(ONE[:, 0]), "opacity has shape"),
    "entropy": (lambda: binary_entropy(ONE[:, 0]), "opacity has shape"),
    "image without a batch": (
        lambda: guide()(torch.rand(*SHAPE), "any", FOUR, 0.5),
        r"image has shape \(4, 8, 8\)",
    ),
    "bytes": (
        lambda: guide()(torch.ones(4, *SHAPE, dtype=torch.uint8), "any", FOUR, 0.5),
        r"image has the type torch.uint8; .*image.float\(\) / 255",
    ),
    "channels last": (
        lambda: guide()(torch.rand(4, 8, 8, 4), "any", FOUR, 0.5),
        r"must be \(b, c=4, h=8, w=8\)",
    ),
    "guidance of no cameras": (
        lambda: guide()(torch.rand(4, *SHAPE), "any", FOUR.c2w, 0.5),
        "give fsd.Cameras",
    ),
    "x_t": (lambda: prior().predict_noise(torch.rand(4, 256), 0.5, None, 1.0), r"x_t has shape \(4, 256\)"),
    "means": (lambda: fsd.MixturePrior(torch.rand(256)), r"means has shape \(256,\)"),
    "sampling": (lambda: ddim(prior(), None, torch.rand(4, 256)), r"noise has shape \(4, 256\)"),
    "the judge": (lambda: load_judge()(torch.rand(3, 32, 32)), r"images has shape \(3, 32, 32\)"),
    "pictures": (lambda: to_bytes(torch.rand(3, 8, 8)), r"images has shape \(3, 8, 8\)"),
    "frames": (lambda: write_video(np.zeros((3, 8, 8), np.uint8), "x.mp4"), r"frames has shape \(3, 8, 8\)"),
    "views": (lambda: metrics.pairwise_distance(np.zeros((4, 8, 8, 3))), r"views has shape \(4, 8, 8, 3\)"),
    "features": (lambda: metrics.vendi_score(np.zeros(4)), r"features has shape \(4,\)"),
    "other features": (
        lambda: metrics.frechet_distance(np.zeros((4, 3)), np.zeros((4, 2))),
        r"second has shape \(4, 2\); it must be \(m, d=3\)",
    ),
    "bits as numbers": (
        lambda: metrics.enclosed_share(np.ones((4, 4, 4), dtype=int)),
        "occupied has the type int64; give True and False",
    ),
    "silhouettes": (
        lambda: silhouettes(np.zeros((3, 2)), np.zeros((1, 3), int), FOUR, 8),
        r"vertices has shape \(3, 2\)",
    ),
    "a corner that is not there": (
        lambda: write_mesh(Mesh(np.eye(3), np.array([[0, 1, 3]]), np.eye(3)), "x.glb"),
        "faces holds 0 to 3; with 3 vertices it must be 0 to 2",
    ),
    "colours of bytes with alpha": (
        lambda: write_mesh(Mesh(np.eye(3), np.array([[0, 1, 2]]), np.ones((3, 4))), "x.glb"),
        r"colors has shape \(3, 4\)",
    ),
}
CALLS |= {
    f"{kind} background": (lambda kind=kind: BACKGROUNDS[kind]()(torch.rand(2, 4, 3)), "directions has shape")
    for kind in BACKGROUNDS
}


def grid() -> fsd.Scene:
    return fsd.grid_scene(4, samples=4)


def guide() -> fsd.Guidance:
    return fsd.FlowScoreDistillation(prior(), noise=fsd.RandomNoise())


@pytest.mark.parametrize("name", CALLS)
def test_every_door_says_what_it_takes(name: str) -> None:
    call, says = CALLS[name]
    with pytest.raises((ValueError, TypeError), match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_noise_of_another_shape_does_not_broadcast() -> None:
    class One(fsd.RandomNoise):
        def forward(self, *given: Any) -> torch.Tensor:
            return super().forward(*given)[:1]

    with pytest.raises(ValueError, match=r"the noise has shape \(1, 4, 8, 8\); it must be \(b=4, c=4"):
        fsd.ScoreDistillation(prior(), noise=One())(torch.rand(4, *SHAPE), "any", FOUR, 0.5)


def test_a_device_that_is_not_the_images_is_named() -> None:
    with pytest.raises(ValueError, match=r"the guidance is on cpu and the image on meta; move it"):
        fsd.FlowScoreDistillation(prior())(torch.rand(4, *SHAPE, device="meta"), "any", FOUR, 0.5)
    with pytest.raises(ValueError, match=r"cameras is on cpu and opacity on meta"):
        fsd.RandomNoise(0, SHAPE)(FOUR, opacity=ONE.to("meta"))
