"""What a step of fsd costs: FSD against SDS, and the whole step against the work that no method can leave out.

    python -m benchmarks.fsd.step --out FILE [--quick]

Scene, cameras, batch and prior are those of `fsd generate` with its preset `bank`: 4 views of 32 x 32 of a dense grid,
32 samples a ray, one CPU thread.  A step is the body of the loop in `fsd.generate`, from drawing the cameras to Adam
and a line of metrics every tenth step.  The irreducible part is the prior's forward calls on a batch of that size, with
the prompt's condition at hand, and one dense render with its backward pass from a given gradient.

Priors: the joint render bank, asked for "a red object" (guided, so both sides of its posterior), and a diffusers UNet
of a million weights, random ones, on 32 x 32 pixels (guided: prompt and negative prompt in one pass).

A round takes four steps of everything in turns.  Prior calls are counted: FSD must make as many as SDS.  "intervals"
in the JSON are 95 % bootstrap intervals of the medians.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from fsd.build import build_guidance, build_scene, optimizer_for
from fsd.cameras import orbit
from fsd.config import GenerateConfig, bank
from fsd.guidance import METHODS, Guidance
from fsd.priors.bank import RenderBank
from fsd.priors.base import Prior
from fsd.step import gradient_norm, take_step
from shared_core.run.guard import FiniteGuard
from shared_core.run.metrics import MetricsLog

from benchmarks.core.figures import interleaved, options, ratio, write
from benchmarks.core.step_time import clock_name, seconds

STEPS, GOAL_METHOD, GOAL_WHOLE = 4, 1.02, 1.15
T = 0.5


def main() -> None:
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    # A rate so small that the scene stays what it is: every variant and every round meets the same one.
    config = bank()
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"learning_rate": 1e-9})})
    if given.quick:
        config = config.model_copy(update={"size": 16})
    rounds = 2 if given.quick else 60
    figures, intervals, calls, more = [], {}, {}, {}
    for name, make in {"bank": bank_prior, "unet": unet_prior}.items():
        prior, encoded, weights = make(given.quick)
        with (
            tempfile.TemporaryDirectory() as folder,
            MetricsLog(Path(folder) / "metrics.jsonl") as log,
        ):
            variants = {method: whole_step(config, prior, encoded, method, log) for method in ("fsd", "sds")}
            variants["irreducible"] = irreducible(config, prior, encoded, 1 + STEPS * (1 + rounds))
            calls[name] = {variant: counted(prior, step) for variant, step in variants.items()}
            if len(set(calls[name].values())) != 1:
                raise SystemExit(f"prior calls of a step differ: {calls[name]}")
            values = interleaved(
                {variant: partial(several, step) for variant, step in variants.items()}, rounds
            )
        more[f"{name} weights"] = weights
        unit = f"s per {STEPS} steps, {clock_name('cpu')}"
        judged = {"quick": given.quick}
        figures += [
            ratio(f"{name}: FSD over SDS", f"the whole step, {config.batch_size} views", unit, values,
                  "fsd", "sds", goal=GOAL_METHOD, **judged),
            ratio(f"{name}: step over irreducible", "FSD's whole step over prior calls, render and backward", unit,
                  values, "fsd", "irreducible", goal=GOAL_WHOLE, **judged),
        ]  # fmt: skip
        for figure, base in zip(figures[-2:], ("sds", "irreducible"), strict=True):
            intervals[figure["name"]] = bootstrap(values["fsd"], values[base])
    write(given.out, given.quick, figures, intervals=intervals, prior_calls_per_step=calls, **more)


def whole_step(
    config: GenerateConfig, prior: Prior, encoded: Any, method: str, log: MetricsLog
) -> Callable[[], None]:
    """A function that takes the next step of an object each time it is called."""
    scene = build_scene(config, 0)
    guide = guidance(config, prior, method)
    optimizer = optimizer_for(config, scene)
    views, rays = (torch.Generator().manual_seed(0) for _ in range(2))
    guard, step = FiniteGuard(), 0

    def take() -> None:
        nonlocal step
        taken = take_step(config, step % config.steps, scene, guide, optimizer, encoded, views, rays, guard)
        assert taken is not None  # the guard raises
        step += 1
        if step % config.log_every == 0:
            log.log(
                step, t=taken.guided.t, loss=taken.loss.item(), grad_norm=gradient_norm(scene),
                opacity=taken.view.opacity.mean().item(),
            )  # fmt: skip

    return take


def guidance(config: GenerateConfig, prior: Prior, method: str) -> Guidance:
    """SDS as its paper has it (random t, fresh noise), with the weight that FSD has."""
    if method == "sds":
        return METHODS["sds"](prior, guidance_scale=config.guidance_scale)
    return build_guidance(config, prior, method, 0)


def irreducible(config: GenerateConfig, prior: Prior, encoded: Any, count: int) -> Callable[[], None]:
    """A function that asks the prior once, renders once and goes back from a gradient that is there already.

    It can be called `count` times, with the cameras that the whole step draws: the bank's work depends on them.
    """
    scene = build_scene(config, 0)
    views, rays = (torch.Generator().manual_seed(0) for _ in range(2))
    drawn = [orbit(config.batch_size, views, prior.views) for _ in range(count)]
    gradient = torch.randn(config.batch_size, 3, config.size, config.size, generator=rays)
    with torch.no_grad():
        x = prior.encode_image(scene.render(drawn[0], config.size).image)
        asked = iter([(cameras, prior.condition(encoded, cameras)) for cameras in drawn])
    alpha, sigma = prior.alpha_sigma(T)
    x_t = alpha * x + sigma * torch.randn(x.shape, generator=rays)

    def take() -> None:
        cameras, condition = next(asked)
        scene.zero_grad()
        view = scene.render(cameras, config.size, rays)
        prior.predict_noise(x_t, T, condition, config.guidance_scale)
        view.image.backward(gradient)

    return take


def bank_prior(quick: bool) -> tuple[Prior, Any, int]:
    """The joint render bank, its prompt, and no weights."""
    prior = RenderBank(joint=True, size=16, azimuths=12) if quick else RenderBank(joint=True)
    return prior, prior.encode_text("a red object"), 0


def unet_prior(quick: bool) -> tuple[Prior, Any, int]:
    """A pixel-space pipeline around a new UNet, what an encoder would have made of a prompt, and its weights."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from fsd.priors.diffusers import DiffusersPrior
    from fsd.priors.prompts import FIRST_VIEW, EncodedPrompt
    from fsd.priors.view_words import VIEWS

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16 if quick else 32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32) if quick else (24, 40, 56),
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (1 if quick else 2)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (1 if quick else 2), "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    parts: Any = dict.fromkeys(
        ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
    )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    prior = DiffusersPrior(IFPipeline(unet=unet, scheduler=scheduler, requires_safety_checker=False, **parts))
    text = torch.randn(FIRST_VIEW + len(VIEWS), 16, 32, generator=torch.Generator().manual_seed(0))
    return prior, EncodedPrompt({"text": text}, False), sum(p.numel() for p in unet.parameters())


def counted(prior: Prior, step: Callable[[], None]) -> int:
    """How many calls a step makes."""
    before = prior.calls
    step()
    return prior.calls - before


def several(step: Callable[[], None]) -> float:
    """Seconds of a few steps: one alone is too short for the clock."""
    return sum(seconds(step, "cpu") for _ in range(STEPS))


def bootstrap(new: list[float], old: list[float], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the median of the rounds' ratios: rounds are drawn again with replacement."""
    ratios = [a / b for a, b in zip(new, old, strict=True)]
    random = Random(0)
    medians = sorted(median(random.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[round(0.025 * draws)], medians[round(0.975 * draws) - 1]


if __name__ == "__main__":
    main()
