"""One step of an object: draw cameras, render, ask the guidance, step the optimiser.

>>> taken = take_step(config, step, scene, guide, optimizer, encoded, views, rays, FiniteGuard())
>>> taken.guided.t, taken.loss.item()
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from shared_core.ops.snapshot import Snapshot
from shared_core.run.guard import FiniteGuard, largest_gradient
from torch import Tensor

from fsd.build import views_at
from fsd.cameras import orbit
from fsd.config import GenerateConfig
from fsd.guidance import Guidance, Guided
from fsd.regularizers import binary_entropy, sparsity
from fsd.scene import Render, Scene


class Taken(NamedTuple):
    """What a step saw."""

    guided: Guided
    view: Render
    loss: Tensor


def take_step(
    config: GenerateConfig,
    step: int,
    scene: Scene,
    guide: Guidance,
    optimizer: torch.optim.Optimizer,
    encoded: Any,
    views: torch.Generator,
    rays: torch.Generator,
    guard: FiniteGuard,
) -> Taken | None:
    """Step number `step`, from 0 on.  `views` draws cameras, on the CPU; `rays` samples along rays, on the device.

    The guard judges the prior's answer, the loss and the scene's gradient in one look, the only one at the device.
    None for a step that it leaves out under policy "skip": that changes nothing but the guard's counter, for scene,
    optimizer, noise, VSD's LoRA and all generators are what they were.  Raises NonFiniteError under policy "error" and
    after too many in a row.
    """
    undo = _undo(scene, guide, views, rays) if guard.policy == "skip" else None
    try:
        taken = _look(config, step, scene, guide, optimizer, encoded, views, rays)
        judged = {**taken.guided.judged, "loss": taken.loss, "gradient": largest_gradient(scene)}
    except FloatingPointError:
        # A prior may look for itself.
        if undo is None:
            raise
        taken, judged = None, {"prior": torch.tensor(float("nan"))}
    if guard.accepts(judged, step + 1):
        _apply(config, step, scene, optimizer)
        return taken
    assert undo is not None
    undo()
    optimizer.zero_grad()
    return None


def _undo(scene: Scene, guide: Guidance, *generators: torch.Generator) -> Callable[[], None]:
    """What puts back all that a step changes before it is judged."""
    before = Snapshot(scene, guide)
    drawn = [g for g in (*generators, getattr(guide.prior, "generator", None)) if g is not None]
    states = [g.get_state() for g in drawn]
    # A guidance may learn: VSD's network for the camera.
    learned = [(p, p.detach().clone()) for p in guide.parameters()]

    def undo() -> None:
        with torch.no_grad():
            for parameter, value in learned:
                parameter.copy_(value)
        before.restore()
        for generator, state in zip(drawn, states, strict=True):
            generator.set_state(state)

    return undo


def _look(
    config: GenerateConfig,
    step: int,
    scene: Scene,
    guide: Guidance,
    optimizer: torch.optim.Optimizer,
    encoded: Any,
    views: torch.Generator,
    rays: torch.Generator,
) -> Taken:
    """Render, guide and differentiate; the scene stays as it is."""
    progress = step / config.steps
    batch, size = views_at(config, progress)
    c = config.cameras
    cameras = orbit(
        batch,
        views,
        config.views or guide.prior.views,
        elevation_deg=c.elevation_deg,
        distance=c.distance,
        fov_deg=c.fov_deg,
    ).to(next(scene.parameters()).device)
    view = scene.render(cameras, size, rays, progress=progress)
    guided = guide(view.image, encoded, cameras, progress, view.opacity, view.depth, check=False)
    loss = guided.loss + regularisers(config, view)
    optimizer.zero_grad()
    loss.backward()
    return Taken(guided, view, loss)


def _apply(config: GenerateConfig, step: int, scene: Scene, optimizer: torch.optim.Optimizer) -> None:
    """Everything of a step that changes the scene."""
    if config.optim.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(scene.parameters(), config.optim.clip_norm)
    optimizer.step()
    scene.update_occupancy(step)


def regularisers(config: GenerateConfig, view: Render) -> Tensor | float:
    """The further losses that the configuration gives a weight."""
    r = config.regularizers
    return (r.sparsity * sparsity(view.opacity) if r.sparsity else 0.0) + (
        r.opaque * binary_entropy(view.opacity) if r.opaque else 0.0
    )


def gradient_norm(scene: Scene) -> Float[Tensor, ""]:
    """Of all parameters together, as the last step left it."""
    norms = [p.grad.norm() for p in scene.parameters() if p.grad is not None]
    return torch.stack(norms).norm()


def loss_parts(taken: Taken) -> dict[str, Float[Tensor, ""]]:
    """The loss of the guidance, and what regularizers add to it; on the device, for the log to read at once."""
    guidance = taken.guided.loss.detach()
    return {"guidance": guidance, "regularizers": taken.loss.detach() - guidance}
