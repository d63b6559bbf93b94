"""On a network, the clean flow in steps of delta lambda is the sampler of diffusers, number for number.

    x <- x + (lambda' - lambda) (noise(alpha x + sigma e, t) - e),        x_t = alpha x + sigma e

is DDIM without fresh noise (FSD, arXiv 2405.10988, proposition 1), and Euler's method for flow matching.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fsd.cameras import turntable
from fsd.priors.diffusers import DiffusersPrior
from tiny_pipelines import tiny_sd3, tiny_stable_diffusion
from torch import Tensor

SCALE = 4.0


def clean_flow(prior: DiffusersPrior, x_t: Tensor, times: list[float], condition: Any) -> list[Tensor]:
    """x_t at each of `times`, from the plain formula."""
    alpha, sigma = prior.alpha_sigma(times[0])
    e = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(7), dtype=x_t.dtype)
    x = (x_t - sigma * e) / alpha
    path = [x_t]
    for now, after in pairwise(times):
        alpha, sigma = prior.alpha_sigma(now)
        noise = prior.predict_noise(alpha * x + sigma * e, now, condition, SCALE)
        next_alpha, next_sigma = prior.alpha_sigma(after)
        x = x + (next_sigma / next_alpha - sigma / alpha) * (noise - e)
        path.append(next_alpha * x + next_sigma * e)
    return path


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_steps_of_delta_lambda_are_ddim(
    prediction: str, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    folder = tiny_stable_diffusion(tmp_path / "sd", prediction_type=prediction)
    prior = DiffusersPrior.from_pretrained(folder).to(dtype=dtype)
    scheduler = prior.pipeline.scheduler
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    scheduler.set_timesteps(25)
    times = [step / 1000 for step in scheduler.timesteps.tolist()]
    condition = prior.condition(prior.encode_text("a red mug", "blur"), turntable(1))
    start = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    path = clean_flow(prior, start, times, condition)
    x_t = start
    for step, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(path[step], x_t, rtol=tolerance, atol=tolerance)
        rows = torch.cat([condition.negative["text"], condition.positive["text"]]).to(dtype)
        with torch.no_grad():
            out = prior.net(torch.cat([x_t] * 2), int(t), encoder_hidden_states=rows).sample
        x_t = scheduler.step(guided(out), t, x_t, eta=0.0).prev_sample
    assert (x_t - start).abs().max() > 0.1


class Wide:
    """torch, with float64 where float32 is asked for."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_steps_of_delta_lambda_are_eulers_for_flow_matching(
    dtype: torch.dtype, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = DiffusersPrior.from_pretrained(tiny_sd3(tmp_path / "sd3")).to(dtype=dtype)
    scheduler = prior.pipeline.scheduler
    if dtype == torch.float64:
        # Its step casts what it is given to float32.
        monkeypatch.setattr(f"{type(scheduler).__module__}.torch", Wide())
    scheduler.set_timesteps(25)
    scheduler.sigmas = torch.cat([torch.linspace(0.98, 0.02, 25, dtype=torch.float64), torch.zeros(1)])
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1]
    times = scheduler.sigmas[:-1].tolist()
    condition = prior.condition(prior.encode_text("a red mug", "blur"), turntable(1))
    start = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    path = clean_flow(prior, start, times, condition)
    rows = {
        name: torch.cat([condition.negative[name], condition.positive[name]]).to(dtype)
        for name in ("text", "pooled")
    }
    x_t = start
    for step, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(path[step], x_t, rtol=tolerance, atol=tolerance)
        with torch.no_grad():
            out = prior.net(
                torch.cat([x_t] * 2),
                encoder_hidden_states=rows["text"],
                pooled_projections=rows["pooled"],
                timestep=t.to(dtype).expand(2),
            ).sample
        x_t = scheduler.step(guided(out), t, x_t).prev_sample
    assert (x_t - start).abs().max() > 0.1


def guided(out: Tensor) -> Tensor:
    """As diffusers' own pipelines combine the two halves."""
    negative, prompt = out.chunk(2)
    return negative + SCALE * (prompt - negative)
