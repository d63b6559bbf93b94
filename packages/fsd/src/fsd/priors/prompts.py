"""A prompt in all the views it is needed in, encoded once, and what each view of a batch takes of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fsd.priors.families import Family, Rows

# Above it, a tokenizer's length stands for "not known"; CLIP's is 77.
UNKNOWN, CLIP_LENGTH = 10**6, 77
NEGATIVE, PLAIN, FIRST_VIEW = 0, 1, 2


class EncodedPrompt(NamedTuple):
    """Rows: the negative prompt, the prompt, and, with view words, the prompt in each of VIEWS."""

    rows: Rows
    negated: bool


def encode(
    pipeline: Any, family: Family, prompt: str, negative_prompt: str, in_views: Sequence[str] = ()
) -> EncodedPrompt:
    """`in_views` is the prompt as it is said of each of VIEWS, or nothing.

    Raises ValueError for an empty prompt, one that is too long, and a negative prompt where there is none."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; say what to make, for instance 'a red mushroom'")
    if negative_prompt and family.distilled:
        raise ValueError(
            f"{family.name} is guidance-distilled and takes no negative prompt, but negative_prompt is "
            f"{negative_prompt!r}; leave it empty, or take another family"
        )
    texts = [negative_prompt, prompt, *in_views]
    refuse_without_encoder(pipeline, family)
    with bounded(pipeline, family), torch.no_grad():
        for text in texts:
            refuse_too_long(pipeline, family, text)
        return EncodedPrompt(family.encode(pipeline, texts), bool(negative_prompt))


@contextmanager
def bounded(pipeline: Any, family: Family) -> Iterator[None]:
    """Within it, tokenizers that do not know a length (transformers writes 1e30) have that of their text encoder.

    It is the encoder's `max_position_embeddings`, or 77, CLIP's. Pipelines read the length from their tokenizer.
    """
    kept: list[tuple[Any, str, Any]] = []
    try:
        for name, most in family.readers:
            tokenizer = getattr(pipeline, name, None)
            if most is None and tokenizer is not None and tokenizer.model_max_length > UNKNOWN:
                config = getattr(getattr(pipeline, encoder_of(name), None), "config", None)
                length = getattr(config, "max_position_embeddings", None) or CLIP_LENGTH
                kept.append((tokenizer, "model_max_length", tokenizer.model_max_length))
                tokenizer.model_max_length = length
                if getattr(pipeline, "tokenizer_max_length", 0) > UNKNOWN:
                    kept.append((pipeline, "tokenizer_max_length", pipeline.tokenizer_max_length))
                    pipeline.tokenizer_max_length = length
        yield
    finally:
        for holder, name, value in kept:
            setattr(holder, name, value)


def encoder_of(tokenizer: str) -> str:
    """The text encoder of a tokenizer: "text_encoder_2" of "tokenizer_2"."""
    return tokenizer.replace("tokenizer", "text_encoder")


def refuse_without_encoder(pipeline: Any, family: Family) -> None:
    """Raises ValueError where a tokenizer is there and its text encoder is not; the third of SD3 may be absent."""
    for name, _ in family.readers:
        if getattr(pipeline, name, None) is not None and getattr(pipeline, encoder_of(name), None) is None:
            if name == "tokenizer_3":
                continue
            raise ValueError(
                f"the pipeline has a {name} and no {encoder_of(name)}, so no prompt can be encoded; give a whole "
                f"{family.name}"
            )


def refuse_too_long(pipeline: Any, family: Family, text: str) -> None:
    """Raises ValueError for a text that no encoder of the pipeline reads to its end."""
    present = [
        (tokenizer, most)
        for name, most in family.readers
        if (tokenizer := getattr(pipeline, name, None)) is not None
    ]
    if not present:
        raise ValueError(
            "the text encoder was freed, so no further prompt can be encoded; encode all prompts before "
            "free_text_encoder(), or load the prior again"
        )
    counts = [
        (len(tokenizer(text, verbose=False).input_ids), most or tokenizer.model_max_length)
        for tokenizer, most in present
    ]
    # A pipeline with a second, longer encoder is meant to be given prompts that the first one cuts.
    count, most = max(counts, key=lambda pair: pair[1])
    if count > most:
        shown = text if len(text) < 80 else f"{text[:40]} ... {text[-30:]}"
        raise ValueError(
            f"{shown!r} has {count} tokens, and the text encoder of this {family.name} reads {most} (marks of start "
            "and end included); shorten it"
        )


def choose(rows: Rows, index: Int[Tensor, " b"]) -> Rows:
    """One row for each view."""
    return {name: value[index.to(value.device)] for name, value in _brought(rows, index).items()}


def blend(rows: Rows, weight: Float[Tensor, "b n"]) -> Rows:
    """Weighted means of rows; masks (integers) are joined."""
    return {
        name: _joined(weight.to(value.device), value)
        if not value.is_floating_point()
        else torch.tensordot(weight.to(value), value, 1)
        for name, value in _brought(rows, weight).items()
    }


def move(prompt: EncodedPrompt, device: torch.device) -> None:
    """Move the rows, for everybody who holds them."""
    for name, value in prompt.rows.items():
        prompt.rows[name] = value.to(device)


def _brought(rows: Rows, to: Tensor) -> Rows:
    """Rows on the CPU go where the views are; the other way the CPU would wait for the device at every step."""
    return {
        name: value.to(to.device) if value.device.type == "cpu" else value for name, value in rows.items()
    }


def stack(parts: list[Rows]) -> Rows:
    """Rows one after another."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _joined(weight: Tensor, mask: Tensor) -> Tensor:
    return ((weight[:, :, None] > 0) & (mask[None] > 0)).any(1).to(mask.dtype)
