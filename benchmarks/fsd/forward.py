"""The embedded prior's forward pass: plain eager against torch.compile, channels-last and bf16, and what each changes.

    python -m benchmarks.fsd.forward --out FILE [--quick]

The batch is that of a step with four views and guidance, 8 pictures of 32 x 32, on one CPU thread.  A variant is right
where its v stays within 1e-3 of eager's (root mean square, over the root mean square of v itself), at five levels of
noise; bf16 rounds its weights to 8 bits, and is listed with what that costs.  A round takes ten passes of each.

Beside it a training step of `fsd train-prior`'s network, 32 pictures forward and back, in bf16 over fp32.
"""

import copy
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fsd.cameras import turntable
from fsd.priors.embedded import EmbeddedPrior
from torch import Tensor

from benchmarks.core.figures import interleaved, options, ratio, write
from benchmarks.core.step_time import clock_name, seconds

PASSES, RIGHT = 10, 1e-3
LEVELS = (20, 250, 500, 750, 980)


def main() -> None:
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    # The compiler's processes would take the other core's time.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    prior = EmbeddedPrior()
    x, words, cameras = inputs(prior)
    passes, levels = (1, LEVELS[:1]) if given.quick else (PASSES, LEVELS)
    nets = variants(prior.net, compiled=not given.quick)

    with torch.no_grad():
        right = [run(nets["eager"], x, level, words, cameras) for level in levels]
        errors = {
            name: max(
                relative_error(run(net, x, level, words, cameras), wanted)
                for level, wanted in zip(levels, right, strict=True)
            )
            for name, net in nets.items()
        }
        values = interleaved(
            {name: partial(several, net, (x, words, cameras), passes) for name, net in nets.items()},
            2 if given.quick else 20,
        )
    figures = [
        ratio(f"{name} over eager", f"error {errors[name]:.1g}{'' if errors[name] <= RIGHT else ', not right'}",
              f"s per {passes} passes of 8 pictures, {clock_name('cpu')}", values, name, "eager", quick=given.quick)
        for name in nets if name != "eager"
    ]  # fmt: skip
    steps = {
        precision: partial(training_step, prior.net, precision == "bf16") for precision in ("fp32", "bf16")
    }
    values = interleaved(steps, 1 if given.quick else 6, warmup=0 if given.quick else 1)
    figures.append(
        ratio("training step, bf16 over fp32", "32 pictures, forward and back", f"s, {clock_name('cpu')}", values,
              "bf16", "fp32", quick=given.quick)
    )  # fmt: skip
    write(given.out, given.quick, figures, relative_error=errors, allowed_error=RIGHT)


def inputs(prior: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, words and cameras of four views, without and with the prompt."""
    condition = prior.condition(prior.encode_text("a red mushroom"), turntable(4))
    noise = torch.randn(4, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    (name,) = condition.positive
    words = torch.cat([condition.negative[name], condition.positive[name]])
    return torch.cat([noise] * 2), words, torch.cat([condition.extra["class_labels"]] * 2)


def variants(net: torch.nn.Module, compiled: bool) -> dict[str, Callable[..., Any]]:
    """The network in each form; compiling takes a minute, and is left out of a quick run."""
    # The embedded prior comes channels-last: brought back, or it would be compared with itself.
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    nets: dict[str, Callable[..., Any]] = {
        "eager": plain,
        "channels-last": last,
        "bf16": copy.deepcopy(plain).bfloat16(),
        "bf16, channels-last": copy.deepcopy(last).bfloat16(),
    }
    if compiled:
        nets["compiled"] = torch.compile(copy.deepcopy(plain))
        nets["compiled, channels-last"] = torch.compile(copy.deepcopy(last))
    return nets


def run(net: Any, x: Tensor, level: int, words: Tensor, cameras: Tensor) -> Tensor:
    """One pass, in float32 outside."""
    dtype = getattr(net, "_orig_mod", net).dtype
    out = net(x.to(dtype), level, words.to(dtype), class_labels=cameras.to(dtype), return_dict=False)[0]
    return out.float()


def several(net: Any, given: tuple[Tensor, Tensor, Tensor], passes: int) -> float:
    """Seconds of a few passes: one alone is short for the clock."""

    def once() -> None:
        run(net, given[0], 500, *given[1:])

    return sum(seconds(once, "cpu") for _ in range(passes))


def training_step(net: Any, half: bool) -> float:
    """Seconds of a pass over eight objects of four views and back, without the optimiser."""
    generator = torch.Generator().manual_seed(0)
    x, words, cameras = (
        torch.randn(32, *shape, generator=generator) for shape in ((3, 32, 32), (16, 64), (16,))
    )
    trained = copy.deepcopy(net).requires_grad_(True).train()

    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = trained(x, 500, words, class_labels=cameras, return_dict=False)[0]
        out.float().square().mean().backward()

    return seconds(once, "cpu")


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference over that of what is wanted."""
    return ((found - wanted).square().mean() / wanted.square().mean()).sqrt().item()


if __name__ == "__main__":
    main()
