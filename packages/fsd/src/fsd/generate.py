"""One object: from an almost empty blob to a scene, a mesh and pictures of it.

    scene = generate(config, "a red mug", "fsd", seed=0, prior=prior, out="runs/mug/objects/a-red-mug-fsd-seed0")

The loop is the one that a user writes around a guidance of their own.  What a step does is a function of the seed and
the step alone; a checkpoint holds the scene, the optimiser, the noise and every generator, so that an interrupted
object goes on bit for bit.
"""

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from shared_core.run import checkpoint
from shared_core.run.atomic import write_bytes
from shared_core.run.checkpoint import CheckpointError
from shared_core.run.folder import RunFolder
from shared_core.run.guard import FiniteGuard
from shared_core.run.metrics import MetricsLog, cut_back
from shared_core.run.seal import seal, write_sealed
from shared_core.run.stop import StopFlag
from tqdm import tqdm

from fsd.build import build_guidance, build_scene, negative_of, optimizer_for
from fsd.cameras import turntable
from fsd.config import GenerateConfig
from fsd.guidance.frame import ADVICE
from fsd.mesh import extract_mesh, write_mesh
from fsd.objects import squares
from fsd.priors.base import Prior
from fsd.processes import alone
from fsd.scene import Render, Scene
from fsd.step import gradient_norm, loss_parts, take_step
from fsd.turntable import to_bytes, turntable_frames, write_video

GREY = 0.5
FILES = (
    *("config.yaml", "metrics.jsonl", "scene.safetensors", "scene.json", "mesh.glb"),
    *("views.png", "depth.png", "normal.png", "progress.png", "turntable.mp4", "turntable.gif"),
)
"""What a finished object is read from; sealed, so that a damaged file is told from a result."""


def generate(
    config: GenerateConfig,
    prompt: str,
    method: str,
    seed: int,
    prior: Prior,
    out: str | os.PathLike[str],
    device: torch.device | None = None,
) -> Scene:
    """Makes one object in the folder `out`, or goes on with it; object.json, written last, says that it is done.

    Raises RunFolderError if the folder is in use or was begun with another configuration, ValueError for a prompt or
    settings that the prior cannot take, NonFiniteError for numbers that are not finite, and SystemExit after
    saving when the process is told to stop.
    """
    device = device or torch.device("cpu")
    folder = RunFolder(os.path.expanduser(out))
    record = {**config.model_dump(mode="json"), "prompts": [prompt], "guidance": [method], "seeds": [seed]}
    # Processes share objects, not the views of one.
    with (
        alone(),
        folder.open(record, resume=True, ignore=("jobs", "device", "threads")),
        StopFlag() as stop,
    ):
        encoded = prior.encode_text(prompt, negative_of(config, method))
        scene = build_scene(config, seed).to(device)
        about = _optimise(config, method, seed, prior, encoded, scene, folder, device, stop)
        if device.type == "cuda":
            about["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        show(config, scene, prior, folder.path, about)
        identity = {
            "prompt": prompt,
            "guidance": method,
            "noise": config.noise,
            "prior": config.prior,
            "seed": seed,
        }
        seal(folder.path, FILES)
        write_sealed(folder.path / "object.json", {**identity, "steps": config.steps, **about})
        if stop.stopped:
            raise SystemExit(stop.exit_code)
    return scene


def _optimise(
    config: GenerateConfig,
    method: str,
    seed: int,
    prior: Prior,
    encoded: Any,
    scene: Scene,
    folder: RunFolder,
    device: torch.device,
    stop: StopFlag,
) -> dict[str, Any]:
    guide = build_guidance(config, prior, method, seed).to(device)
    optimizer = optimizer_for(config, scene)
    # Cameras are drawn on the CPU, so that a seed sees the same ones on every device.
    view_generator = torch.Generator().manual_seed(seed)
    ray_generator = torch.Generator(device).manual_seed(seed)
    generators = {"view": view_generator, "ray": ray_generator, "prior": getattr(prior, "generator", None)}
    if generators["prior"] is not None:
        # What an object sees must not depend on those that the process made before.
        generators["prior"].manual_seed(seed)
    # Other processes have objects of their own.
    guard = FiniteGuard(config.on_nonfinite, together=False, advice=ADVICE)
    saved = {"scene": scene, "guide": guide, "optimizer": optimizer}
    if config.on_nonfinite == "skip":
        saved["guard"] = guard  # it counts only where it lets steps pass
    state: dict[str, Any] = {"seconds": 0.0, "calls": 0, "memory": 0.0}

    # where an earlier process stopped
    step = 0
    found = checkpoint.load_latest(folder.checkpoints)
    if found is not None:
        checkpoint.restore(found, saved, ("seconds", "calls", "memory", "generators"))
        try:
            for name, generator in generators.items():
                if generator is not None:
                    generator.set_state(found.state["generators"][name])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint {found.path} holds no state of the generators: {error}"
            ) from error
        step, state = found.step, found.state
    cut_back(folder.metrics, step)
    pictures = _earlier_pictures(folder.path / "progress.png", step // config.picture_every)
    begun, calls = time.perf_counter() - state["seconds"], prior.calls - state["calls"]

    def save() -> None:
        states = {name: g.get_state() for name, g in generators.items() if g is not None}
        state.update(
            seconds=time.perf_counter() - begun,
            calls=prior.calls - calls,
            memory=max(state["memory"], _peak_memory_gb()),
            generators=states,
        )
        checkpoint.save(folder.checkpoints, step, saved, state)

    bar = tqdm(total=config.steps, initial=step, desc=folder.path.name, disable=None, leave=False)
    with bar, MetricsLog(folder.metrics, config.tracker, "fsd") as log:
        while step < config.steps:
            taken = take_step(
                config, step, scene, guide, optimizer, encoded, view_generator, ray_generator, guard
            )
            step += 1
            bar.update()

            if taken is not None and (step % config.log_every == 0 or step in (1, config.steps)):
                log.log(
                    step,
                    t=taken.guided.t,
                    loss=taken.loss,
                    parts=loss_parts(taken),
                    grad_norm=gradient_norm(scene),
                    lr=optimizer.param_groups[0]["lr"],
                    opacity=taken.view.opacity.mean(),
                    time={"seconds": time.perf_counter() - begun},
                )
            if step % config.picture_every == 0:
                pictures.append(turntable_frames(scene, 1, config.size)[0])
                write_row(np.stack(pictures), folder.path / "progress.png")
            if stop.stopped or step % config.checkpoint_every == 0 or step == config.steps:
                save()
            if stop.stopped and step < config.steps:
                raise SystemExit(stop.exit_code)
    return {
        "seconds": state["seconds"],
        "network_calls": state["calls"],
        "skipped_steps": guard.skipped,
        "peak_memory_gb": state["memory"],
    }


@torch.no_grad()
def show(config: GenerateConfig, scene: Scene, prior: Prior, out: Path, about: dict[str, Any]) -> None:
    """Writes the scene, its pictures, turntables and mesh into the folder, and what they show into `about`."""
    device = next(scene.parameters()).device
    grey = torch.full((3,), GREY, device=device)
    around = turntable(24).to(device)
    views = torch.cat(
        [scene.render(around[n : n + 4], config.size, background=grey).image for n in range(0, 24, 4)]
    )
    write_row(to_bytes(views), out / "views.png")
    sides = scene.render(turntable(4).to(device), config.size, background=grey, normals=True)
    write_row(to_bytes(_shown_depth(sides).expand(-1, 3, -1, -1)), out / "depth.png")
    if sides.normal is not None:
        write_row(to_bytes((sides.normal + 1) / 2), out / "normal.png")
    about.update(_described(prior, views, around))
    scene.save(out / "scene.safetensors")
    frames = turntable_frames(scene, config.frames, max(config.size, 128))
    for suffix in ("mp4", "gif"):
        write_video(frames, out / f"turntable.{suffix}")
    try:
        write_mesh(extract_mesh(scene, config.mesh_resolution), out / "mesh.glb")
        about["mesh"] = None
    except ValueError as error:
        # An object that vanished is a result too: its pictures show it, and the reason stands in object.json.
        about["mesh"] = str(error)


def write_row(frames: UInt8[np.ndarray, "n h w 3"], path: Path) -> None:
    """Pictures side by side in one PNG."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames), 1)).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def _described(prior: Prior, views: torch.Tensor, cameras: Any) -> dict[str, Any]:
    """What the prior calls the views, and how far they are from its pictures; what it cannot tell is None."""
    describe = getattr(prior, "describe", None)
    if describe is None:
        return {"label": None, "labels": None, "view_consistency": None, "quality": None}
    labels, distances = describe(views, cameras)
    label = max(labels, key=labels.count)
    return {
        "label": label,
        "labels": labels,
        "view_consistency": labels.count(label) / len(labels),
        "quality": None if distances is None else distances.mean().item(),
    }


def _earlier_pictures(path: Path, count: int) -> list[np.ndarray]:
    """The pictures that an interrupted object left, up to the checkpoint."""
    try:
        return list(squares(path)[:count]) if count and path.is_file() else []
    except ValueError:
        # Damaged: the object does not depend on it, and goes on without its first pictures.
        return []


def _shown_depth(view: Render) -> torch.Tensor:
    """Near is bright, far is dark, nothing is black."""
    solid = view.opacity > 0.5
    if not bool(solid.any()):
        return torch.zeros_like(view.depth)
    near, far = view.depth[solid].amin(), view.depth[solid].amax()
    bright = 1 - 0.8 * (view.depth - near) / (far - near).clamp(min=1e-6)
    return torch.where(solid, bright, 0.0)


def _peak_memory_gb() -> float:
    """The largest memory this process has had; kilobytes on Linux, bytes on a Mac."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
