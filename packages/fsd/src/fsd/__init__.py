"""Flow score distillation (arXiv 2405.10988): diverse text-to-3D from a diffusion prior, for PyTorch.

import fsd
prior = fsd.EmbeddedPrior()                 # or fsd.DiffusersPrior.from_pretrained("path-or-hub-id")
guide = fsd.FlowScoreDistillation(prior, noise=fsd.WorldMapNoise(seed=0))
prompt = prior.encode_text("a red mushroom")
out = guide(image, prompt, cameras, progress=step / steps, opacity=opacity); out.loss.backward()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsd import cameras, schedule
    from fsd.cameras import Cameras
    from fsd.guidance import (
        AnnealedScoreDistillation,
        ClassifierScoreDistillation,
        ConsistentFlowDistillation,
        FlowScoreDistillation,
        Guidance,
        Guided,
        IntervalScoreMatching,
        InversionScoreDistillation,
        NoiseFreeScoreDistillation,
        ScoreDistillation,
        VariationalScoreDistillation,
    )
    from fsd.noise import ConstantNoise, RandomNoise, WorldMapNoise
    from fsd.priors.bank import RenderBank
    from fsd.priors.diffusers import DiffusersPrior
    from fsd.priors.embedded import EmbeddedPrior
    from fsd.priors.mixture import MixturePrior
    from fsd.priors.multiview import MultiViewPrior
    from fsd.scene import Scene, grid_scene, hash_scene, load_scene
    from fsd.surface_noise import SurfaceNoise

__version__ = "0.1.0"

__all__ = [
    "AnnealedScoreDistillation",
    "Cameras",
    "ClassifierScoreDistillation",
    "ConsistentFlowDistillation",
    "ConstantNoise",
    "DiffusersPrior",
    "EmbeddedPrior",
    "FlowScoreDistillation",
    "Guidance",
    "Guided",
    "IntervalScoreMatching",
    "InversionScoreDistillation",
    "MixturePrior",
    "MultiViewPrior",
    "NoiseFreeScoreDistillation",
    "RandomNoise",
    "RenderBank",
    "Scene",
    "ScoreDistillation",
    "SurfaceNoise",
    "VariationalScoreDistillation",
    "WorldMapNoise",
    "cameras",
    "grid_scene",
    "hash_scene",
    "load_scene",
    "schedule",
]

# Modules are imported when a name is first used: the command line answers --help without torch.
_HOMES = {
    "cameras": "",
    "schedule": "",
    "Cameras": "cameras",
    "AnnealedScoreDistillation": "guidance",
    "ClassifierScoreDistillation": "guidance",
    "ConsistentFlowDistillation": "guidance",
    "FlowScoreDistillation": "guidance",
    "Guidance": "guidance",
    "Guided": "guidance",
    "IntervalScoreMatching": "guidance",
    "InversionScoreDistillation": "guidance",
    "NoiseFreeScoreDistillation": "guidance",
    "ScoreDistillation": "guidance",
    "VariationalScoreDistillation": "guidance",
    "ConstantNoise": "noise",
    "RandomNoise": "noise",
    "WorldMapNoise": "noise",
    "SurfaceNoise": "surface_noise",
    "DiffusersPrior": "priors.diffusers",
    "EmbeddedPrior": "priors.embedded",
    "MixturePrior": "priors.mixture",
    "MultiViewPrior": "priors.multiview",
    "Scene": "scene",
    "grid_scene": "scene",
    "hash_scene": "scene",
    "load_scene": "scene",
    "RenderBank": "priors.bank",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not _HOMES[name]:
        return import_module(f"fsd.{name}")
    return getattr(import_module(f"fsd.{_HOMES[name]}"), name)
