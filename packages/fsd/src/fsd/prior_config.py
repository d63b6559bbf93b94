"""What a run of ``fsd train-prior`` is.  Nothing here imports torch."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator
from shared_core.run.config import Config, Seed
from tyro.conf import Suppress


class PriorConfig(Config):
    """Train a small text-to-image model on the procedural world."""

    variant: Literal["multi-view", "camera-free"] = Field(
        "multi-view",
        description="Views of an object denoised together and told their cameras, or single pictures.",
    )
    steps: int = Field(
        30_000, ge=1, description="Steps of the optimiser; may be raised when a run is resumed."
    )
    seed: Seed = 0
    batch_size: int = Field(
        32, ge=1, description="Pictures per step; four of each object in the multi-view variant."
    )
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    start: str | None = Field(
        None,
        description="Folder of a trained pipeline whose weights to begin with, such as a camera-free one.",
    )
    sides: float = Field(
        1.0,
        ge=1,
        allow_inf_nan=False,
        description="How many times as often as others a caption is drawn that names a kind with a front.",
    )
    pictures: str | None = Field(
        None,
        description="Folder of drawn pictures, to share them between runs; default: in the run's folder.",
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="Of the passes; bf16 is a quarter faster on CPUs that have it, 2.3 times slower on others; fp16 "
        "needs a GPU.",
    )
    threads: int | None = Field(None, ge=1, description="Threads on a CPU.")

    # From here on in the YAML file only.
    size: Suppress[int] = Field(32, ge=8, description="Side of the pictures.")
    channels: Suppress[tuple[int, ...]] = Field((32, 64, 96), description="Of the UNet's levels.")
    layers: Suppress[int] = Field(1, ge=1, description="Residual blocks of a level.")
    text_width: Suppress[int] = Field(64, ge=8)
    chunk: Suppress[int] = Field(4096, ge=1, description="Pictures drawn at a time.")
    chunks: Suppress[int] = Field(48, ge=1, description="After so many chunks the first comes again.")
    warmup: Suppress[int] = Field(200, ge=0)
    decay: Suppress[float] = Field(
        0.2, ge=0, le=1, description="Share of the steps in which the rate falls to 0."
    )
    ema: Suppress[float] = Field(0.999, ge=0, lt=1, description="Of the weights that are kept.")
    clip_norm: Suppress[float] = Field(1.0, gt=0)
    log_every: Suppress[int] = Field(20, ge=1)
    sample_every: Suppress[int] = Field(1000, ge=1)
    checkpoint_every: Suppress[int] = Field(500, ge=1)
    tracker: Suppress[Literal["none", "tensorboard", "wandb"]] = "none"
    on_nonfinite: Suppress[Literal["error", "skip"]] = Field(
        "error",
        description="skip: a step with numbers that are not finite changes nothing; at most 10 in a row.",
    )
    sample_steps: Suppress[int] = Field(30, ge=1)
    guidance_scale: Suppress[float] = Field(3.0, description="Of the samples shown.")
    prompts: Suppress[tuple[str, ...]] = Field(
        ("a red mushroom", "a blue car", "a green chair", "a yellow house", "a purple fish", "an object"),
        min_length=1,
        description="Of the samples shown.",
    )

    @model_validator(mode="after")
    def _whole_batches(self) -> "PriorConfig":
        if self.batch_size % self.views:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of the {self.views} views of an object; choose one"
            )
        if self.chunk % self.batch_size:
            raise ValueError(f"chunk={self.chunk} is no multiple of batch_size={self.batch_size}; choose one")
        return self

    @property
    def views(self) -> int:
        """Of an object, denoised together."""
        return 4 if self.variant == "multi-view" else 1


def tiny() -> PriorConfig:
    """A network that learns nothing to speak of, in seconds: does it run here?"""
    return PriorConfig(
        steps=20,
        batch_size=16,
        channels=(8, 16),
        text_width=8,
        chunk=64,
        chunks=2,
        warmup=5,
        log_every=1,
        sample_every=10,
        checkpoint_every=10,
        sample_steps=4,
        prompts=("a red mushroom", "an object"),
    )


PRESETS: dict[str, Callable[[], PriorConfig]] = {"tiny": tiny}
