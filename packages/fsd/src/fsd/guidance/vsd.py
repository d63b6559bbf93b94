"""VSD: against a second network that learns what the renders look like (ProlificDreamer, arXiv 2305.16213).

    direction = e(x_t, t; y, scale) - e_lora(x_t, t; y, c)                              (equation 8)
    the LoRA minimises |e_lora(x_s, s; y, c) - e|^2 over fresh noise e and random s     (equation 9)

The second network is the prior's own with low-rank weights beside its attention, added by peft (the extra `vsd`) and
switched off whenever the prior is asked.  c is the camera: its matrix goes through a small network of its own to where
a UNet takes classes; a multi-view UNet takes it already.  Unlike the paper's, the text of e_lora has the view's words.
One particle, which is the scene.

    >>> guide = VariationalScoreDistillation(prior, guidance_scale=7.5)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import torch
from jaxtyping import Float
from shared_core.ops.gradients import average_gradients
from torch import Tensor, nn

from fsd.cameras import Cameras
from fsd.guidance.directions import predicted
from fsd.guidance.frame import Guidance, View
from fsd.noise import RandomNoise
from fsd.priors.base import Prior
from fsd.processes import draw_views, refuse_unlike, sharing
from fsd.schedule import Schedule, random

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def VariationalScoreDistillation(
    prior: Prior,
    noise: nn.Module | None = None,
    schedule: Schedule = random,
    seed: int = 0,
    rank: int = 4,
    learning_rate: float = 1e-4,
    **settings: Any,
) -> Guidance:
    """VSD: two passes of the network more than SDS, one of them with a backward pass.

    `rank` and `learning_rate` are the LoRA's.  Its weights and its optimiser are in the guidance's `state_dict()`.
    Raises ImportError without peft, ValueError for a prior that is no UNet of diffusers, or one in float16.
    """
    settings = {"weighting": "sigma2", **settings}
    direction = LoraDirection(prior, rank, learning_rate, seed)
    return Guidance(prior, direction, noise or RandomNoise(seed), schedule, seed=seed, **settings)


class LoraDirection(nn.Module):
    """The direction of VSD, with the LoRA that it trains.  A prior's network holds one: a later one replaces it."""

    def __init__(self, prior: Prior, rank: int = 4, learning_rate: float = 1e-4, seed: int = 0) -> None:
        super().__init__()
        single: Any = getattr(prior, "single", prior)
        if getattr(getattr(single, "family", None), "net", None) != "unet":
            raise ValueError(
                f"VSD trains a LoRA inside a UNet of diffusers, and {type(prior).__name__} has none here; give a "
                "Stable Diffusion 1.x or 2.x, SDXL or DeepFloyd-IF, or choose another guidance"
            )
        _refuse_half(single.net)
        # In a list, so that the prior's weights are no part of this module's state.
        self._single = [single]
        net = single.net
        self.adapter = f"vsd-{uuid4().hex}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_lora(net, self.adapter, rank)
            # A multi-view UNet has its own.
            self.camera = None if net.class_embedding is not None else CameraEmbedding(net)
        self._lora = {name: p for name, p in net.named_parameters() if self.adapter in name}
        self._lora = {name: p for name, p in net.named_parameters() if self.adapter in name}
        # A network that is compiled has the same names as one that is not.
        self.names = [name.replace(self.adapter, "vsd").removeprefix("_orig_mod.") for name in self._lora]
        self.optimizer = torch.optim.AdamW(self._learned(), lr=learning_rate, betas=(0.9, 0.99))
        self._compared = False

    def forward(self, view: View) -> Float[Tensor, "b c h w"]:
        """e(x_t, t; y) - e_lora(x_t, t; y, c), and one step of the LoRA on the same images."""
        x_t = view.noisy()
        direction = predicted(view, x_t, view.t, view.guidance_scale)
        with self.switched_on(view.cameras) as own:
            direction = direction - self.noise_of(x_t, view.t, view.condition, own)
        self.learn(view)
        return direction

    @contextmanager
    def switched_on(self, cameras: Cameras) -> Iterator[dict[str, Tensor]]:
        """The network with the LoRA, and the inputs it then takes beside those of the condition.

        A backward pass belongs inside: switched off, peft's weights take no gradient.
        """
        net = self._single[0].net
        if self.adapter not in net.peft_config:
            raise RuntimeError(
                "another VSD guidance was made with this prior since; make a new one, or load the prior twice"
            )
        net.enable_adapters()
        if self.camera is not None:
            net.class_embedding = self.camera
        try:
            yield {} if self.camera is None else {"class_labels": cameras.c2w.flatten(1)}
        finally:
            net.disable_adapters()
            if self.camera is not None:
                net.class_embedding = None

    def noise_of(
        self, x_t: Float[Tensor, "b c h w"], t: float, condition: Any, own: dict[str, Tensor]
    ) -> Float[Tensor, "b c h w"]:
        """What the network takes for the noise; call it while switched on."""
        return self._single[0].noise_of(x_t, t, condition.positive, 1.0, {**condition.extra, **own})

    def learn(self, view: View, drop_camera: float = 0.1) -> Float[Tensor, ""]:
        """One step on |e_lora(x_s, s; y, c) - e|^2; the camera is left out in a tenth of the steps.

        Processes that share the views of a step take the mean of their gradients.  Raises ValueError in all of them, at
        their first step, where their seeds or numbers of views differ, and for a network that was moved to float16.
        """
        _refuse_half(self._single[0].net)
        if sharing() > 1 and not self._compared:
            refuse_unlike(len(view.x), view.generator)
            self._compared = True
        draw = torch.rand(2, generator=view.generator)
        s = 0.02 + 0.96 * draw[0].item()
        noise = draw_views(view.generator, *view.x.shape).to(view.x)
        alpha, sigma = view.prior.alpha_sigma(s)
        cameras = view.cameras
        if draw[1] < drop_camera:
            cameras = Cameras(torch.zeros_like(cameras.c2w), cameras.fov_deg)
        with torch.enable_grad(), self.switched_on(cameras) as own:
            error = self.noise_of(alpha * view.x + sigma * noise, s, view.condition, own) - noise
            loss = error.square().mean()
            self.optimizer.zero_grad()
            loss.backward()
        if sharing() > 1:
            average_gradients(self._learned())
        self.optimizer.step()
        return loss.detach()

    def judged(self) -> dict[str, Float[Tensor, ""]]:
        """The largest gradient of the LoRA's last step; its weights are finite only where that is."""
        gradients = [p.grad for p in self._learned() if p.grad is not None]
        return {"VSD's network": torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))}

    def _learned(self) -> list[nn.Parameter]:
        """The LoRA, and the network for the camera."""
        return [*self._lora.values(), *self.parameters()]

    def get_extra_state(self) -> dict[str, Any]:
        """The LoRA's weights, and the optimiser."""
        lora = dict(zip(self.names, (p.detach() for p in self._lora.values()), strict=True))
        return {"lora": lora, "optimizer": self.optimizer.state_dict()}

    def set_extra_state(self, state: Any) -> None:
        """Puts them back.  Raises ValueError for weights of another network or rank."""
        wanted = {name: p.shape for name, p in zip(self.names, self._lora.values(), strict=True)}
        given = {name: p.shape for name, p in state["lora"].items()}
        if wanted != given:
            raise ValueError(
                "the LoRA in this state belongs to another network or rank; resume with the same prior"
            )
        with torch.no_grad():
            for name, p in zip(self.names, self._lora.values(), strict=True):
                p.copy_(state["lora"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def _refuse_half(net: Any) -> None:
    """Raises ValueError for float16: gradients through it underflow to zero unless the loss is scaled."""
    if net.dtype == torch.float16:
        raise ValueError(
            "VSD trains a LoRA through the network, and gradients underflow in float16; use precision bf16 or fp32, or "
            "prior.to(dtype=torch.bfloat16)"
        )


class CameraEmbedding(nn.Module):
    """From 16 numbers of a camera to what a UNet adds to its embedding of time; zero before training."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        width, like = net.time_embedding.linear_2.out_features, next(net.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.inner = nn.Linear(16, width, device=like.device, dtype=dtype)
        self.outer = nn.Linear(width, width, device=like.device, dtype=dtype)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, numbers: Float[Tensor, "b 16"]) -> Float[Tensor, "b width"]:
        """The UNet casts it to its own type."""
        return self.outer(nn.functional.silu(self.inner(numbers.to(self.inner.weight.dtype))))


def add_lora(net: Any, adapter: str, rank: int) -> None:
    """Adds a LoRA of float32 or wider to the attention, switched off, in place of an earlier one.

    Raises ImportError without peft, ValueError for a rank below 1.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("VSD needs peft; install fsd[vsd]") from error
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")
    earlier = [name for name in getattr(net, "peft_config", {}) if name.startswith("vsd-")]
    if earlier:
        net.delete_adapters(earlier)
    net.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION), adapter_name=adapter)
    for name, parameter in net.named_parameters():
        if adapter in name:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
            parameter.requires_grad_(True)
    net.disable_adapters()
