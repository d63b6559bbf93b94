"""The methods by name.  Each is a function that returns a Guidance, with the settings its paper uses.

    >>> guide = FlowScoreDistillation(prior, noise=WorldMapNoise(seed=0), guidance_scale=7.5)
    >>> guide = METHODS["sds"](prior, seed=0)

`guidance_scale` follows one convention, that of `priors.base`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fsd.guidance.directions import classifier, interval, inversion, noise_free, noise_residual
from fsd.guidance.frame import Guidance
from fsd.guidance.vsd import VariationalScoreDistillation
from fsd.noise import RandomNoise, WorldMapNoise
from fsd.priors.base import Prior
from fsd.schedule import Schedule, linear, random
from fsd.surface_noise import SurfaceNoise

_TO_A_QUARTER = partial(linear, t_max=0.98, t_min=0.25)


def ScoreDistillation(
    prior: Prior, noise: nn.Module | None = None, schedule: Schedule = random, seed: int = 0, **settings: Any
) -> Guidance:
    """SDS: fresh noise, random t (DreamFusion, arXiv 2209.14988, equation 3)."""
    return Guidance(prior, noise_residual, noise or RandomNoise(seed), schedule, seed=seed, **settings)


def AnnealedScoreDistillation(
    prior: Prior, noise: nn.Module | None = None, schedule: Schedule = linear, seed: int = 0, **settings: Any
) -> Guidance:
    """SDS with t running down: the control that separates FSD's noise from its schedule."""
    return Guidance(prior, noise_residual, noise or RandomNoise(seed), schedule, seed=seed, **settings)


def FlowScoreDistillation(
    prior: Prior, noise: nn.Module | None = None, schedule: Schedule = linear, seed: int = 0, **settings: Any
) -> Guidance:
    """FSD: noise that is a function of the camera, t running down (arXiv 2405.10988).  As many calls as SDS."""
    return Guidance(prior, noise_residual, noise or WorldMapNoise(seed), schedule, seed=seed, **settings)


def ConsistentFlowDistillation(
    prior: Prior, noise: nn.Module | None = None, schedule: Schedule = linear, seed: int = 0, **settings: Any
) -> Guidance:
    """CFD: noise that sticks to the surface (arXiv 2501.05445); needs `opacity` and `depth`."""
    noise = noise or SurfaceNoise(seed, refresh=1e-4)
    return Guidance(prior, noise_residual, noise, schedule, seed=seed, **settings)


def InversionScoreDistillation(
    prior: Prior,
    noise: nn.Module | None = None,
    schedule: Schedule = _TO_A_QUARTER,
    seed: int = 0,
    steps: int = 10,
    **settings: Any,
) -> Guidance:
    """SDI: the noise is what inversion finds for the image (arXiv 2405.15891).  `steps` calls more than SDS."""
    settings = {"weighting": "one", **settings}
    direction = partial(inversion, steps=steps)
    return Guidance(prior, direction, noise or RandomNoise(seed), schedule, seed=seed, **settings)


def IntervalScoreMatching(
    prior: Prior, noise: nn.Module | None = None, schedule: Schedule = random, seed: int = 0, **settings: Any
) -> Guidance:
    """ISM: a step of inversion without the prompt against one with it (LucidDreamer, arXiv 2311.11284)."""
    return Guidance(prior, interval, noise or RandomNoise(seed), schedule, seed=seed, **settings)


def ClassifierScoreDistillation(
    prior: Prior, noise: nn.Module | None = None, schedule: Schedule = random, seed: int = 0, **settings: Any
) -> Guidance:
    """CSD: the difference that the prompt makes, alone (arXiv 2310.19415); the guidance scale plays no part."""
    settings = {"weighting": "sigma2", **settings}
    return Guidance(prior, classifier, noise or RandomNoise(seed), schedule, seed=seed, **settings)


def NoiseFreeScoreDistillation(
    prior: Prior,
    noise: nn.Module | None = None,
    schedule: Schedule = random,
    seed: int = 0,
    negative: Any = None,
    guidance_scale: float = 7.5,
    **settings: Any,
) -> Guidance:
    """NFSD: no noise in the gradient, the prompt's part and a part that leaves bad images (arXiv 2310.17590).

    `negative`: an encoded prompt of what bad images show.
    """
    settings = {"weighting": "sigma2", **settings}
    direction = partial(noise_free, negative=negative, scale=guidance_scale)
    noise = noise or RandomNoise(seed)
    return Guidance(prior, direction, noise, schedule, guidance_scale=guidance_scale, seed=seed, **settings)


METHODS: dict[str, Callable[..., Guidance]] = {
    "sds": ScoreDistillation,
    "sds-annealed": AnnealedScoreDistillation,
    "fsd": FlowScoreDistillation,
    "cfd": ConsistentFlowDistillation,
    "sdi": InversionScoreDistillation,
    "ism": IntervalScoreMatching,
    "csd": ClassifierScoreDistillation,
    "nfsd": NoiseFreeScoreDistillation,
    "vsd": VariationalScoreDistillation,
}
