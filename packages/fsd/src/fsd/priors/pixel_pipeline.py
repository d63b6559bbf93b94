"""The small text-to-image models of the procedural world, built from configs: 32 pixels a side, no VAE.

What is built is an ordinary StableDiffusionPipeline whose latents are the pixels themselves, in [-1, 1]; the network
predicts v (Salimans and Ho, 2022).  Of two kinds: of single pictures, and multi-view, told 16 numbers of each view's
camera (see `multiview`).

    >>> pipeline = build_pipeline(["a", "red", "mug"], multi_view=True)
    >>> write_pipeline(pipeline, "prior"); prior = open_prior("prior")
    >>> pipe = StableDiffusionPipeline.from_pretrained("prior", vae=None, feature_extractor=None, dtype=torch.float32)
    >>> pixels = pipe("a red mug", output_type="latent").images          # without fsd, for single pictures
"""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fsd.priors.multiview import CAMERA_NUMBERS

LONGEST_PROMPT = 16


def build_pipeline(
    words: Sequence[str],
    multi_view: bool,
    channels: Sequence[int] = (32, 64, 96),
    layers: int = 1,
    text_width: int = 64,
    size: int = 32,
) -> StableDiffusionPipeline:
    """Networks with fresh weights, drawn from torch's global generator.

    `channels` are those of the UNet's levels, each half as wide in pixels as the one before; the last attends to the
    text and, there, to all views.  Raises ValueError for sizes that do not fit.
    """
    if size % 2 ** (len(channels) - 1):
        raise ValueError(f"size is {size}; with {len(channels)} levels it must be a multiple of "
                         f"{2 ** (len(channels) - 1)}")  # fmt: skip
    if any(width % 8 for width in (*channels, text_width)):
        raise ValueError(
            f"channels are {tuple(channels)}, text_width is {text_width}; all must be multiples of 8"
        )
    tokenizer = word_tokenizer(words)
    return StableDiffusionPipeline(
        vae=None,  # pyright: ignore[reportArgumentType]
        text_encoder=_text_encoder(len(tokenizer), text_width),
        tokenizer=tokenizer,
        unet=_unet(multi_view, channels, layers, text_width, size),
        scheduler=ddim_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def word_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """CLIP's tokenizer, of byte pairs merged until each of `words` (lower case) is one token; others fall into pieces.

    A function of the set of words alone.
    """
    spelled = {word: [*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(words))}
    merges: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in spelled.values()):
        counts = Counter(pair for pieces in spelled.values() for pair in pairwise(pieces))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = {word: _merged(pieces, best) for word, pieces in spelled.items()}
    letters = sorted(set(ascii_lowercase) | set("".join(words)))
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [left + right for left, right in merges]
    pairs: Any = merges
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(dict.fromkeys(tokens))},
        merges=pairs,
        model_max_length=LONGEST_PROMPT,
    )


def ddim_scheduler() -> DDIMScheduler:
    """1,000 levels, linear in beta: at the last nothing of a picture of 32 by 32 can be made out, yet alpha is not 0,
    so that all of t in (0, 1] can be used."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )


def write_pipeline(pipeline: StableDiffusionPipeline, path: str | os.PathLike[str]) -> None:
    """Writes a folder that `open_prior` takes; whatever stood there before is replaced once the new one is whole."""
    path = Path(path)
    fresh = path.with_name(f".{path.name}-new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    shutil.rmtree(path, ignore_errors=True)
    fresh.rename(path)


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word, with each occurrence of a pair made one."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def _text_encoder(tokens: int, width: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST_PROMPT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def _unet(
    multi_view: bool, channels: Sequence[int], layers: int, text_width: int, size: int
) -> UNet2DConditionModel:
    camera: dict[str, Any] = {
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": CAMERA_NUMBERS,
    }
    plain = len(channels) - 1
    # Named so by diffusers for historical reasons: it is the number of heads.
    heads: Any = tuple(max(1, width // 32) for width in channels)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        attention_head_dim=heads,
        norm_num_groups=8,
        cross_attention_dim=text_width,
        **(camera if multi_view else {}),
    )
