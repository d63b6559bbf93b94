"""Plain diffusers beside fsd on the same weights: its pictures of a prompt, and FSD's and SDS's objects of it.

    python -m benchmarks.fsd.plain_diffusers --out FILE [--quick]

The camera-free prior that comes with fsd is an ordinary pipeline folder.  diffusers' own StableDiffusionPipeline and
DDIMScheduler draw pictures from it, without a line of fsd; `fsd.sampling.ddim` draws them from the same noise through
the adapter that 3D uses: the same pictures, and what the adapter costs.  Then, for each prompt of fsd/diversity.py with
finished cells of FSD (beta 1) and of SDS on this prior, diffusers draws as many pictures as FSD's passes of the prior
pay for, and one judge names all: what it costs in accuracy and in variety to turn pictures into objects.  diffusers is
fsd's own dependency, at the version in uv.lock, so no environment of its own is made.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from fsd.attributes import prompt_accuracy
from fsd.cameras import turntable
from fsd.prior_quality import named
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.embedded import WEIGHTS
from fsd.sampling import ddim
from torch import Tensor

from benchmarks.core.figures import difference, interleaved, options, ratio, write
from benchmarks.core.step_time import clock_name, seconds
from benchmarks.fsd.cells import records, weights_hash
from benchmarks.fsd.plan import METHODS, work

PRIOR, SCALE, STEPS, BATCH = "camera-free", 4.0, 20, 16
COMPARED = ("sds", "fsd-beta1")
AGREE = 100.0


def main() -> None:
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    pipe = plain_pipeline(WEIGHTS / PRIOR)
    prior = DiffusersPrior(pipe, view_words=False)
    steps, count = (3, 2) if given.quick else (STEPS, 64)
    noise = torch.randn(count, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    prompt = "a mushroom"
    theirs, ours = plain(pipe, prompt, noise, steps), through_fsd(prior, prompt, noise, steps)
    agree = [100 * (one[:2] == other[:2]) for one, other in zip(named(theirs), named(ours), strict=True)]
    figures = [
        difference("same pictures", f"{count} of {prompt!r} named alike", "%",
                   {"found": [sum(agree) / count], "zero": [0.0]}, "found", "zero", goal=AGREE, at_least=True,
                   quick=given.quick)
    ]  # fmt: skip
    some = noise[: min(count, BATCH)]
    values = interleaved(
        {
            "fsd": lambda: seconds(lambda: discard(through_fsd(prior, prompt, some, steps)), "cpu"),
            "diffusers": lambda: seconds(lambda: discard(plain(pipe, prompt, some, steps)), "cpu"),
        },
        1 if given.quick else 8,
    )
    figures.append(
        ratio("fsd's adapter over plain diffusers", f"DDIM, {steps} steps", f"s per {len(some)} pictures, "
              f"{clock_name('cpu')}", values, "fsd", "diffusers", quick=given.quick)
    )  # fmt: skip
    found = [beside(pipe, cells, steps, given.quick) for cells in finished()[: 1 if given.quick else None]]
    write(given.out, given.quick, figures, largest_difference=float((theirs - ours).abs().max()),
          steps=steps, guidance_scale=SCALE, weights=weights_hash(PRIOR), prompts=found)  # fmt: skip


def plain_pipeline(folder: Path) -> StableDiffusionPipeline:
    """As diffusers opens it; its times are spread as in `fsd.sampling`: from the last level in equal steps."""
    parts: Any = {"vae": None, "feature_extractor": None, "safety_checker": None}
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **parts)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain(pipe: StableDiffusionPipeline, prompt: str, noise: Tensor, steps: int) -> Tensor:
    """diffusers' pictures in [0, 1], from each noise its own."""
    drawn: list[Any] = [
        pipe([prompt] * len(part), latents=part, num_inference_steps=steps, guidance_scale=SCALE, output_type="latent")
        for part in noise.split(BATCH)
    ]  # fmt: skip
    return (torch.cat([one.images for one in drawn]) / 2 + 0.5).clamp(0, 1)


def through_fsd(prior: DiffusersPrior, prompt: str, noise: Tensor, steps: int) -> Tensor:
    """The same through fsd's adapter."""
    encoded = prior.encode_text(prompt)
    return torch.cat([
        ddim(prior, prior.condition(encoded, turntable(len(part))), part, steps, SCALE) for part in noise.split(BATCH)
    ])  # fmt: skip


def discard(_pictures: Tensor) -> None:
    """What is timed gives nothing back."""


def finished() -> list[dict[str, dict[str, Any]]]:
    """By prompt, the cells of SDS and FSD on these weights."""
    by_prompt: dict[str, dict[str, dict[str, Any]]] = {}
    assert METHODS.keys() >= set(COMPARED)
    for cell in records():
        of_prior = (cell["stage"], cell["prior"], cell["weights"]) == ("main", PRIOR, weights_hash(PRIOR))
        if of_prior and cell["method"] in COMPARED:
            by_prompt.setdefault(cell["prompt"], {})[cell["method"]] = cell
    return [cells for cells in by_prompt.values() if len(cells) == 2]


def beside(
    pipe: StableDiffusionPipeline, cells: dict[str, dict[str, Any]], steps: int, quick: bool
) -> dict[str, Any]:
    """diffusers' pictures for the passes of one FSD cell, and what the judge says of them and of the objects."""
    flow = cells["fsd-beta1"]
    passes = work(flow) * flow["settings"]["batch_size"] * len(flow["seeds"])
    count = 2 if quick else round(passes / steps)
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    names = [" ".join(name[:2]) for name in named(plain(pipe, flow["prompt"], noise, steps))]
    found = {
        "prompt": flow["prompt"],
        "passes": passes,
        "pictures": count,
        "diffusers": said(names, prompt_accuracy(flow["prompt"], names)),
        **{method: said(cell["labels"], cell["prompt_accuracy"]) for method, cell in cells.items()},
    }
    print(found, flush=True)
    return found


def said(names: Sequence[str], accuracy: float | None) -> dict[str, float | None]:
    """What the judge's names come to; `differ`: share of the pairs of pictures, or of seeds, that have other names."""
    pairs = list(combinations(names, 2))
    return {"prompt_accuracy": accuracy, "differ": sum(one != other for one, other in pairs) / len(pairs)}


if __name__ == "__main__":
    main()
