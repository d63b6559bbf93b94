"""What each name of ``config.method`` trains: the module around the net, and the images of its steps."""

import math

import torch
from shared_core.data.sampling import Plan, shuffled_plan
from shared_core.ops.gather import world_size
from torch import Tensor, nn

from corsd import baselines
from corsd.balanced import balanced_plan, with_views
from corsd.config import TrainConfig
from corsd.data import Data
from corsd.distiller import Distiller
from corsd.losses import Variant, Weights
from corsd.needs import compares_images
from corsd.pairs import class_pair_plan, last_batch_plan, triplet_plan
from corsd.relational import RelationalDistiller, RelationalWeights

PASSES = {"sla": 4, "mixskd": 2}
"""How many times the net sees each image of a batch: so many fewer are read, and budgets stay equal."""


def batch_plan(config: TrainConfig, labels: Tensor, seed: int) -> tuple[Plan, int]:
    """Which images each step reads, and how many of them in a row belong together."""
    processes, compares = world_size(), compares_images(config)
    per_class, views = (config.images_per_class_in_batch, config.views) if compares else (None, 1)
    if config.method == "ce_triplets" or (config.method == "corsd" and config.pairs == "triplets"):
        group, make = 3, lambda images: triplet_plan(labels, images // 3, seed)
    elif config.method == "cs_kd":
        group, make = 2, lambda images: class_pair_plan(labels, images // 2, seed)
    elif config.method == "dlb":
        group, make = 2, lambda images: last_batch_plan(len(labels), images // 2, seed)
    else:
        # Neighbours are mixed, so a pair is on one process, and all views of both images are with it.
        pairs = views > 1 or (processes > 1 and _mixes(config))
        group, make = (
            2 * views if pairs else 1,
            lambda images: _images(labels, images, per_class, views, seed),
        )
    passes = PASSES.get(config.method, 1)
    unit = math.lcm(group * processes, views * (per_class or 1)) * passes * config.accumulate
    if config.batch_size % unit:
        below = config.batch_size // unit * unit
        alike = f" with {per_class} images a class" if per_class else ""
        alike += f", each image {passes} times" if passes > 1 else ""
        raise ValueError(
            f"batch_size={config.batch_size} does not divide into {config.accumulate} parts on {processes} "
            f"processes of groups of {group}{alike}; choose {below or unit} or {below + unit}"
        )
    return make(config.batch_size // config.accumulate // passes), group


def _mixes(config: TrainConfig) -> bool:
    return config.method in ("mixup", "cutmix", "mixskd") or (
        config.method == "corsd_v2" and config.relational.mixing != "off"
    )


def _images(labels: Tensor, images: int, per_class: int | None, views: int, seed: int) -> Plan:
    """Batches of single images: shuffled, or balanced over classes; each in one or several views."""
    different = images // views
    if per_class is None:
        plan = shuffled_plan(len(labels), different, seed)
    else:
        plan = balanced_plan(labels, different // per_class, per_class, seed)
    return with_views(plan, views) if views > 1 else plan


def build_method(config: TrainConfig, net: nn.Module, data: Data, seed: int, steps: int) -> nn.Module:
    """The method that ``config.method`` names, around ``net``; called as method(images, labels, index)."""
    classes, size, r = data.num_classes, data.preprocess.size, config.relations
    example = torch.zeros(2, data.preprocess.channels, size, size)
    if config.method == "corsd":
        return Distiller(
            net,
            r.stages,
            classes,
            example,
            config.pairs,
            r.triplets_per_image,
            r.gather,
            r.norm,
            r.exits,
            Weights(**r.weights.model_dump()),
            Variant(**r.variant.model_dump()),
            seed,
        )
    v2 = config.relational
    if config.method == "corsd_v2":
        values = v2.model_dump(exclude={"ramp", "embedding", "mixing", "alpha"})
        weights = RelationalWeights(**values, warmup_steps=round(v2.ramp * steps))
        mixing = (v2.mixing, v2.alpha, v2.embedding)
        return RelationalDistiller(net, r.stages, classes, example, r.norm, weights, *mixing, seed)
    if config.method in ("mixup", "cutmix"):
        return baselines.MixedCrossEntropy(net, classes, config.method, v2.alpha, seed)
    if config.method in ("ce", "ce_triplets"):
        return baselines.CrossEntropy(net, classes)
    if config.method == "label_smoothing":
        return baselines.CrossEntropy(net, classes, config.label_smoothing)
    if config.method == "cs_kd":
        return baselines.CSKD(net, classes)
    if config.method == "ps_kd":
        return baselines.PSKD(net, classes, len(data.labels), steps * config.batch_size)
    if config.method == "dlb":
        return baselines.DLB(net, classes, config.batch_size // config.accumulate // 2)
    if config.method == "dks":
        return baselines.DKS(net, classes, r.stages, example, norm=r.norm)
    if config.method == "contrastive":
        return baselines.ContrastiveSupervision(net, classes, r.stages, example, norm=r.norm)
    if config.method == "one":
        return baselines.ONE(
            net, classes, r.stages, example, warmup_steps=round(v2.ramp * steps), norm=r.norm
        )
    if config.method == "sla":
        return baselines.SLA(net, classes, r.stages, example, norm=r.norm)
    if config.method == "bake":
        return baselines.BAKE(net, classes, r.stages, example)
    if config.method == "ols":
        return baselines.OLS(net, classes, len(data.labels))
    if config.method == "mixskd":
        return baselines.MixSKD(net, classes, r.stages, example, norm=r.norm, seed=seed)
    return baselines.ExitMethod(net, classes, config.method, r.stages, example, r.relation_weight, r.norm)
