"""A text-to-image pipeline of diffusers as the prior.

Families: Stable Diffusion 1.x and 2.x, SDXL, PixArt, DeepFloyd-IF stage I (pixels), Stable Diffusion 3 and Flux
(flow matching).  Whatever the network predicts is converted to noise (see `prediction`), in float32 or wider.

    >>> prior = DiffusersPrior.from_pretrained("path-or-hub-id", device="cuda", precision="fp16")
    >>> prompt = prior.encode_text("a red mushroom", negative_prompt="blurry")
    >>> prior.free_text_encoder()
    >>> condition = prior.condition(prompt, cameras)
    >>> noise = prior.predict_noise(x_t, 0.5, condition, guidance_scale=7.5)
"""

import gc
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from fsd.cameras import Cameras
from fsd.inputs import check_cameras, check_tensor
from fsd.priors.base import wide
from fsd.priors.families import Rows, family_of
from fsd.priors.loading import load_pipeline, offloaded, refuse_unfit
from fsd.priors.own_copy import own_copy
from fsd.priors.perp_neg import combine, mix_views
from fsd.priors.prediction import levels, process_of, step_of, to_noise
from fsd.priors.prompts import FIRST_VIEW, NEGATIVE, PLAIN, EncodedPrompt, blend, choose, encode, move, stack
from fsd.priors.view_words import in_all_views, view_index
from fsd.processes import draw_views


class Condition(NamedTuple):
    """What the network is told of each view: text, negative text, two texts to stay away from (Perp-Neg), and
    further inputs of the network, a row per view."""

    positive: Rows
    negative: Rows
    against: list[Rows]
    weight: Float[Tensor, "2 b"] | None
    extra: dict[str, Tensor]
    negated: bool


class DiffusersPrior:
    """See `priors.base.Prior` for the members that guidance uses.

    The pipeline stays as it is: `prior.pipeline` is a copy that shares its weights, frozen and in eval mode.

    view_words: append "front view" and the like to the prompt, by the camera; a function says the prompt in each of
        VIEWS its own way.
    perp_neg: steer away from the views that the camera does not see; twice the network's work.
    image_size: side in pixels of what it judges; the model's own if None.  Views of any size are resized to it.
    posterior: "mode" takes the mean of the VAE's posterior, so a run is a function of its state; "sample" draws from
        it, as the code released with Consistent Flow Distillation does, from `generator`.  A VAE that gives latents
        and no posterior (AutoencoderTiny) has the "mode" alone.
    slicing: the VAE takes one image after another, and attention one slice.
    Raises ValueError for a pipeline or a scheduler that cannot be used, saying why.
    """

    views = 1

    def __init__(
        self,
        pipeline: Any,
        view_words: bool | Callable[[str], Sequence[str]] = True,
        perp_neg: bool = False,
        image_size: int | None = None,
        posterior: str = "mode",
        seed: int = 0,
        slicing: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        self.family = family_of(pipeline)
        if posterior not in ("mode", "sample"):
            raise ValueError(f"posterior is {posterior!r}; choose 'mode' or 'sample'")
        if perp_neg and (self.family.distilled or not view_words):
            why = (
                f"{self.family.name} is guidance-distilled"
                if self.family.distilled
                else "view_words is False"
            )
            raise ValueError(f"Perp-Neg needs negative prompts of views, and {why}; leave perp_neg out")
        refuse_unfit(pipeline, self.family)
        vae = getattr(pipeline, "vae", None)
        if posterior == "sample" and type(vae).__name__ == "AutoencoderTiny":
            raise ValueError(
                "posterior is 'sample', and an AutoencoderTiny has no posterior to draw from; use 'mode'"
            )
        self.process = process_of(pipeline.scheduler)
        self.pipeline = pipeline = own_copy(pipeline)
        self.view_words, self.perp_neg, self.posterior = view_words, perp_neg, posterior
        self.device = torch.device(device) if device is not None else pipeline.device
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = 0
        self._encoded: dict[tuple[str, str], EncodedPrompt] = {}
        if slicing:
            pipeline.enable_attention_slicing()
            if self.vae is not None:
                self.vae.enable_slicing()
        factor = 1 if self.vae is None else pipeline.vae_scale_factor
        self.image_size = image_size if image_size is not None else _own_size(pipeline, self.net) * factor
        # Flux sees 2x2 patches of its latents.
        multiple = 2 * factor if self.family.distilled else factor
        if self.image_size < 1 or self.image_size % multiple:
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of {multiple} pixels")
        channels = self.net.config.in_channels if self.vae is None else self.vae.config.latent_channels
        self.latent_shape = (channels, self.image_size // factor, self.image_size // factor)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        offload: bool = False,
        **settings: Any,
    ) -> "DiffusersPrior":
        """A pipeline from a local folder or a hub id; `settings` as for the class.

        precision: "fp32", "fp16" (not on a CPU) or "bf16".  With fp16 the VAE stays in float32.
        offload: keep the network in the computer's memory and bring its layers to the device one by one.
        Raises ValueError for a folder that is no pipeline, and OSError for a model that cannot be found.
        """
        pipeline = load_pipeline(path, device, precision, offload)
        kind = getattr(getattr(pipeline, "unet", None), "config", {}).get("class_embed_type")
        if kind is not None:
            raise ValueError(
                f"the network takes a class or a camera with each image (class_embed_type={kind!r}); open one that "
                "takes cameras with MultiViewPrior or open_prior"
            )
        return offloaded(cls(pipeline, device=device, **settings), device, offload)

    @property
    def net(self) -> Any:
        """The denoising network."""
        return getattr(self.pipeline, self.family.net)

    @property
    def vae(self) -> Any:
        """The image encoder; None for a model of pixels."""
        return getattr(self.pipeline, "vae", None)

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "DiffusersPrior":
        """Moves all networks of this prior, and the prompts encoded so far; the pipeline it was made of stays."""
        self.device = torch.device(device) if device is not None else self.device
        for module in self.pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.to(self.device, dtype)
        for prompt in self._encoded.values():
            move(prompt, self.device)
        return self

    def free_text_encoder(self) -> None:
        """Drops this prior's text encoders, often the largest part; prompts encoded so far can still be asked for.

        Their memory is free once no one else holds the pipeline that the prior was made of.
        """
        for name in [
            name for name in self.pipeline.components if name.startswith(("text_encoder", "tokenizer"))
        ]:
            setattr(self.pipeline, name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def encode_text(self, prompt: str, negative_prompt: str = "") -> EncodedPrompt:
        """The prompt with every view's words, and the negative prompt; kept, so that asking again is free."""
        key = (prompt, negative_prompt)
        if key not in self._encoded:
            say = self.view_words if callable(self.view_words) else in_all_views
            in_views = say(prompt) if self.view_words else ()
            self._encoded[key] = encode(self.pipeline, self.family, prompt, negative_prompt, in_views)
        return self._encoded[key]

    def condition(self, prompt: EncodedPrompt, cameras: Cameras) -> Condition:
        """The words of each camera's view."""
        check_cameras(cameras)
        count = len(cameras)
        negative = choose(prompt.rows, torch.full((count,), NEGATIVE))
        if not self.perp_neg:
            index = view_index(cameras) + FIRST_VIEW if self.view_words else torch.full((count,), PLAIN)
            return Condition(choose(prompt.rows, index), negative, [], None, {}, prompt.negated)
        mix = mix_views(cameras)
        views = {name: value[FIRST_VIEW:] for name, value in prompt.rows.items()}
        against = [blend(views, weight) for weight in mix.against]
        return Condition(blend(views, mix.prompt), negative, against, mix.weight, {}, prompt.negated)

    def encode_image(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hh ww"]:
        """From pixels in [0, 1] of any size, with gradient; latents in float32 or wider."""
        check_tensor("image", image, "b 3 h w", "images of three colours in [0, 1], channels before height")
        size = (self.image_size, self.image_size)
        if image.shape[-2:] != size:
            image = interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
        pixels = image.to(self.device) * 2 - 1
        if self.vae is None:
            return pixels.to(wide(pixels))
        config = self.vae.config
        encoded = self.vae.encode(pixels.to(self.vae.dtype))
        # Tiny autoencoders give the latents themselves.
        posterior = getattr(encoded, "latent_dist", None)
        latents = (encoded.latents if posterior is None else posterior.mean).to(wide(pixels))
        if self.posterior == "sample" and posterior is not None:
            drawn = draw_views(self.generator, *latents.shape).to(latents)
            latents = latents + posterior.std.to(latents) * drawn
        if getattr(config, "latents_mean", None) is not None:
            mean, std = (
                latents.new_tensor(v)[:, None, None] for v in (config.latents_mean, config.latents_std)
            )
            return (latents - mean) / std * config.scaling_factor
        return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """From the scheduler's table at index round(N t), at most N - 1; for a flow 1 - t and t."""
        return levels(self.process, t)

    def predict_noise(
        self, x_t: Float[Tensor, "b c h w"], t: float, condition: Condition, guidance_scale: float
    ) -> Float[Tensor, "b c h w"]:
        """The noise in x_t; one pass of the network over all the texts it needs.

        A guidance-distilled network is told the scale, and has no negative prompt.
        Raises ValueError for a scale it cannot have.  Whether the numbers are finite is for the caller to see, once a
        step, as a guidance does: looking at each pass would make the CPU wait for the device at each.
        """
        b = len(next(iter(condition.positive.values())))
        check_tensor("x_t", x_t, "b c h w", "one noisy latent per camera", b=b, c=self.latent_shape[0])
        parts = self._parts(condition, guidance_scale)
        with torch.no_grad():
            x = torch.cat([x_t] * len(parts))
            extra = {name: torch.cat([value] * len(parts)) for name, value in condition.extra.items()}
            noise = self.noise_of(x, t, stack(parts), guidance_scale, extra)
            if len(parts) == 1:
                return noise
            base, prompt, *against = noise.chunk(len(parts))
            if condition.weight is not None:
                return combine(base, prompt, torch.stack(against), condition.weight.to(base), guidance_scale)
            return base + guidance_scale * (prompt - base)

    def noise_of(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: float,
        rows: Rows,
        guidance_scale: float | None = None,
        extra: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One pass of the network, without guidance, with gradient where its parameters ask for it."""
        dtype = self.net.dtype
        rows = {
            name: value.to(self.device, dtype if value.is_floating_point() else None)
            for name, value in rows.items()
        }
        extra = {name: value.to(self.device, dtype) for name, value in (extra or {}).items()}
        x_t = x_t.to(self.device)
        step = step_of(self.process, t)
        out = self.family.forward(self.pipeline, x_t.to(dtype), step, rows, guidance_scale, extra)
        self.calls += 1
        return to_noise(self.process, out.to(wide(x_t)), x_t.to(wide(x_t)), t)

    def _parts(self, condition: Condition, guidance_scale: float) -> list[Rows]:
        """The texts that the network must see: negative, prompt, and those to stay away from."""
        if self.family.distilled:
            embedded = self.net.config.guidance_embeds
            if guidance_scale <= 0 or (not embedded and guidance_scale != 1):
                allowed = "a positive scale, which the network is told" if embedded else "1"
                raise ValueError(
                    f"guidance_scale is {guidance_scale}, but {self.family.name} is guidance-distilled: it cannot "
                    f"tell prompt and negative prompt apart; use {allowed}, or another family"
                )
            return [condition.positive]
        if guidance_scale == 0:
            return [condition.negative]
        if guidance_scale == 1 and condition.weight is None:
            return [condition.positive]
        return [condition.negative, condition.positive, *condition.against]


def _own_size(pipeline: Any, net: Any) -> int:
    size = getattr(net.config, "sample_size", None) or getattr(pipeline, "default_sample_size", None) or 64
    return size if isinstance(size, int) else size[0]
