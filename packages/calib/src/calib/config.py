"""What a run of ``calib adapt`` is: one frozen, validated record, read from YAML and flags, saved beside it.

Presets are functions that return an :class:`AdaptConfig`.  Nothing here imports torch.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from shared_core.run.config import Config, Seed
from tyro.conf import Suppress

Baseline = Literal[
    "moment_matching",
    "random_correction",
    "surest_view",
    "neighbours",
    "bn_adapt",
    "tent",
    "deep_coral",
    "dann",
    "adda",
    "shot_im",
    "target_supervised",
]

Side = Annotated[int, Field(ge=8)]


class Training(Config):
    """How a classifier is trained on the source first; in segmentation only epochs and batch_size count."""

    epochs: float = Field(15, gt=0)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Peak of one cycle of Adam.")
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)


class LossWeights(Config):
    """The weights of calib.Weights, with the same defaults.  A weight of 0 leaves its critic out."""

    pixel: float = Field(1.0, ge=0)
    feature: float = Field(1.0, ge=0)
    source: float = Field(0.1, ge=0)
    views: float = Field(0.0, ge=0, description="Of what the target's surest views say; 0: no such teacher.")
    hold: float = Field(0.0, ge=0, description="Of the classes that the source has without the calibrator.")


class ViewSettings(Config):
    """Which views teach where loss.views is above 0; see calib.Views, with the same defaults."""

    count: int = Field(4, ge=1)
    zooms: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.65)
    shear: float = Field(0.4, ge=0)
    zoom_temperature: float = Field(0.03, gt=0)
    temperature: float = Field(0.1, gt=0)
    threshold: float = Field(0.9, ge=0, lt=1)
    shake: float = Field(0.0, ge=0, lt=1, description="How far target images are moved for the calibrator.")


class NeighbourSettings(Config):
    """Whether images that look alike agree on what the views say; see calib.Neighbours, with the same defaults."""

    count: int = Field(0, ge=0, description="Nearest neighbours that agree; 0: each image by itself.")
    answers: float = Field(0.0, ge=0, allow_inf_nan=False, description="Weight of answers in who is near.")
    restart: float = Field(0.2, gt=0, le=1)
    balance: float = Field(1.0, ge=0, le=1, description="1: classes are taken to be about equally frequent.")
    rounds: int = Field(10, ge=1)
    threshold: float = Field(0.5, ge=0, lt=1)
    images: int = Field(20_000, ge=1)
    every: int = Field(200, ge=1)


class Optim(Config):
    """Adam, for the calibrator and its critics."""

    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    critic_learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine"] = "constant"


class AdaptConfig(Config):
    """Adapt a frozen classifier to a new domain with a calibrator, and its baselines beside it."""

    source: str = Field(
        "digits",
        description="digits | mnist | usps | svhn | fashion-mnist | photo-digits | gta5 | cityscapes | "
        "imagefolder:PATH | npz:PATH[#prefix] | hf:NAME",
    )
    target: str = Field("photo-digits", description="As source; its labels only score the test images.")
    translated: str | None = Field(
        None,
        description="Source images in the target's style, e.g. imagefolder:PATH: they replace the source.",
    )
    data_root: Path | None = Field(
        None, description="Folder of the torchvision data sets, gta5/ and cityscapes/."
    )
    classifier: str = Field(
        "small:lenet",
        description="small:lenet|dtn|segmenter | torchvision:NAME | timm:NAME | file.py:function | model.onnx",
    )
    weights: Path | None = Field(
        None,
        description="Weights of the classifier (safetensors). Without, small:, torchvision: and timm: are trained on "
        "the source first; file.py:function stays as the function gives it.",
    )
    epsilon: float = Field(
        0.2, gt=0, le=1, description="Bound of the correction, a share of the value range."
    )
    body: Literal["residual", "depthwise", "lowres", "folded", "constant"] = "residual"
    steps: int = Field(600, ge=1, description="Steps of the calibrator.")
    batch_size: int = Field(64, ge=2, description="Images of each domain per step over all processes.")
    selection: Literal["information", "entropy", "neighbourhood", "confusion", "last", "oracle"] = Field(
        "information", description="Which calibrator is kept; oracle looks at target labels."
    )
    baselines: list[Baseline] = Field([], description="Other methods in the same run, for comparison.")
    seeds: list[Seed] = Field([0], description="One run per seed.")
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    # From here on in the YAML file only.
    download: Suppress[bool] = Field(False, description="Let torchvision download into data_root.")
    pretrained: Suppress[bool] = Field(
        False, description="Take torchvision's or timm's published weights, and do not train them."
    )
    train_classifier: Suppress[bool] = Field(
        False,
        description="Train the classifier on the source first, also one with weights or of file.py:function.",
    )
    num_classes: Suppress[int | None] = Field(None, ge=2, description="Default: as many as the source names.")
    image_size: Suppress[int | None] = Field(
        None, ge=8, description="Side; default: the source's, 224 of files."
    )
    scene_size: Suppress[tuple[Side, Side]] = Field(
        (512, 1024), description="Height and width that images of gta5 and cityscapes are scaled to."
    )
    channels: Suppress[Literal[1, 3] | None] = None
    output: Suppress[int | str | None] = Field(None, description="Part of its answers that names classes.")
    outputs: Suppress[Literal["auto", "logits", "probabilities"]] = "auto"
    normalize: Suppress[Literal["none", "half", "imagenet"]] = Field(
        "half", description="What the classifier wants of images in [0, 1]: nothing, [-1, 1], or ImageNet's."
    )
    ignore: Suppress[int | None] = Field(
        None, description="Label of pixels that do not count (segmentation)."
    )
    surrogate_steps: Suppress[int] = Field(
        0,
        ge=0,
        description="Steps to distil a stand-in for a classifier that gives no gradient; 0: pixels only.",
    )
    compat: Suppress[Literal["none", "released"]] = Field(
        "none", description="released: that code's faults, for comparison; with mode: released."
    )
    width: Suppress[int] = Field(4, ge=1)
    blocks: Suppress[int] = Field(9, ge=0)
    mode: Suppress[Literal["signed", "positive", "released"]] = "signed"
    feature: Suppress[str] = Field("softmax", description="softmax | logits | layer:NAME")
    feature_stride: Suppress[int] = Field(
        1, ge=1, description="Of score maps the feature critic sees every n-th pixel of every n-th row."
    )
    patch: Suppress[int] = Field(4, ge=1)
    patches: Suppress[int] = Field(1, ge=1)
    ema: Suppress[float | None] = Field(0.99, gt=0, lt=1)
    accumulate: Suppress[int] = Field(1, ge=1)
    source_tolerance: Suppress[float] = Field(1.0, ge=0, description="Points of source accuracy that may go.")
    validate_every: Suppress[int] = Field(100, ge=1)
    validation_images: Suppress[int] = Field(2000, ge=3)
    workers: Suppress[int] = Field(0, ge=0)
    threads: Suppress[int | None] = Field(None, ge=1, description="Threads of a process on a CPU.")
    on_bad: Suppress[Literal["raise", "skip"]] = "raise"
    on_nonfinite: Suppress[Literal["error", "skip"]] = "error"
    log_every: Suppress[int] = Field(10, ge=1)
    checkpoint_every: Suppress[int] = Field(200, ge=1)
    tracker: Suppress[Literal["none", "tensorboard", "wandb"]] = "none"
    training: Suppress[Training] = Training()
    loss: Suppress[LossWeights] = LossWeights()
    views: Suppress[ViewSettings] = ViewSettings()
    neighbours: Suppress[NeighbourSettings] = NeighbourSettings()
    optim: Suppress[Optim] = Optim()

    @property
    def ignore_label(self) -> int:
        """The label of pixels that do not count; 255 by custom."""
        return 255 if self.ignore is None else self.ignore

    @field_validator("seeds", mode="after")
    @classmethod
    def _some_seeds(cls, seeds: list[int]) -> list[int]:
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError("give at least one seed, none twice")
        return seeds

    @model_validator(mode="after")
    def _all_of_the_released_code(self) -> "AdaptConfig":
        """Half of its faults would be neither its figures nor ours."""
        if self.compat == "released" and self.mode != "released":
            raise ValueError(
                f"compat released is the released code as it is, whose correction only brightens, but mode is "
                f"{self.mode}: say mode: released, too"
            )
        if self.compat == "released" and (self.loss.views or self.loss.hold):
            raise ValueError("compat released knows no loss.views and no loss.hold: leave them 0")
        return self

    @model_validator(mode="after")
    def _neighbours_of_views(self) -> "AdaptConfig":
        if self.neighbours.count and not self.loss.views:
            raise ValueError(
                "neighbours agree on what the views say: give loss.views above 0, or neighbours.count 0"
            )
        return self


def digits() -> AdaptConfig:
    """scikit-learn's real digits to the same digits over its real photographs, in minutes on a CPU."""
    return AdaptConfig(
        image_size=32,
        channels=3,
        steps=300,
        epsilon=0.5,
        blocks=3,
        ema=0.98,
        threads=1,
        training=Training(epochs=30, batch_size=64),
        loss=LossWeights(source=1.0),
        optim=Optim(schedule="cosine"),
        validate_every=25,
        validation_images=500,
        baselines=["moment_matching", "random_correction"],
    )


def usps_mnist() -> AdaptConfig:
    """The paper's constants for USPS to MNIST (its epsilon 0.9 of [-1, 1]; 50 epochs of 56 batches)."""
    return AdaptConfig(
        source="usps",
        target="mnist",
        classifier="small:dtn",
        image_size=32,
        channels=3,
        epsilon=0.45,
        width=4,
        steps=2800,
        batch_size=128,
        patch=8,
        optim=Optim(learning_rate=1e-4, weight_decay=5e-4),
        training=Training(epochs=250, learning_rate=1e-4),
        ema=None,
    )


def mnist_usps() -> AdaptConfig:
    """The paper's constants for MNIST to USPS (its epsilon 0.4 of [-1, 1]; 200 epochs of 56 batches)."""
    return AdaptConfig(
        source="mnist",
        target="usps",
        classifier="small:dtn",
        image_size=32,
        channels=3,
        epsilon=0.2,
        width=8,
        steps=11200,
        batch_size=128,
        patch=4,
        optim=Optim(learning_rate=1e-4, weight_decay=5e-4),
        training=Training(epochs=300, learning_rate=1e-4),
        ema=None,
    )


def svhn_mnist() -> AdaptConfig:
    """The paper's constants for SVHN to MNIST (its epsilon 0.8 of [-1, 1]; 100 epochs of 117 batches)."""
    return AdaptConfig(
        source="svhn",
        target="mnist",
        classifier="small:dtn",
        image_size=32,
        channels=3,
        epsilon=0.4,
        width=8,
        blocks=8,
        steps=11700,
        batch_size=512,
        patch=8,
        optim=Optim(learning_rate=2e-4),
        training=Training(epochs=100, batch_size=512, learning_rate=1e-4, weight_decay=0.0),
        ema=None,
    )


def camvid_day_dusk() -> AdaptConfig:
    """Segmentation of street scenes, day to dusk, 160 by 120 pixels, on a CPU."""
    return AdaptConfig(
        source="npz:camvid_day_dusk_160x120.npz#day",
        target="npz:camvid_day_dusk_160x120.npz#dusk",
        classifier="small:segmenter",
        num_classes=11,
        ignore=11,
        epsilon=0.1,
        blocks=3,
        steps=300,
        batch_size=4,
        patch=8,
        patches=4,
        feature_stride=4,
        loss=LossWeights(source=1.0),
        optim=Optim(learning_rate=5e-4, schedule="cosine"),
        training=Training(epochs=35, batch_size=8),
        validate_every=50,
        validation_images=40,
    )


def gta5_cityscapes() -> AdaptConfig:
    """GTA5 to Cityscapes, for a GPU: data_root holds gta5/ and cityscapes/, the net is yours (file.py:function).

    The released code cuts 768 pixels out of the full size; here whole images are scaled to scene_size.
    """
    return AdaptConfig(
        source="gta5",
        target="cityscapes",
        classifier="drn26.py:drn26",
        num_classes=19,
        ignore=255,
        normalize="imagenet",
        epsilon=0.1,
        width=4,
        steps=2500,
        batch_size=8,
        accumulate=8,
        patch=64,
        loss=LossWeights(source=0.2),
        optim=Optim(learning_rate=2e-4, weight_decay=5e-3),
        validate_every=500,
        validation_images=50,
        workers=4,
        precision="bf16",
    )


PRESETS = {
    "digits": digits,
    "mnist-usps": mnist_usps,
    "usps-mnist": usps_mnist,
    "svhn-mnist": svhn_mnist,
    "camvid-day-dusk": camvid_day_dusk,
    "gta5-cityscapes": gta5_cityscapes,
}
