"""What sets the families of diffusers pipelines apart: how text is encoded, and how the network is called.

A family is two functions.  `encode(pipeline, texts)` gives named tensors with one row per text; rows may be chosen,
repeated and mixed.  `forward(pipeline, x, timestep, rows, guidance, extra)` calls the network once and returns what
it predicts, with the channels of x.  Everything else (schedule, guidance, VAE) is the same for all.

    >>> family = family_of(pipeline)                                    # by the class of the pipeline
    >>> rows = family.encode(pipeline, ["a red mushroom", ""])
    >>> out = family.forward(pipeline, x, 500, rows, None, {})
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from fsd.priors.base import wide

Rows = dict[str, Tensor]
Encode = Callable[[Any, list[str]], Rows]
Forward = Callable[[Any, Tensor, int | float, Rows, float | None, dict[str, Tensor]], Tensor]


class Family(NamedTuple):
    """`readers` pairs each tokenizer with how many tokens are read of it (None: as many as the tokenizer says).

    `vae`: whether the network works on latents."""

    name: str
    net: str
    encode: Encode
    forward: Forward
    readers: tuple[tuple[str, int | None], ...]
    distilled: bool = False
    vae: bool = True


def family_of(pipeline: Any) -> Family:
    """The family of a pipeline.  Raises ValueError for a class that is none of FAMILIES."""
    name = type(pipeline).__name__
    if name not in FAMILIES:
        raise ValueError(
            f"{name} is no pipeline that can be distilled here; known are {', '.join(FAMILIES)}. A text-to-image "
            "variant of the same weights often loads as one of them."
        )
    return FAMILIES[name]


def encode_stable_diffusion(pipeline: Any, texts: list[str]) -> Rows:
    text, _ = pipeline.encode_prompt(texts, _home(pipeline, "text_encoder"), 1, False)
    return {"text": text}


def encode_sdxl(pipeline: Any, texts: list[str]) -> Rows:
    text, _, pooled, _ = pipeline.encode_prompt(
        texts, device=_home(pipeline, "text_encoder_2"), do_classifier_free_guidance=False
    )
    if pipeline.config.force_zeros_for_empty_prompt:
        # Trained so: "no text" is zeros, not the embedding of "".
        said = torch.tensor([bool(text) for text in texts], device=text.device)
        text, pooled = text * said[:, None, None], pooled * said[:, None]
    return {"text": text, "pooled": pooled}


def encode_pixart(pipeline: Any, texts: list[str]) -> Rows:
    text, mask, _, _ = pipeline.encode_prompt(
        texts, do_classifier_free_guidance=False, device=_home(pipeline, "text_encoder")
    )
    return {"text": text, "mask": mask}


def encode_deepfloyd(pipeline: Any, texts: list[str]) -> Rows:
    text, _ = pipeline.encode_prompt(
        texts, do_classifier_free_guidance=False, device=_home(pipeline, "text_encoder")
    )
    return {"text": text}


def encode_sd3(pipeline: Any, texts: list[str]) -> Rows:
    text, _, pooled, _ = pipeline.encode_prompt(
        texts, None, None, device=_home(pipeline, "text_encoder"), do_classifier_free_guidance=False
    )
    return {"text": text, "pooled": pooled}


def encode_flux(pipeline: Any, texts: list[str]) -> Rows:
    text, pooled, _ = pipeline.encode_prompt(texts, device=_home(pipeline, "text_encoder"))
    return {"text": text, "pooled": pooled}


def forward_unet(
    pipeline: Any,
    x: Tensor,
    timestep: int | float,
    rows: Rows,
    guidance: float | None,
    extra: dict[str, Tensor],
) -> Float[Tensor, "b c h w"]:
    """Stable Diffusion 1.x and 2.x, SDXL (`pooled` and the image's size), DeepFloyd-IF (learned variance dropped)."""
    added = None
    if "pooled" in rows:
        side = float(x.shape[-1] * pipeline.vae_scale_factor)
        sizes = torch.tensor([side, side, 0.0, 0.0, side, side], dtype=wide(x), device=x.device)
        added = {"text_embeds": rows["pooled"], "time_ids": sizes.expand(len(x), 6)}
    out = pipeline.unet(
        x,
        times(x, timestep),
        encoder_hidden_states=rows["text"],
        added_cond_kwargs=added,
        return_dict=False,
        **extra,
    )[0]
    return out[:, : x.shape[1]]


def forward_pixart(
    pipeline: Any,
    x: Tensor,
    timestep: int | float,
    rows: Rows,
    guidance: float | None,
    extra: dict[str, Tensor],
) -> Float[Tensor, "b c h w"]:
    """PixArt alpha and sigma; the second half of the channels is a learned variance."""
    added = {"resolution": None, "aspect_ratio": None}
    if pipeline.transformer.use_additional_conditions:
        side = float(x.shape[-1] * pipeline.vae_scale_factor)
        ones = x.new_ones(len(x), 1, dtype=wide(x))
        added = {"resolution": side * ones.expand(-1, 2), "aspect_ratio": ones}
    out = pipeline.transformer(
        x,
        encoder_hidden_states=rows["text"],
        encoder_attention_mask=rows["mask"],
        timestep=times(x, timestep),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return out[:, : x.shape[1]]


def forward_sd3(
    pipeline: Any,
    x: Tensor,
    timestep: int | float,
    rows: Rows,
    guidance: float | None,
    extra: dict[str, Tensor],
) -> Float[Tensor, "b c h w"]:
    return pipeline.transformer(
        hidden_states=x,
        timestep=times(x, timestep),
        encoder_hidden_states=rows["text"],
        pooled_projections=rows["pooled"],
        return_dict=False,
    )[0]


def forward_flux(
    pipeline: Any,
    x: Tensor,
    timestep: int | float,
    rows: Rows,
    guidance: float | None,
    extra: dict[str, Tensor],
) -> Float[Tensor, "b c h w"]:
    """Flux sees 2x2 patches as tokens, and takes time in [0, 1] and the guidance scale as inputs.

    It rounds both to its own type, as in training.
    """
    h, w = x.shape[-2:]
    net = pipeline.transformer
    grid = torch.cartesian_prod(torch.arange(h // 2), torch.arange(w // 2)).to(x.device, wide(x))
    places = torch.cat([torch.zeros_like(grid[:, :1]), grid], 1)
    out = net(
        hidden_states=pack(x),
        timestep=times(x, timestep / 1000),
        guidance=None if guidance is None or not net.config.guidance_embeds else times(x, guidance),
        pooled_projections=rows["pooled"],
        encoder_hidden_states=rows["text"],
        txt_ids=places.new_zeros(rows["text"].shape[1], 3),
        img_ids=places,
        return_dict=False,
    )[0]
    return unpack(out, h, w)


def times(x: Tensor, value: int | float) -> Shaped[Tensor, " b"]:
    """One time per image: whole numbers as they are, others in float32 or wider, as half types would round them."""
    dtype = torch.int64 if isinstance(value, int) else wide(x)
    return torch.full((len(x),), value, dtype=dtype, device=x.device)


def pack(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c4"]:
    """2x2 patches as tokens, row by row; channels first within a token."""
    b, c, h, w = x.shape
    patches = x.reshape(b, c, h // 2, 2, w // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Float[Tensor, "b n c4"], h: int, w: int) -> Float[Tensor, "b c h w"]:
    """The inverse of `pack`."""
    b, _, c4 = tokens.shape
    patches = tokens.reshape(b, h // 2, w // 2, c4 // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c4 // 4, h, w)


def _home(pipeline: Any, encoder: str) -> torch.device:
    module = getattr(pipeline, encoder)
    return pipeline.device if module is None else module.device


_CLIP = ("tokenizer", None)
_STABLE_DIFFUSION = Family("Stable Diffusion", "unet", encode_stable_diffusion, forward_unet, (_CLIP,))
_SDXL = Family("SDXL", "unet", encode_sdxl, forward_unet, (_CLIP, ("tokenizer_2", None)))
_PIXART_ALPHA = Family("PixArt-alpha", "transformer", encode_pixart, forward_pixart, (("tokenizer", 120),))
_PIXART_SIGMA = Family("PixArt-sigma", "transformer", encode_pixart, forward_pixart, (("tokenizer", 300),))
_DEEPFLOYD = Family("DeepFloyd-IF", "unet", encode_deepfloyd, forward_unet, (("tokenizer", 77),), vae=False)
_SD3 = Family(
    "Stable Diffusion 3",
    "transformer",
    encode_sd3,
    forward_sd3,
    (_CLIP, ("tokenizer_2", None), ("tokenizer_3", 256)),
)
_FLUX = Family(
    "Flux", "transformer", encode_flux, forward_flux, (_CLIP, ("tokenizer_2", 512)), distilled=True
)

FAMILIES = {
    "StableDiffusionPipeline": _STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": _SDXL,
    "PixArtAlphaPipeline": _PIXART_ALPHA,
    "PixArtSigmaPipeline": _PIXART_SIGMA,
    "IFPipeline": _DEEPFLOYD,
    "StableDiffusion3Pipeline": _SD3,
    "FluxPipeline": _FLUX,
}
