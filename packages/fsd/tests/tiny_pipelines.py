"""Pipelines of every family with a few thousand weights, made from configs and saved as real ones are.

The text is split into words of one letter, so tokens can be counted by hand.
"""

from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"


def clip_tokenizer(length: int = 77) -> Any:
    from transformers import CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    return CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=length)


def clip_text(kind: str = "CLIPTextModel", width: int = 8) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
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
    folder: Path, unet_settings: dict[str, Any] | None = None, **scheduler: Any
) -> Path:
    """A Stable Diffusion of 16 by 16 pixels and latents of 4 by 8 by 8; settings of DDIMScheduler pass through."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(**(unet_settings or {})),
        scheduler=ddim(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
