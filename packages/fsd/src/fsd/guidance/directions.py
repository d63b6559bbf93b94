"""The direction of each method: the gradient on the latents x, up to the weight w(t).

With e(x, t; y) the prior's noise for a prompt, guided by scale s against the negative prompt, and "" for scale 0:

    noise residual   e(a x + s e, t; y) - e                SDS, FSD and CFD differ in e and t only
    interval         e(x_t, t; y) - e(x_s, s; "")          ISM, x_s and x_t on one path of inversion
    inversion        x - x0(x_t, t; y)                     SDI
    classifier       e(x_t, t; y) - e(x_t, t; "")          CSD
    noise free       d + s (e(x_t, t; y) - e(x_t, t; ""))  NFSD
"""

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fsd.guidance.frame import View
from fsd.processes import draw_views


def noise_residual(view: View) -> Float[Tensor, "b c h w"]:
    """e(x_t, t; y) - e (DreamFusion, equation 3; FSD: the right-hand side of the clean flow).  One call."""
    return predicted(view, view.noisy(), view.t, view.guidance_scale) - view.noise


def interval(
    view: View, interval_t: float = 0.05, inversion_t: float = 0.2, start: float = 0.02
) -> Float[Tensor, "b c h w"]:
    """e(x_t, t; y) - e(x_s, s; "") with s = t - interval_t (LucidDreamer, arXiv 2311.11284, equation 17).

    x_s comes from x by inversion without prompt in steps of `inversion_t`, and x_t from x_s by one more.
    """
    s = max(view.t - interval_t, start)
    x_s, _ = invert(view, s, max(1, math.ceil((s - start) / inversion_t)), guidance_scale=0.0, start=start)
    at_s = predicted(view, x_s, s, 0.0)
    x_t = ddim(view, x_s, at_s, s, view.t)
    return predicted(view, x_t, view.t, view.guidance_scale) - at_s


def inversion(
    view: View, steps: int = 10, inversion_scale: float = -7.5, eta: float = 0.3
) -> Float[Tensor, "b c h w"]:
    """x - x0(x_t, t; y), x_t from inversion with a negative scale (SDI, arXiv 2405.15891, section 4).

    `eta`: share of the noise, in standard deviations, that is drawn fresh at each inversion step.
    """
    x_t, _ = invert(view, view.t, steps, inversion_scale, eta=eta)
    alpha, sigma = view.prior.alpha_sigma(view.t)
    noise = predicted(view, x_t, view.t, view.guidance_scale)
    return view.x - (x_t - sigma * noise) / alpha


def classifier(view: View) -> Float[Tensor, "b c h w"]:
    """e(x_t, t; y) - e(x_t, t; ""): the guidance alone (CSD, arXiv 2310.19415, equation 6).  Two half calls."""
    x_t = view.noisy()
    return predicted(view, x_t, view.t, 1.0) - predicted(view, x_t, view.t, 0.0)


def noise_free(
    view: View, negative: Any = None, clean_below: float = 0.2, scale: float = 7.5
) -> Float[Tensor, "b c h w"]:
    """d + scale (e(y) - e("")), d = e("") below t = 0.2 and e("") - e(negative) above (NFSD, 2310.17590, section 4).

    `negative` is an encoded prompt that describes bad images; without one d is 0 above.
    """
    x_t = view.noisy()
    without = predicted(view, x_t, view.t, 0.0)
    guided = scale * (predicted(view, x_t, view.t, 1.0) - without)
    if view.t < clean_below:
        return without + guided
    if negative is None:
        return guided
    bad = view.prior.predict_noise(x_t, view.t, view.prior.condition(negative, view.cameras), 1.0)
    return without - bad + guided


def invert(
    view: View, t: float, steps: int, guidance_scale: float, eta: float = 0.0, start: float = 0.02
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """x at time t on the path that DDIM would have come down, in equal steps from `start`; and the last noise."""
    x, noise, now = view.x, view.noise, 0.0
    for step in range(steps):
        after = start + (t - start) * (step + 1) / steps
        # The image itself has no noise level: its noise is predicted at `start`, as if it were there.
        noise = predicted(view, x, max(now, start), guidance_scale)
        x = ddim(view, x, noise, now, after, eta)
        now = after
    return x, noise


def ddim(
    view: View,
    x: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    now: float,
    after: float,
    eta: float = 0.0,
) -> Float[Tensor, "b c h w"]:
    """One step of DDIM from time `now` to `after`, either way (arXiv 2010.02502, equation 12)."""
    alpha, sigma = view.prior.alpha_sigma(now) if now > 0 else (1.0, 0.0)
    clean = (x - sigma * noise) / alpha
    alpha, sigma = view.prior.alpha_sigma(after)
    if eta:
        fresh = draw_views(view.generator, *x.shape).to(x)
        noise = math.sqrt(1 - eta**2) * noise + eta * fresh
    return alpha * clean + sigma * noise


def predicted(
    view: View, x_t: Float[Tensor, "b c h w"], t: float, guidance_scale: float
) -> Float[Tensor, "b c h w"]:
    """The prior's noise for this view's prompt."""
    return view.prior.predict_noise(x_t, t, view.condition, guidance_scale)
