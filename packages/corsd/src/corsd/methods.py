"""What each name of ``config.method`` trains: the module around the net, and the images of its steps."""

import torch
from shared_core.data.sampling import Plan, shuffled_plan
from shared_core.ops.gather import world_size
from torch import Tensor, nn

from corsd import baselines
from corsd.config import TrainConfig
from corsd.data import Data
from corsd.distiller import Distiller
from corsd.losses import Variant, Weights
from corsd.pairs import class_pair_plan, last_batch_plan, triplet_plan
from corsd.relational import RelationalDistiller, RelationalWeights


def batch_plan(config: TrainConfig, labels: Tensor, seed: int) -> tuple[Plan, int]:
    """Which images each step reads, and how many of them in a row belong together."""
    images = config.batch_size // config.accumulate
    if config.method == "ce_triplets" or (config.method == "corsd" and config.pairs == "triplets"):
        group, make = 3, triplet_plan
    elif config.method == "cs_kd":
        group, make = 2, class_pair_plan
    elif config.method == "dlb":
        group, make = 2, lambda _labels, count, seed: last_batch_plan(len(labels), count, seed)
    else:
        group, make = 1, lambda _labels, count, seed: shuffled_plan(len(labels), count, seed)
    unit = group * config.accumulate * world_size()
    if config.batch_size % unit:
        below = config.batch_size // unit * unit
        raise ValueError(
            f"batch_size={config.batch_size} does not divide into {config.accumulate} parts on {world_size()} "
            f"processes of groups of {group}; choose {below or unit} or {below + unit}"
        )
    return make(labels, images // group, seed), group


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
    return baselines.ExitMethod(net, classes, config.method, r.stages, example, r.relation_weight, r.norm)
