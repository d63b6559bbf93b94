"""How well a prior of the world draws what it is asked for, judged by a network that saw other pictures.

    >>> prior = EmbeddedPrior("camera-free")
    >>> prior_quality(prior, prompts=100)["kind"]                        # share of pictures of the right kind
    >>> openness(prior, "a mushroom")["colour_ratio"]                    # 1: all colours alike, as in training
    >>> flow_agreement(prior, "an object")["agree"]                      # 1: FSD in two dimensions is DDIM

Pictures are drawn by DDIM with guidance.  Each view of a prompt is asked for by its camera, which a multi-view prior is
told and which a camera-free one puts into words.
"""

import math
import time
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from fsd.attributes import main_name
from fsd.cameras import Cameras, orbit
from fsd.guidance import FlowScoreDistillation
from fsd.metrics import label_entropy
from fsd.priors.view_words import VIEWS, view_index
from fsd.sampling import ddim
from fsd.world.captions import understand
from fsd.world.judge import load_judge, names
from fsd.world.objects import FRONTED, KINDS
from fsd.world.words import COLOURS

Named = tuple[str, str, str]


def prior_quality(
    prior: Any,
    prompts: int = 1000,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float = 3.0,
    batch: int = 16,
) -> dict[str, Any]:
    """Random prompts of a colour and a kind, each seen by random cameras, as many as the prior has views.

    kind colour both: shares of the pictures that the judge names as asked.  view: the same of the side, over those of
    kinds with a front (None without any).  by_kind: share of right kinds for each.  The judge itself is right in 99 %.
    Raises ValueError for fewer than one prompt or step.
    """
    if prompts < 1:
        raise ValueError(f"prompts={prompts}; give at least 1")
    rng, generator = Random(f"quality-{seed}"), torch.Generator().manual_seed(seed)
    asked = [(rng.choice(list(COLOURS)), rng.choice(list(KINDS))) for _ in range(prompts)]
    cameras = _around(prompts, prior.views, generator)
    begun = time.process_time()
    texts = [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}" for colour, kind in asked]
    seen = named(draw(prior, texts, cameras, generator, steps, guidance_scale, batch))
    right = [(*pair, VIEWS[index]) for pair, index in zip(
        [pair for pair in asked for _ in range(prior.views)], view_index(cameras).tolist(), strict=True
    )]  # fmt: skip
    fronted = [pair for pair in zip(seen, right, strict=True) if pair[1][1] in FRONTED]
    kinds = {kind: [s[1] == kind for s, r in zip(seen, right, strict=True) if r[1] == kind] for kind in KINDS}
    return {
        "prompts": prompts,
        "pictures": len(seen),
        "steps": steps,
        "guidance_scale": guidance_scale,
        "kind": _share([s[1] == r[1] for s, r in zip(seen, right, strict=True)]),
        "colour": _share([s[0] == r[0] for s, r in zip(seen, right, strict=True)]),
        "both": _share([s[:2] == r[:2] for s, r in zip(seen, right, strict=True)]),
        "view": _share([s[2] == r[2] for s, r in fronted]),
        "views_asked": len(fronted),
        "by_kind": {kind: _share(found) for kind, found in kinds.items()},
        "core_seconds": time.process_time() - begun,
    }


def openness(
    prior: Any,
    prompt: str,
    samples: int = 256,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float = 3.0,
    batch: int = 16,
) -> dict[str, Any]:
    """Whether what a prompt leaves open stays open: entropy of the samples' colours and kinds, in nats.

    colour_ratio kind_ratio: over that of the training, log n, where all n are as frequent; None for what the prompt
    names.  Of several views of a sample the most frequent name counts.  Of n samples of 8 colours the ratio is
    1 - 3.5 / (n log 8) on average where they are alike, so 0.993 at 256.
    Raises ValueError for fewer than one sample, and for words that the world does not know.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}; give at least 1")
    asked, generator = understand(prompt), torch.Generator().manual_seed(seed)
    cameras = _around(samples, prior.views, generator)
    seen = named(draw(prior, [prompt] * samples, cameras, generator, steps, guidance_scale, batch))
    objects = [seen[n : n + prior.views] for n in range(0, len(seen), prior.views)]
    found: dict[str, Any] = {
        "prompt": prompt,
        "samples": samples,
        "steps": steps,
        "guidance_scale": guidance_scale,
    }
    for number, (what, known) in enumerate({"colour": asked.colours, "kind": asked.kinds}.items()):
        entropy = label_entropy([main_name([view[number] for view in views]) for views in objects])
        found[what] = entropy
        found[f"{what}_ratio"] = entropy / math.log(len(known)) if len(known) > 1 else None
    return found


def flow_agreement(
    prior: Any,
    prompt: str,
    samples: int = 64,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float = 3.0,
    batch: int = 16,
) -> dict[str, Any]:
    """FSD in two dimensions against DDIM from the same noise: the proposition that the method rests on.

    Pictures are pixels of their own; SGD steps by the difference of sigma / alpha to the next time (FSD, arXiv
    2405.10988, proposition 1).  agree: share of the pictures that get the same colour and kind; largest: difference of
    a pixel, in [0, 1], from rounding.  Raises ValueError for a prior with a VAE.
    """
    if prior.latent_shape[1] != prior.image_size:
        raise ValueError("this prior denoises latents of a VAE, whose pictures are no pixels of their own")
    generator, agree, largest = torch.Generator().manual_seed(seed), 0.0, 0.0
    encoded = prior.encode_text(prompt)
    for first in range(0, samples, batch):
        count = min(batch, samples - first)
        cameras = _around(count, prior.views, generator)
        noise = torch.randn((len(cameras), *prior.latent_shape), generator=generator)
        sample = ddim(prior, prior.condition(encoded, cameras), noise, steps, guidance_scale)
        flow = by_flow(prior, encoded, cameras, noise, steps, guidance_scale)
        pairs = zip(named(sample), named(flow), strict=True)
        agree += sum(one[:2] == other[:2] for one, other in pairs)
        largest = max(largest, float((sample - flow).abs().max()))
    return {
        "prompt": prompt,
        "pictures": samples * prior.views,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "agree": agree / (samples * prior.views),
        "largest": largest,
    }


def by_flow(
    prior: Any,
    encoded: Any,
    cameras: Cameras,
    noise: Float[Tensor, "b 3 h w"],
    steps: int,
    guidance_scale: float,
) -> Float[Tensor, "b 3 h w"]:
    """Pictures by flow score distillation with one noise each, from grey; in [0, 1]."""
    times = [1 - step / steps for step in range(steps)]
    levels = [sigma / alpha for alpha, sigma in map(prior.alpha_sigma, times)] + [0.0]
    guide = FlowScoreDistillation(
        prior,
        OwnNoise(noise),
        lambda progress, generator: times[round(progress * steps)],
        weighting="one",
        guidance_scale=guidance_scale,
    )
    x = torch.zeros_like(noise, requires_grad=True)
    for step in range(steps):
        guide((x + 1) / 2, encoded, cameras, progress=step / steps).loss.backward()
        with torch.no_grad():
            assert x.grad is not None
            # The loss is a mean over the batch.
            x -= (levels[step] - levels[step + 1]) * len(x) * x.grad
            x.grad = None
    return (x.detach() / 2 + 0.5).clamp(0, 1)


class OwnNoise(nn.Module):
    """A noise of its own for every picture of a batch."""

    noise: Tensor

    def __init__(self, noise: Float[Tensor, "b c h w"]) -> None:
        super().__init__()
        self.register_buffer("noise", noise)

    def allocate(self, latent_shape: tuple[int, int, int]) -> None:
        """It has its shape."""

    def forward(self, cameras: Cameras, opacity: Tensor | None = None, depth: Tensor | None = None) -> Tensor:
        """Whatever the cameras."""
        return self.noise


def draw(
    prior: Any,
    prompts: Sequence[str],
    cameras: Cameras,
    generator: torch.Generator,
    steps: int,
    guidance_scale: float,
    batch: int = 16,
) -> Float[Tensor, "b 3 h w"]:
    """DDIM's pictures in [0, 1], all views of the first prompt, then of the second; `batch` prompts at a time."""
    pictures = []
    for first in tqdm(range(0, len(prompts), batch), disable=None, leave=False):
        some = prompts[first : first + batch]
        around = cameras[first * prior.views : (first + len(some)) * prior.views]
        noise = torch.randn((len(around), *prior.latent_shape), generator=generator)
        pictures.append(ddim(prior, conditions(prior, some, around), noise, steps, guidance_scale))
    return torch.cat(pictures)


def conditions(prior: Any, prompts: Sequence[str], cameras: Cameras) -> Any:
    """As `fsd.sampling.several`, with cameras of its own for each prompt."""
    parts = [
        prior.condition(prior.encode_text(prompt), cameras[n * prior.views : (n + 1) * prior.views])
        for n, prompt in enumerate(prompts)
    ]
    joined = {
        name: {
            key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)
        }
        for name in ("positive", "negative", "extra")
    }
    return parts[0]._replace(**joined)


@torch.no_grad()
def named(images: Float[Tensor, "b 3 h w"]) -> list[Named]:
    """What the judge calls them: colour, kind, side."""
    return names(load_judge()(images))


def _around(objects: int, views: int, generator: torch.Generator) -> Cameras:
    """Cameras as in the prior's training, not from above."""
    return orbit(objects * views, generator, views=views, distance=(2.5, 2.7))


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None
