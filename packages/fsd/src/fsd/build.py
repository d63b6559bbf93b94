"""From the configuration to the things it names; below these functions nothing knows of configurations."""

import os
from functools import partial
from typing import Any

import torch
from torch import nn

from fsd.cameras import orbit
from fsd.config import GenerateConfig
from fsd.guidance import METHODS, Guidance
from fsd.noise import ConstantNoise, RandomNoise, WorldMapNoise
from fsd.priors.base import Prior
from fsd.scene import Scene, grid_scene, hash_scene
from fsd.schedule import Schedule, schedule_named
from fsd.surface_noise import SurfaceNoise

EMBEDDED = {"embedded": "multi-view", "embedded-camera-free": "camera-free"}


def build_prior(config: GenerateConfig, device: torch.device) -> Prior:
    """The prior that a configuration names.  Raises ValueError, or OSError, for a model that is not there."""
    if config.prior in ("bank", "bank-per-view"):
        from fsd.priors.bank import RenderBank

        return RenderBank(joint=config.prior == "bank")
    if not config.prior:
        raise ValueError(
            "no prior is named: pass --prior with the folder or hub id of a diffusers pipeline, or --prior embedded"
        )
    settings: dict[str, Any] = {
        "views": config.views,
        "device": device,
        "precision": config.precision,
        "offload": config.offload,
        "slicing": config.slicing,
        "image_size": config.image_size,
    }
    if config.view_words is not None:
        settings["view_words"] = config.view_words
    if config.perp_neg:
        settings["perp_neg"] = True
    if config.prior in EMBEDDED:
        from fsd.priors.embedded import EmbeddedPrior

        return EmbeddedPrior(EMBEDDED[config.prior], **settings)
    from fsd.priors.multiview import open_prior

    return open_prior(config.prior, **settings)


def encode_texts(config: GenerateConfig, prior: Prior) -> None:
    """Encodes every text of the run, once, and lets a diffusion model's text encoder go.

    Raises ValueError for a prompt that the prior cannot take.
    """
    for method in config.guidance:
        for prompt in config.prompts:
            prior.encode_text(prompt, negative_of(config, method))
        if method == "nfsd" and config.negative_prompt:
            prior.encode_text(config.negative_prompt)
    free = getattr(prior, "free_text_encoder", None)
    if free is not None:
        free()


def try_prior(config: GenerateConfig, prior: Prior, device: torch.device) -> None:
    """Asks the prior once what the first step of an object asks, with a backward pass through its image encoder.

    Raises ValueError for whatever it cannot do, so that a run stops before its first step instead of losing one object
    after the other. What was drawn and counted is put back.
    """
    c = config.cameras
    views = config.views or prior.views
    ranges: dict[str, Any] = {"elevation_deg": c.elevation_deg, "distance": c.distance, "fov_deg": c.fov_deg}
    for progress in (0.0, 1.0):
        orbit(views_at(config, progress)[0], torch.Generator(), views, **ranges)
    cameras = orbit(views, torch.Generator().manual_seed(0), views, **ranges).to(device)
    generator = getattr(prior, "generator", None)
    drawn = None if generator is None else generator.get_state()
    try:
        image = torch.full((views, 3, config.size, config.size), 0.5, device=device, requires_grad=True)
        x = prior.encode_image(image)
        x.square().sum().backward()
        condition = prior.condition(
            prior.encode_text(config.prompts[0], negative_of(config, config.guidance[0])), cameras
        )
        noise = prior.predict_noise(x.detach(), 0.5, condition, config.guidance_scale)
        if not bool(torch.isfinite(noise).all()):
            raise FloatingPointError(
                "it gave numbers that are not finite for a grey image: its weights hold some, or fp16 overflowed (use "
                "precision bf16 or fp32)"
            )
    except torch.OutOfMemoryError:
        pass  # the objects say what to lower
    except Exception as error:
        raise ValueError(f"the prior {config.prior} cannot be used: {says(error)}") from error
    finally:
        if generator is not None:
            generator.set_state(drawn)


def says(error: Exception) -> str:
    """The error as a sentence: its own words; errors that are not meant for users are named by their type."""
    words = str(error) or "no further words"
    meant = isinstance(error, (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError, ImportError))
    return words if meant and str(error) else f"{type(error).__name__}: {words}"


def negative_of(config: GenerateConfig, method: str) -> str:
    """The negative prompt that goes with the prompt; NFSD uses its own beside no words at all."""
    return "" if method == "nfsd" else config.negative_prompt


def build_scene(config: GenerateConfig, seed: int) -> Scene:
    """An almost empty blob."""
    f = config.field
    torch.manual_seed(seed)
    rendering: dict[str, Any] = {
        "background": f.background,
        "samples": f.samples,
        "fine_samples": f.fine_samples,
        "occupancy": f.occupancy,
        "shading": f.shading,
        "marching": f.marching,
    }
    if f.kind == "grid":
        return grid_scene(f.resolution, **rendering)
    return hash_scene(log2_size=f.log2_size, **rendering)


def build_guidance(config: GenerateConfig, prior: Prior, method: str, seed: int) -> Guidance:
    """A method with the noise and schedule that the configuration asks for, or its paper's."""
    settings: dict[str, Any] = {"weighting": config.weighting} if method in _FLOW else {}
    schedule = build_schedule(config, method)
    if schedule is not None:
        settings["schedule"] = schedule
    noise = build_noise(config, method, seed)
    if method == "nfsd" and config.negative_prompt:
        settings["negative"] = prior.encode_text(config.negative_prompt)
    return METHODS[method](prior, noise, seed=seed, guidance_scale=config.guidance_scale, **settings)


def build_noise(config: GenerateConfig, method: str, seed: int) -> nn.Module | None:
    """The noise asked for; None leaves it to the method."""
    world_map = partial(
        WorldMapNoise,
        map_degrees=config.map_degrees,
        background=config.map_background,
        released_rows=config.released_rows,
        shared=config.shared,
    )
    if config.noise == "auto":
        return world_map(seed, beta=config.beta) if method == "fsd" else None
    if config.noise == "random":
        return RandomNoise(seed)
    if config.noise == "surface":
        return SurfaceNoise(seed)
    return (ConstantNoise if config.noise == "constant" else world_map)(seed, beta=config.beta)


def build_schedule(config: GenerateConfig, method: str) -> Schedule | None:
    """The schedule asked for; `auto` is linear for the methods whose time runs down, and each paper's otherwise."""
    if config.schedule == "auto" and method not in _FLOW:
        return None
    name = "linear" if config.schedule == "auto" else config.schedule
    return schedule_named(name, config.t_max, config.t_min)


def optimizer_for(config: GenerateConfig, scene: Scene) -> torch.optim.Adam:
    """Adam with a rate for the grid, one for the network behind it, and one for the background."""
    o = config.optim
    layers = [m for m in scene.field.modules() if isinstance(m, nn.Linear)]
    network = [parameter for layer in layers for parameter in layer.parameters()]
    grid = [p for p in scene.field.parameters() if not any(p is other for other in network)]
    groups = [
        {"params": grid, "lr": o.learning_rate},
        {"params": network, "lr": o.network_rate or o.learning_rate},
        {"params": list(scene.background.parameters()), "lr": o.background_rate},
    ]
    return torch.optim.Adam([g for g in groups if g["params"]], betas=o.betas, eps=o.epsilon)


def views_at(config: GenerateConfig, progress: float) -> tuple[int, int]:
    """How many views of which size a step takes."""
    later = config.later
    if later is not None and progress >= later.progress:
        return later.batch_size, later.size
    return config.batch_size, config.size


def set_threads(config: GenerateConfig) -> None:
    """How many threads a process uses on a CPU; one, where several processes share the machine."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    elif config.jobs > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.jobs))


_FLOW = ("fsd", "cfd", "sds-annealed")
