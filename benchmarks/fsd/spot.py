"""fsd's renderer against something real: 64 views of the mesh "Spot" (K. Crane), judged on 16 unseen ones.

    python -m benchmarks.fsd.spot --out FILE [--quick] [--scene FILE]

A dense grid is fitted to random rays of the 64 views, coarse to fine, on one thread, before a background that is
random in each step; then it is rendered on white.  PSNR over all pixels of the 16 views, a white image scoring 11.8,
and over the pixels that the true mask holds, where the silhouette in the object's mean colour scores 19.2.  Depth is
compared inside both masks, the mesh of the automatic threshold with the true masks of all 80 views.
"""

import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from fsd.cameras import Cameras, rays
from fsd.mesh import extract_mesh
from fsd.render import render_rays
from fsd.scene import Scene, grid_scene
from fsd.silhouette import silhouettes
from jaxtyping import Float
from torch import Tensor

from benchmarks.core.figures import difference, options, write

DATA = Path(__file__).parents[3] / "shared" / "data" / "spot_views_128.npz"
SAMPLES, RATE = 96, 0.1
# Step at which each resolution begins.
STAGES, STEPS, RAYS = {0: 32, 200: 64, 600: 96}, 1600, 4096
QUICK_STAGES, QUICK_STEPS, QUICK_RAYS = {0: 16, 60: 32}, 160, 1024
SECONDS, WHOLE, INSIDE = 300.0, 27.0, 21.0


class Views(NamedTuple):
    """Photographs with known cameras, as rays."""

    cameras: Cameras
    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    color: Float[Tensor, "n 3"]
    alpha: Float[Tensor, "n 1"]
    depth: Float[Tensor, " n"]  # along the ray; 0 where there is nothing


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--scene", type=Path, metavar="FILE", help="save the fitted scene (.safetensors)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not DATA.is_file():
        print(f"skipped: {DATA.name} is not there (../shared/data)")
        write(given.out, given.quick, [], skipped=f"{DATA.name} is absent")
        return
    train, test = views("train"), views("test")
    begin = time.perf_counter()
    scene = fit(train, *((QUICK_STAGES, QUICK_STEPS, QUICK_RAYS) if given.quick else (STAGES, STEPS, RAYS)))
    took = time.perf_counter() - begin
    if given.scene:
        scene.save(given.scene)
    found = judge(scene, test) | {"mesh_iou": mesh_iou(scene, [train, test])}
    judged = {"quick": given.quick, "at_least": True}
    blank = psnr(torch.ones_like(test.color), on_white(test))
    figures = [
        # A figure compares two things; here the second is what one gets without doing anything.
        difference("seconds", "seconds to fit", "s", {"fit": [took], "zero": [0.0]}, "fit", "zero",
                   goal=SECONDS, quick=given.quick),
        difference("whole image", "PSNR over the 16 unseen views, above 0", "dB",
                   {"fit": [found["psnr"]], "zero": [0.0], "white": [blank]}, "fit", "zero", goal=WHOLE, **judged),
        difference("inside the mask", "PSNR over the pixels of the true mask, above 0", "dB",
                   {"fit": [found["psnr_mask"]], "zero": [0.0]}, "fit", "zero", goal=INSIDE, **judged),
    ]  # fmt: skip
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    write(given.out, given.quick, figures, **found, white_image=blank, steps=STEPS, rays=RAYS, threads=1)


def views(part: str) -> Views:
    """The "train" or "test" views of the file."""
    with np.load(DATA) as data:
        c2w = torch.from_numpy(data[f"c2w_{part}"])
        rgba = torch.from_numpy(data[f"rgba_{part}"]).float() / 255
        along_axis = torch.from_numpy(data[f"depth_{part}"]).float()
        angle = math.degrees(float(data["camera_angle_x"]))
    cameras = Cameras(c2w, torch.full((len(c2w),), angle))
    origins, directions = rays(cameras, *rgba.shape[1:3])
    # The file's depth is along the camera's axis, as its symmetry shows: x then spans -0.436 to 0.436.
    cosine = -(directions * c2w[:, None, None, :3, 2]).sum(-1)
    flat = rgba.view(-1, 4)
    return Views(
        cameras, origins.reshape(-1, 3), directions.reshape(-1, 3), flat[:, :3], flat[:, 3:],
        (along_axis / cosine).flatten(),
    )  # fmt: skip


def fit(train: Views, stages: dict[int, int], steps: int, batch: int, seed: int = 0) -> Scene:
    """A scene fitted to random rays; Adam whose rate falls by ten, a grid that grows at the given steps."""

    def new_grid(resolution: int) -> Scene:
        return grid_scene(
            resolution, blob_scale=0.0, offset=-3.0, color=(1.0, 1.0, 1.0), samples=SAMPLES, occupancy=64
        )

    generator = torch.Generator().manual_seed(seed)
    scene = new_grid(stages[0])
    optimizer = torch.optim.Adam(scene.field.parameters())
    for step in range(steps):
        if step in stages:
            grown = new_grid(stages[step])
            grown.field, grown.occupancy = scene.field.resized(stages[step]), scene.occupancy
            scene = grown
            optimizer = torch.optim.Adam(scene.field.parameters(), betas=(0.9, 0.99), eps=1e-15)
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.1 ** (step / steps)
        scene.update_occupancy(step)
        # Few rays while all is fog, where every sample counts.
        count = batch if step >= 200 else batch // 4
        pick = torch.randint(len(train.origins), (count,), generator=generator)
        found = render_rays(
            scene.field, train.origins[pick], train.directions[pick], SAMPLES,
            generator=generator, occupancy=scene.occupancy,
        )  # fmt: skip
        behind = torch.rand(count, 3, generator=generator)
        target = train.color[pick] * train.alpha[pick] + behind * (1 - train.alpha[pick])
        loss = F.mse_loss(found.color + (1 - found.opacity[:, None]) * behind, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.5f}", flush=True)
    return scene


@torch.no_grad()
def judge(scene: Scene, test: Views) -> dict[str, float]:
    """PSNR, silhouette and depth on views that were not fitted."""
    size = math.isqrt(len(test.color) // len(test.cameras))
    view = scene.render(test.cameras, size)
    image = view.image.permute(0, 2, 3, 1).reshape(-1, 3)
    opaque, depth = view.opacity.flatten() > 0.5, view.depth.flatten()
    inside, truth = test.alpha[:, 0] > 0.5, on_white(test)
    both = opaque & inside & (test.depth > 0)
    error = (depth - test.depth)[both].abs()
    return {
        "psnr": psnr(image, truth),
        "psnr_mask": psnr(image[inside], truth[inside]),
        "silhouette_iou": iou(opaque, inside),
        "depth_error_mean": float(error.mean()),
        "depth_error_median": float(error.median()),
    }


def mesh_iou(scene: Scene, parts: list[Views]) -> float:
    """Silhouettes of the mesh at the automatic threshold against the true masks of all views."""
    mesh = extract_mesh(scene, resolution=96)
    size = math.isqrt(len(parts[0].color) // len(parts[0].cameras))
    covered = [silhouettes(mesh.vertices, mesh.faces, part.cameras, size).ravel() for part in parts]
    return iou(
        torch.from_numpy(np.concatenate(covered)), torch.cat([part.alpha[:, 0] > 0.5 for part in parts])
    )


def on_white(views: Views) -> Float[Tensor, "n 3"]:
    """The photographs before white."""
    return views.color * views.alpha + 1 - views.alpha


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal to noise ratio in dB, of all numbers together, for values in [0, 1]."""
    return float(-10 * (image - truth).square().mean().log10())


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())


if __name__ == "__main__":
    main()
