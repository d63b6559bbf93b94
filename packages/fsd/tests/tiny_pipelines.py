"""Pipelines of every family with a few thousand weights, made from configs and saved as real ones are.

The text is split into words of one letter, so tokens can be counted by hand; Stable Diffusion's may know words.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"


def clip_tokenizer(length: int = 77, words: Sequence[str] = ()) -> Any:
    """`words` are one token each."""
    from transformers import CLIPTokenizer

    merges = {}
    for word in words:
        for end in range(1, len(word)):
            merges[word[:end], word[end] + ("</w>" if end == len(word) - 1 else "")] = None
    parts = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    parts = dict.fromkeys([*parts, *(a + b for a, b in merges)])
    return CLIPTokenizer(
        vocab={part: n for n, part in enumerate(parts)}, merges=list(merges), model_max_length=length
    )


def clip_text(kind: str = "CLIPTextModel", width: int = 8, tokens: int = 2 + 2 * len(LETTERS)) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=16,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return getattr(transformers, kind)(config)


def unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    settings = {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 8, **settings}
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **settings,
    )


def vae(latent_channels: int = 4, **settings: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=2,
        sample_size=16,
        **settings,
    )


def ddim(**settings: Any) -> Any:
    from diffusers import DDIMScheduler

    tables = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(
        **{**tables, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **settings}
    )


def tiny_stable_diffusion(
    folder: Path,
    unet_settings: dict[str, Any] | None = None,
    words: Sequence[str] = (),
    **scheduler: Any,
) -> Path:
    """A Stable Diffusion of 16 by 16 pixels and latents of 4 by 8 by 8; settings of DDIMScheduler pass through."""
    from diffusers import StableDiffusionPipeline

    tokenizer = clip_tokenizer(words=words)
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(tokens=len(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(**(unet_settings or {})),
        scheduler=ddim(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def tiny_multi_view(folder: Path, words: Sequence[str] = ()) -> Path:
    """A Stable Diffusion whose UNet takes 16 numbers of a camera with each view, as MVDream's does."""
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
    return tiny_stable_diffusion(folder, camera, words)


def t5_tokenizer(length: int = 512) -> Any:
    from transformers import T5Tokenizer

    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return T5Tokenizer(vocab=[(word, -1.0) for word in words], extra_ids=0, model_max_length=length)


def t5_text(width: int = 8) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=4 + len(LETTERS), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )


def tiny_sdxl(folder: Path) -> Path:
    """Two text encoders of 8 and 8 channels, pooled text and sizes as added conditions."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    net = unet(
        cross_attention_dim=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13),
        text_encoder=clip_text(),
        text_encoder_2=clip_text("CLIPTextModelWithProjection"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=net,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def tiny_pixart(folder: Path, kind: str = "Sigma", **settings: Any) -> Path:
    """A transformer that gives a variance beside the noise; `kind` is Alpha or Sigma.

    With sample_size=128 it is told the image's size, as PixArt-alpha of 1,024 pixels is.
    """
    import diffusers

    torch.manual_seed(0)
    net = diffusers.PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=4,
        num_layers=1,
        cross_attention_dim=12,
        caption_channels=8,
        **{"sample_size": 8, **settings},
    )
    getattr(diffusers, f"PixArt{kind}Pipeline")(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        vae=vae(),
        transformer=net,
        scheduler=ddim(),
    ).save_pretrained(folder)
    return folder


def tiny_deepfloyd(folder: Path, **unet_settings: Any) -> Path:
    """Pixels of 3 by 8 by 8, and a variance beside the noise."""
    from diffusers import DDPMScheduler, IFPipeline

    torch.manual_seed(0)
    IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        unet=unet(**{"in_channels": 3, "out_channels": 6, **unet_settings}),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def tiny_sd3(folder: Path) -> Path:
    """Flow matching with three text encoders and a shifted VAE."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=8,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    StableDiffusion3Pipeline(
        transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip_text("CLIPTextModelWithProjection"),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text("CLIPTextModelWithProjection"),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(16),
        tokenizer_3=t5_tokenizer(),
    ).save_pretrained(folder)
    return folder


def tiny_flux(folder: Path, guidance_embeds: bool = True) -> Path:
    """Flow matching in packed latents, told the guidance scale."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    net = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.1, scaling_factor=0.36, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
        transformer=net,
    ).save_pretrained(folder)
    return folder


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "stable-diffusion": tiny_stable_diffusion,
    "sdxl": tiny_sdxl,
    "pixart-alpha": partial(tiny_pixart, kind="Alpha", sample_size=128),
    "pixart-sigma": tiny_pixart,
    "deepfloyd": tiny_deepfloyd,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
}
