"""Fixtures of fsd's tests: a scene of known shape, and a run of `fsd generate` made up of such scenes."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from fsd.scene import Scene, grid_scene
from PIL import Image
from shared_core.run.atomic import write_json, write_yaml
from shared_core.run.environment import describe
from shared_core.run.metrics import MetricsLog

# Tests are imported one by one, so what they share has to be found.
sys.path.insert(0, str(Path(__file__).parent))

RED, BLUE, GREEN = (0.85, 0.15, 0.1), (0.1, 0.25, 0.85), (0.2, 0.7, 0.25)


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """No shape checks, which only tests have: wrong arguments reach the package's own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def known_scene(shape: str, color: tuple[float, float, float], resolution: int = 24) -> Scene:
    """A "ball" of radius 0.6 or a "box" of 0.8 by 1.0 by 1.0, with a yellow nose on its front, +y, up by 0.3."""
    scene = grid_scene(resolution, blob_scale=0.0, samples=32)
    axis = torch.linspace(-1, 1, resolution)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    if shape == "ball":
        inside = x**2 + y**2 + z**2 < 0.6**2
    else:
        inside = (x.abs() < 0.4) & (y.abs() < 0.5) & (z.abs() < 0.5)
    nose = x**2 + (y - 0.6) ** 2 + (z - 0.3) ** 2 < 0.2**2
    with torch.no_grad():
        scene.field.values[0, 0] = torch.where(inside | nose, 60.0, -12.0)
        for channel, (body, tip) in enumerate(zip(color, (0.95, 0.8, 0.1), strict=True), start=1):
            level = torch.where(nose, torch.tensor(tip), torch.tensor(body))
            scene.field.values[0, channel] = torch.logit(level)
    return scene


def write_object(folder: Path, scene: Scene, about: dict[str, Any], size: int = 32) -> None:
    """An object folder as `fsd generate` leaves it."""
    from fsd.mesh import extract_mesh, write_mesh
    from fsd.turntable import turntable_frames, write_video

    folder.mkdir(parents=True)
    scene.save(folder / "scene.safetensors")
    views = turntable_frames(scene, 24, size)
    _row(views, folder / "views.png")
    _row(views[::6], folder / "normal.png")
    _row(views[::6], folder / "depth.png")
    steps = [views[0] * (k / 5) + 128 * (1 - k / 5) for k in range(6)]
    _row(np.stack(steps).astype(np.uint8), folder / "progress.png")
    write_video(views, folder / "turntable.mp4", fps=12)
    write_mesh(extract_mesh(scene, 32), folder / "mesh.glb")
    with MetricsLog(folder / "metrics.jsonl") as metrics:
        for step in range(0, 300, 10):
            metrics.log(
                step, t=1 - step / 310, loss=2.0 / (step + 1), grad_norm=1 + about["seed"], opacity=step / 400
            )
    write_json(folder / "object.json", about)


def _row(pictures: np.ndarray, path: Path) -> None:
    Image.fromarray(np.concatenate(list(pictures), 1)).save(path)


def about_object(guidance: str, seed: int, label: str | None, agree: float | None = 1.0) -> dict[str, Any]:
    """object.json of an object of the prompt "a toy"."""
    return {
        "prompt": "a toy",
        "guidance": guidance,
        "noise": "world-map" if guidance == "fsd" else "random",
        "prior": "render-bank",
        "seed": seed,
        "steps": 300,
        "seconds": 25.0 + seed,
        "network_calls": 300,
        "peak_memory_gb": 0.75,
        "label": label,
        "labels": None if label is None else [label] * 24,
        "view_consistency": agree,
        "quality": None if label is None else 0.08,
    }


@pytest.fixture(scope="session")
def made_up_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two methods and two seeds, with a third seed of SDS that failed; tests leave it as it is."""
    run = tmp_path_factory.mktemp("runs") / "toy"
    run.mkdir()
    write_yaml(
        run / "config.yaml", {"prompts": ["a toy"], "guidance": ["sds", "fsd"][::-1], "seeds": [0, 1, 2]}
    )
    write_json(run / "env.json", describe())
    scenes = {
        ("fsd", 0, "red ball"): known_scene("ball", RED),
        ("fsd", 1, "blue box"): known_scene("box", BLUE),
        ("sds", 0, "green ball"): known_scene("ball", GREEN),
        ("sds", 1, "green ball"): known_scene("ball", GREEN),
    }
    for (guidance, seed, label), scene in scenes.items():
        write_object(
            run / "objects" / f"a-toy-{guidance}-seed{seed}", scene, about_object(guidance, seed, label)
        )
    lost = run / "objects" / "a-toy-sds-seed2"
    lost.mkdir()
    write_json(lost / "failed.json", {"error": "the loss is not finite at step 17 <in the prior>"})
    return run
