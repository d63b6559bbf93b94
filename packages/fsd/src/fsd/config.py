"""What a run of ``fsd generate`` is: one frozen, validated record, read from YAML and flags, saved beside it.

Presets are functions that return a :class:`GenerateConfig`.  Nothing here imports torch.
"""

import re
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from shared_core.run.config import Config, Seed
from tyro.conf import Suppress

Method = Literal["fsd", "sds", "sds-annealed", "cfd", "sdi", "ism", "csd", "nfsd", "vsd"]


class FieldSettings(Config):
    """The object: what it is made of and how it is rendered."""

    kind: Literal["grid", "hash"] = "grid"
    resolution: int = Field(32, ge=4, description="Cells a side of the dense grid.")
    log2_size: int = Field(
        19, ge=8, le=24, description="Entries of a level of the hash grid, as a power of two."
    )
    background: Literal["constant", "learned", "map"] = "constant"
    samples: int = Field(32, ge=2, description="Samples along a ray.")
    fine_samples: int = Field(0, ge=0, description="Further samples where the first found something.")
    occupancy: int = Field(32, ge=0, description="Cells a side of the grid that marks empty space; 0: none.")
    shading: bool = Field(False, description="Light the object in some steps, more of them towards the end.")
    marching: bool = Field(False, description="nerfacc's marching on a CUDA device; compiles once.")


class CameraSettings(Config):
    """Where the cameras of the training stand: ranges, each drawn uniformly."""

    elevation_deg: tuple[float, float] = (0.0, 40.0)
    distance: tuple[float, float] = (2.6, 2.6)
    fov_deg: tuple[float, float] = (40.0, 40.0)

    @model_validator(mode="after")
    def _ranges(self) -> "CameraSettings":
        limits = {"elevation_deg": (-90.0, 90.0), "distance": (0.1, 100.0), "fov_deg": (1.0, 170.0)}
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} is {(low, high)}; give (low, high) within {least:g} to {most:g}")
        return self


class Optim(Config):
    """Adam.  With a fixed noise the distance travelled is about learning rate times steps."""

    # Times 200 steps: the product that was tuned for beta 0.5 (docs/results/fsd.md).
    learning_rate: float = Field(0.1, gt=0, allow_inf_nan=False)
    network_rate: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Of the small network behind a hash grid; default: the same.",
    )
    background_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = Field(1e-15, gt=0)
    clip_norm: float | None = Field(None, gt=0, description="Clip the gradient's norm.")


class Later(Config):
    """What changes once a share of the steps is done: larger views, fewer of them."""

    progress: float = Field(0.2, gt=0, lt=1)
    size: int = Field(ge=8)
    batch_size: int = Field(ge=1)


class Regularizers(Config):
    """Weights of further losses on the render; 0 leaves one out."""

    sparsity: float = Field(0.0, ge=0, description="Mean opacity.")
    opaque: float = Field(0.0, ge=0, description="Binary entropy of the opacity.")


class GenerateConfig(Config):
    """Make 3D objects from prompts."""

    prompts: Suppress[list[str]] = Field(
        [], description="What to make; on the command line before all flags."
    )
    prior: str = Field(
        "embedded",
        description="embedded | embedded-camera-free | bank | bank-per-view | folder or hub id of a diffusers pipeline",
    )
    guidance: list[Method] = Field(["fsd"], description="One or more methods, for comparison.")
    seeds: list[Seed] = Field([0], description="One object per prompt, method and seed: 0 1 2, or 0-3.")
    steps: int = Field(200, ge=1, description="Steps of an object.")
    batch_size: int = Field(4, ge=1, description="Views per step.")
    size: int = Field(32, ge=8, description="Side of the rendered views in pixels.")
    guidance_scale: float = Field(4.0, description="1 is the prompt alone; see fsd.priors.base.")
    noise: Literal["auto", "random", "constant", "worldmap", "surface"] = Field(
        "auto", description="auto: what the method's paper uses."
    )
    # Half was the best measured with the embedded multi-view prior (docs/results/fsd.md).
    beta: float = Field(0.5, ge=0, le=1, description="Share of fixed noise: 1 flow, 0 score distillation.")
    negative_prompt: str = Field("", description="What not to show (diffusion models).")
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Of a diffusion model's weights.")
    jobs: int = Field(1, ge=1, description="Processes on this machine that share the objects.")

    # From here on in the YAML file only.
    schedule: Suppress[Literal["auto", "linear", "piecewise", "sqrt", "dreamtime", "random"]] = "auto"
    t_max: Suppress[float] = Field(0.98, gt=0, le=1)
    t_min: Suppress[float] = Field(0.06, gt=0, le=1)
    weighting: Suppress[Literal["lambda", "one", "sigma2"]] = "lambda"
    map_degrees: Suppress[float] = Field(180.0, gt=0, le=360)
    map_background: Suppress[Literal["fixed", "fresh"]] = "fixed"
    shared: Suppress[int] = Field(
        0,
        ge=0,
        description="Lowest frequencies of the world map that all cameras share, along an axis; 0: the paper.",
    )
    released_rows: Suppress[bool] = Field(False, description="Rows of the map as in the released code.")
    view_words: Suppress[bool | None] = Field(
        None, description="Front, side, back and overhead view in the prompt; default: of single images."
    )
    perp_neg: Suppress[bool] = False
    slicing: Suppress[bool] = Field(False, description="Attention and VAE in slices: less memory, slower.")
    offload: Suppress[bool] = Field(False, description="Keep the parts of the model on the CPU between uses.")
    views: Suppress[int | None] = Field(
        None, ge=1, description="Views of one object together; default: the prior's."
    )
    image_size: Suppress[int | None] = Field(
        None, ge=8, description="Side of the images a diffusion model sees; default: what it was trained on."
    )
    threads: Suppress[int | None] = Field(None, ge=1, description="Threads of a process on a CPU.")
    on_nonfinite: Suppress[Literal["error", "skip"]] = Field(
        "error",
        description="skip: a step with numbers that are not finite changes nothing; at most 10 in a row.",
    )
    log_every: Suppress[int] = Field(10, ge=1)
    picture_every: Suppress[int] = Field(50, ge=1)
    checkpoint_every: Suppress[int] = Field(200, ge=1)
    tracker: Suppress[Literal["none", "tensorboard", "wandb"]] = "none"
    mesh_resolution: Suppress[int] = Field(96, ge=8)
    frames: Suppress[int] = Field(48, ge=2, description="Of the turntable.")
    field: Suppress[FieldSettings] = FieldSettings()
    cameras: Suppress[CameraSettings] = CameraSettings()
    optim: Suppress[Optim] = Optim()
    regularizers: Suppress[Regularizers] = Regularizers()
    later: Suppress[Later | None] = None

    @field_validator("seeds", mode="before")
    @classmethod
    def _range(cls, seeds: Any) -> Any:
        """`0-3` in a file is 0, 1, 2, 3."""
        return seed_range(seeds) if isinstance(seeds, str) else seeds

    @field_validator("seeds", "guidance", mode="after")
    @classmethod
    def _some(cls, values: list[Any]) -> list[Any]:
        if not values or len(set(values)) != len(values):
            raise ValueError("give at least one, none twice")
        return values

    @field_validator("prompts", mode="after")
    @classmethod
    def _prompts(cls, prompts: list[str]) -> list[str]:
        if any(not prompt.strip() for prompt in prompts) or len(set(prompts)) != len(prompts):
            raise ValueError("a prompt is empty or there twice; say what to make, for example 'a red mug'")
        return prompts

    @model_validator(mode="after")
    def _learns_in_half(self) -> "GenerateConfig":
        if "vsd" in self.guidance and self.precision == "fp16":
            raise ValueError(
                "guidance vsd trains through the network, where fp16 underflows; choose precision bf16 or fp32"
            )
        return self

    @model_validator(mode="after")
    def _times(self) -> "GenerateConfig":
        if self.t_min > self.t_max:
            raise ValueError(
                f"t_min={self.t_min} is above t_max={self.t_max}; time runs from t_max down to t_min"
            )
        return self


def seed_range(text: str) -> list[int]:
    """`0-3` as [0, 1, 2, 3] and `5` as [5].  Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if not found:
        raise ValueError(f"seeds {text!r}: give numbers, or a range such as 0-3")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ValueError(f"seeds {text!r}: the range runs backwards")
    return list(range(first, last + 1))


def embedded() -> GenerateConfig:
    """The multi-view prior of the package, a prompt that leaves the colour open, four seeds, FSD beside SDS."""
    return GenerateConfig(**_COMPARED, prompts=["a mushroom"])


def draft() -> GenerateConfig:
    """One object of the embedded prior in half a minute: half the steps, settings of docs/results/fsd.md."""
    return GenerateConfig(steps=100, threads=1, optim=Optim(learning_rate=0.2), mesh_resolution=48, frames=24)


def bank() -> GenerateConfig:
    """The render bank, an exact prior of 64 small solids, asked for any of them; FSD beside SDS."""
    return GenerateConfig(
        **_COMPARED,
        prompts=["an object"],
        prior="bank",
        beta=1.0,
        steps=250,
        guidance_scale=7.5,
        optim=Optim(learning_rate=0.02),
    )


def tiny() -> GenerateConfig:
    """Settings for small pipelines on a CPU: does a model of your own work?"""
    return GenerateConfig(
        prior="",
        beta=1.0,
        steps=200,
        size=64,
        batch_size=2,
        guidance_scale=7.5,
        optim=Optim(learning_rate=0.01),
        field=FieldSettings(background="learned", occupancy=32, samples=48),
    )


def stable_diffusion() -> GenerateConfig:
    """Constants of the released code of the authors' follow-up for Stable Diffusion (stage 1); not run here."""
    return GenerateConfig(
        **_ON_A_GPU,
        steps=25000,
        batch_size=1,
        size=128,
        later=Later(progress=0.2, size=512, batch_size=1),
        guidance_scale=71,  # the released 70, which counts from 0
        negative_prompt=SD_NEGATIVE,
        schedule="piecewise",
        t_min=0.212,
        cameras=CameraSettings(distance=(1.3, 1.5), fov_deg=(40, 65)),
    )


def mvdream() -> GenerateConfig:
    """Constants of the released code for a multi-view model of four views at 256 pixels; not run here."""
    return GenerateConfig(
        **_ON_A_GPU,
        steps=10000,
        batch_size=8,
        size=64,
        later=Later(progress=0.5, size=256, batch_size=4),
        guidance_scale=50,
        negative_prompt=MVDREAM_NEGATIVE,
        schedule="piecewise",
        t_min=0.308,
        weighting="one",
        cameras=CameraSettings(elevation_deg=(0, 30), distance=(1.5, 2.0), fov_deg=(40, 60)),
    )


def deepfloyd() -> GenerateConfig:
    """DeepFloyd-IF's first stage, which works on pixels of 64 by 64: no VAE in the way; not run here."""
    return GenerateConfig(
        **_ON_A_GPU,
        steps=10000,
        batch_size=1,
        size=64,
        guidance_scale=20,
        t_min=0.2,
        cameras=CameraSettings(distance=(1.3, 1.5), fov_deg=(40, 65)),
    )


# Minutes on two cores.
_COMPARED: dict[str, Any] = {
    "guidance": ["fsd", "sds-annealed"],
    "seeds": [0, 1, 2, 3],
    "threads": 1,
    "jobs": 2,
}

# What the last three share: threestudio's hash grid, which the released code took over.
_ON_A_GPU: dict[str, Any] = {
    "prior": "",
    "beta": 1.0,
    "precision": "fp16",
    "field": FieldSettings(
        kind="hash", log2_size=20, background="map", samples=512, occupancy=32, marching=True
    ),
    "optim": Optim(learning_rate=0.01, network_rate=1e-3),
    "checkpoint_every": 1000,
    "picture_every": 500,
    "log_every": 50,
    "mesh_resolution": 256,
    "frames": 120,
}

# As the released configurations have them.
SD_NEGATIVE = (
    "lack details, ugly, oversmoothed, bad structure, out of focus, blurry, cartoon, oversaturated, foggy, hazy, "
    "bad anatomy, malformed, pixelated obscure, unnatural colors, dull, unclear, lowres, low quality, deformed, "
    "dehydrated"
)
MVDREAM_NEGATIVE = (
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
    "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
    "bad proportions"
)

PRESETS: dict[str, Callable[[], GenerateConfig]] = {
    "embedded": embedded,
    "draft": draft,
    "bank": bank,
    "tiny": tiny,
    "stable-diffusion": stable_diffusion,
    "mvdream": mvdream,
    "deepfloyd": deepfloyd,
}
