"""The levels of a noise schedule at a time, and noise from whatever a network predicts.

With x_t = alpha x + sigma noise (Section 2 of Salimans and Ho, 2022, for the v-prediction):

    epsilon       noise = out
    v_prediction  noise = alpha out + sigma x_t
    sample        noise = (x_t - alpha out) / sigma
    flow          noise = x_t + (1 - s) out        alpha = 1 - s, sigma = s, out = noise - x
"""

import math
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


class Process(NamedTuple):
    """How images are noised: cumulative products of a discrete schedule in float64 (None for flows), and what the
    network predicts, one of PREDICTIONS."""

    alphas_cumprod: Float[Tensor, " n"] | None
    prediction: str


def process_of(scheduler: Any) -> Process:
    """Reads a diffusers scheduler.  Raises ValueError for one with neither such a table nor a flow's line, and for
    a prediction type that is not known."""
    name = type(scheduler).__name__
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or prediction == "flow_prediction":
        return Process(None, "flow")
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise ValueError(
            f"{name} has no alphas_cumprod and is no FlowMatch scheduler, so its noise levels are unknown; give the "
            "pipeline the scheduler that the model was trained with (DDIMScheduler.from_config and the like)"
        )
    if prediction not in PREDICTIONS[:3]:
        raise ValueError(
            f"{name} has prediction_type={prediction!r}; it must be one of {', '.join(PREDICTIONS[:3])}, or the "
            "scheduler a FlowMatch one"
        )
    return Process(table.double().cpu(), prediction)


def step_of(process: Process, t: float) -> int | float:
    """The network's timestep at time t: an index into the table, or 1000 t for a flow."""
    if not 0 < t <= 1:
        raise ValueError(f"t is {t}; time runs from 1 (noise) down to, and without, 0")
    if process.alphas_cumprod is None:
        return 1000.0 * t
    count = len(process.alphas_cumprod)
    return min(round(count * t), count - 1)


def levels(process: Process, t: float) -> tuple[float, float]:
    """alpha and sigma at time t, in double precision.  Raises ValueError where alpha is zero."""
    step = step_of(process, t)
    if process.alphas_cumprod is None:
        alpha, sigma = 1.0 - t, t
    else:
        kept = process.alphas_cumprod[int(step)].item()
        alpha, sigma = math.sqrt(kept), math.sqrt(1.0 - kept)
    # Euler's scheduler writes 2^-24 where the product is zero.
    if not alpha > 2.0**-12:
        raise ValueError(
            f"at t = {t:g} nothing of the image is left (alpha is 0: a schedule with zero terminal SNR, or the end of "
            "a flow); start below it, for instance with t_max = 0.98"
        )
    return alpha, sigma


def to_noise(
    process: Process, out: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: float
) -> Float[Tensor, "b c h w"]:
    """The noise that a network's output means.  Raises ValueError where t cannot be converted (sigma or alpha 0)."""
    if process.prediction == "epsilon":
        return out
    alpha, sigma = levels(process, t)
    if process.prediction == "v_prediction":
        return alpha * out + sigma * x_t
    if process.prediction == "flow":
        return x_t + alpha * out
    return (x_t - alpha * out) / sigma
