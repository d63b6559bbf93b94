"""What a run of ``corsd train`` is: one frozen, validated record, read from YAML and flags, saved beside it.

Presets are functions that return a :class:`TrainConfig`.  Nothing here imports torch.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from shared_core.run.config import Config, Seed
from tyro.conf import Suppress

Method = Literal[
    "corsd",
    "ce",
    "ce_triplets",
    "label_smoothing",
    "deep_supervision",
    "byot",
    "byot_tpami",
    "rkd",
    "sp",
    "pkt",
    "cs_kd",
    "ps_kd",
    "dlb",
    "corsd_v2",
    "mixup",
    "cutmix",
    "dks",
    "contrastive",
    "one",
    "sla",
    "bake",
    "ols",
    "mixskd",
]


class Optim(Config):
    """Stochastic gradient descent; the same for every method of a run."""

    lr: float = Field(0.1, gt=0, allow_inf_nan=False, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    schedule: Literal["onecycle", "cosine", "constant"] = Field(
        "onecycle", description="One cycle (the released code's), cosine after a warm-up, or constant."
    )
    warmup: float = Field(0.3, ge=0, lt=1, description="Share of the steps in which the rate rises.")


class LossWeights(Config):
    """The weights of corsd.Weights, with the same defaults."""

    triplet: float = Field(default=0.01, ge=0)
    same_ce: float = Field(default=0.04, ge=0)
    same_kl: float = Field(default=0.16, ge=0)
    other_ce: float = Field(default=0.01, ge=0)
    other_kl: float = Field(default=0.04, ge=0)
    relation: float = Field(default=0.01, ge=0)
    logit_relation: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=0, ge=0)


class LossVariant(Config):
    """The readings of corsd.Variant, with the same defaults."""

    detach_teacher: bool = True
    aux_kl: Literal["temperature", "raw_logits"] = "temperature"
    soft_label: Literal["two_hot", "softmaxed"] = "two_hot"
    logit_relation: Literal["mean", "sum", "off"] = "mean"
    prototype: Literal["mean", "ema", "sum"] = "mean"
    deepest_ce: Literal["full", "reduced"] = "full"
    attention: bool = False
    temperature: float = Field(default=3.0, gt=0)
    margin: float = Field(default=1.0, ge=0)


class Relations(Config):
    """How the relational methods see the net and the batch; ``relation_weight`` is of rkd, sp and pkt."""

    stages: list[str] | Literal["auto"] = "auto"
    triplets_per_image: float = Field(1 / 3, gt=0)
    gather: bool = Field(False, description="In-batch pairs range over the batches of all processes.")
    norm: Literal["batch", "group"] = "batch"
    exits: Literal["off", "detached", "joint"] = "off"
    relation_weight: float = Field(1.0, ge=0)
    weights: LossWeights = LossWeights()
    variant: LossVariant = LossVariant()


class Relational(Config):
    """Second version (method corsd_v2): corsd.RelationalWeights and mixing; ``alpha`` is of mixup and cutmix too."""

    deep_supervision: float = Field(1.0, ge=0, allow_inf_nan=False)
    rows: float = Field(0.1, ge=0, allow_inf_nan=False, description="Weight of the learned relation rows.")
    row_distillation: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Weight of deep rows teaching shallow ones."
    )
    ensemble: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Weight of the ensemble of stages teaching all of them."
    )
    tau: float = Field(0.1, gt=0, allow_inf_nan=False, description="Temperature of the rows.")
    temperature: float = Field(3.0, gt=0, allow_inf_nan=False, description="Temperature of the ensemble.")
    beta: float = Field(
        1.6, gt=0, allow_inf_nan=False, description="How much more a deeper stage counts in it."
    )
    ramp: float = Field(
        0.2, ge=0, le=1, description="Share of the steps in which both distillations rise to their weight."
    )
    embedding: int = Field(128, ge=1, description="Width of the embeddings that relations compare.")
    mixing: Literal["off", "mixup", "cutmix"] = "mixup"
    alpha: float = Field(1.0, gt=0, allow_inf_nan=False, description="Mixing draws from Beta(alpha, alpha).")


class TrainConfig(Config):
    """Train a classifier with CORSD, and its controls on the same number of images."""

    data: str = Field(
        "digits",
        description="digits | mnist | usps | svhn | cifar10 | cifar100 | fashion-mnist | cub200 | "
        "imagefolder:PATH | npz:PATH[#prefix] | hf:NAME",
    )
    data_root: Path | None = Field(None, description="Folder of the torchvision data sets.")
    download: bool = Field(False, description="Let torchvision download into data_root.")
    model: str = Field(
        "small:resnet10",
        description="small:resnet10|resnet18|resnet50|resnet101|wrn16-8|wrn28-10|mobilenet-v2 | "
        "torchvision:NAME | timm:NAME | file.py:function",
    )
    weights: Path | None = Field(None, description="Weights to start from (safetensors).")
    pretrained: bool = Field(False, description="Start from torchvision's or timm's published weights.")
    method: Method = "corsd"
    controls: list[Method] = Field([], description="Other methods to train in the same run.")
    seeds: list[Seed] = Field([0], description="One training per method and seed.")
    epochs: float = Field(
        20, gt=0, description="Budget: images seen, in training-set sizes, for every method."
    )
    batch_size: int = Field(96, ge=2, description="Images per step over all processes.")
    pairs: Literal["in_batch", "triplets"] = Field("in_batch", description="Where CORSD's pairs come from.")
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = Field(False, description="torch.compile the net.")

    # From here on in the YAML file only.
    new_head: Suppress[bool] = Field(
        False, description="Leave the last layer of the weights out: it starts fresh, for other classes."
    )
    width: Suppress[int | None] = Field(None, ge=4, description="First stage's channels of small:* nets.")
    image_size: Suppress[int | None] = Field(
        None, ge=8, description="Side of the images; small sets keep theirs."
    )
    views: Suppress[int] = Field(
        1, ge=1, le=8, description="Augmented views of each image in a batch; the budget counts all of them."
    )
    images_per_class_in_batch: Suppress[int | None] = Field(
        None, ge=1, description="Class-balanced batches with so many images of a class; default: any images."
    )
    augment: Suppress[Literal["crop_flip", "crop", "flip", "imagenet", "none"]] = "crop_flip"
    images_per_class: Suppress[int | None] = Field(
        None, ge=1, description="Train on the first n of each class."
    )
    validation: Suppress[float] = Field(
        0.0, ge=0, lt=1, description="Share of the training set held out to choose on."
    )
    on_bad: Suppress[Literal["raise", "skip"]] = "raise"
    workers: Suppress[int] = Field(0, ge=0)
    threads: Suppress[int | None] = Field(
        None, ge=1, description="Threads of a process on a CPU; small nets want 1."
    )
    accumulate: Suppress[int] = Field(1, ge=1, description="Parts a batch is computed in.")
    channels_last: Suppress[bool] = True
    clip_grad_norm: Suppress[float | None] = Field(None, gt=0)
    on_nonfinite: Suppress[Literal["error", "skip"]] = "error"
    label_smoothing: Suppress[float] = Field(0.1, gt=0, lt=1, description="Of the method label_smoothing.")
    log_every: Suppress[int] = Field(20, ge=1, description="Steps between lines of metrics.jsonl.")
    evaluate_every: Suppress[int | None] = Field(
        None,
        ge=1,
        description="Steps between validations, and between looks at the relations; default: an epoch.",
    )
    checkpoint_every: Suppress[int] = Field(200, ge=1)
    tracker: Suppress[Literal["none", "tensorboard", "wandb"]] = "none"
    optim: Suppress[Optim] = Optim()
    relations: Suppress[Relations] = Relations()
    relational: Suppress[Relational] = Relational()

    @field_validator("seeds", mode="after")
    @classmethod
    def _some_seeds(cls, seeds: list[int]) -> list[int]:
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError("give at least one seed, none twice")
        return seeds


def digits() -> TrainConfig:
    """Real handwritten digits of scikit-learn, 20 images per class: CORSD beside two controls in minutes."""
    return TrainConfig(
        data="digits",
        model="small:resnet10",
        width=16,
        augment="crop",
        controls=["ce", "deep_supervision"],
        seeds=[0, 1, 2],
        images_per_class=20,
        epochs=75,
        batch_size=60,
        checkpoint_every=100,
        log_every=10,
        threads=1,
    )


def cifar100_small() -> TrainConfig:
    """CIFAR-100 for two CPU cores: a ResNet-18 of width 16 on 100 images per class."""
    return TrainConfig(
        data="cifar100",
        model="small:resnet18",
        width=16,
        images_per_class=100,
        controls=["ce"],
        epochs=40,
        threads=1,
    )


def cifar100() -> TrainConfig:
    """The recipe of the released code: ResNet-18 or another ``small:`` net, triplets, 300 epochs of images.

    These are 100 epochs over the anchors.
    """
    return TrainConfig(
        data="cifar100",
        model="small:resnet18",
        pairs="triplets",
        epochs=300,
        batch_size=129,
        workers=4,
    )


def imagenet() -> TrainConfig:
    """ResNet-18 on an ImageNet folder (train/ and val/); the paper gives no recipe, so this is the usual one."""
    return TrainConfig(
        data="imagefolder:imagenet",
        model="torchvision:resnet18",
        image_size=224,
        augment="imagenet",
        epochs=100,
        batch_size=258,
        workers=8,
        precision="bf16",
        optim=Optim(weight_decay=1e-4, schedule="cosine", warmup=0.05),
    )


def cub200() -> TrainConfig:
    """CUB-200-2011 in its official split (data_root holds CUB_200_2011/); the usual recipe for it."""
    return TrainConfig(
        data="cub200",
        model="torchvision:resnet18",
        image_size=224,
        augment="imagenet",
        epochs=200,
        batch_size=33,
        workers=8,
        on_bad="raise",
        optim=Optim(lr=0.1, weight_decay=1e-4, schedule="cosine", warmup=0.05),
    )


PRESETS = {
    "digits": digits,
    "cifar100-small": cifar100_small,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "cub200": cub200,
}
