"""What fsd's occupancy grid spares on a CPU: the field is asked about occupied cells alone, for the same picture.

    python -m benchmarks.fsd.occupancy --out FILE [--quick]

A grid scene is fitted to pictures of a procedural object (a ball with a nose and an ear) and then rendered, and
rendered with its backward pass, with every sample and with the occupancy grid of 32^3 cells; one CPU thread, the two
in turns.  Rays that miss the cube are asked about by neither.
"""

import time
from typing import Any

import torch
from fsd.cameras import Cameras, orbit, turntable
from fsd.occupancy import OccupancyGrid
from fsd.scene import Scene, grid_scene
from torch import Tensor, nn

from benchmarks.core.figures import difference, interleaved, options, ratio, write

SAMPLES, RESOLUTION, CELLS = 64, 48, 32


class Object(nn.Module):
    """A green ball, a red nose on +y, a blue ear on -x, as hard as can be."""

    radius = 1.0

    def density(self, points: Tensor) -> Tensor:
        return self.forward(points)[0]

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [-0.6, 0.0, 0.3]])
        radii = torch.tensor([0.45, 0.25, 0.2])
        colors = torch.tensor([[0.1, 0.8, 0.1], [0.9, 0.1, 0.1], [0.1, 0.1, 0.9]])
        depth = radii - (points[:, None] - places).norm(dim=2)
        return 200 * (depth.amax(1) > 0), colors[depth.argmax(1)]


class Counted(nn.Module):
    """A field that counts the points it is asked about."""

    field: Any
    radius: float

    def __init__(self, field: Any) -> None:
        super().__init__()
        self.field, self.radius, self.points = field, field.radius, 0

    def density(self, points: Tensor) -> Tensor:
        self.points += len(points)
        return self.field.density(points)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        self.points += len(points)
        return self.field(points)


def main() -> None:
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    size, rounds = (16, 2) if given.quick else (64, 11)
    scene = fitted(20 if given.quick else 300)
    field = Counted(scene.field)
    scene.field = field
    cameras = turntable(4)
    grid = OccupancyGrid(CELLS, field.radius)
    grid.update(field, 0, 2 * field.radius / SAMPLES)
    found = {}
    asked: dict[str, list[float]] = {}
    for name, occupancy in (("dense", None), ("occupancy", grid)):
        scene.occupancy, field.points = occupancy, 0
        with torch.no_grad():
            found[name] = scene.render(cameras, size).image
        asked[name] = [float(field.points)]
    psnr = float(-10 * (found["dense"] - found["occupancy"]).square().mean().log10())
    times = interleaved(
        {
            name: lambda o=o: step_seconds(scene, o, cameras, size)
            for name, o in (("dense", None), ("occupancy", grid))
        },
        rounds,
    )
    what = f"4 views of {size} x {size}, {SAMPLES} samples, a grid of {RESOLUTION}^3 fitted to an object"
    figures = [
        ratio("field queries", f"dense over occupancy grid: {what}", "points", asked, "dense", "occupancy",
              goal=2.0, at_least=True, quick=given.quick),
        difference("agreement", "PSNR of the two pictures to each other, above 0", "dB",
                   {"occupancy": [psnr], "zero": [0.0]}, "occupancy", "zero", goal=40.0, at_least=True,
                   quick=given.quick),
        ratio("time", "dense over occupancy grid, render and backward pass", "s, processor time", times,
              "dense", "occupancy", quick=given.quick),
    ]  # fmt: skip
    write(given.out, given.quick, figures, occupied_share=float(grid.occupied.float().mean()))


def fitted(steps: int) -> Scene:
    """A scene after `steps` steps of four pictures of the object, each on a random background."""
    target = Scene(Object(), nn.Identity(), samples=SAMPLES)
    scene = grid_scene(RESOLUTION, samples=SAMPLES)
    optimizer = torch.optim.Adam(scene.field.parameters(), 0.2, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        cameras = orbit(4, generator, elevation_deg=(-40.0, 60.0))
        behind = torch.rand(3, generator=generator)
        with torch.no_grad():
            truth = target.render(cameras, 32, background=behind).image
        loss = (scene.render(cameras, 32, generator, background=behind).image - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scene


def step_seconds(scene: Scene, occupancy: OccupancyGrid | None, cameras: Cameras, size: int) -> float:
    """Processor time of a render and its backward pass."""
    scene.occupancy = occupancy
    scene.zero_grad()
    begin = time.process_time()
    scene.render(cameras, size).image.square().mean().backward()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
