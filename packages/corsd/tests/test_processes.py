"""Two processes equal one, within 1e-9 in float64 over 20 steps, for every method and control."""

import pytest
import torch
import torch.distributed as dist
from corsd import (
    Distiller,
    RelationalDistiller,
    RelationalWeights,
    Variant,
    Weights,
    balanced_plan,
    with_views,
)
from corsd.baselines import (
    BAKE,
    CSKD,
    DKS,
    DLB,
    OLS,
    ONE,
    PSKD,
    SLA,
    ContrastiveSupervision,
    CrossEntropy,
    ExitMethod,
    MixedCrossEntropy,
    MixSKD,
)
from corsd.baselines.exit_method import EXIT_LOSSES
from corsd.pairs import class_pair_plan, last_batch_plan, triplet_plan
from shared_core.data.sampling import shuffled_plan
from shared_core.testing import run_ranks
from torch import Tensor, nn

IMAGES, BATCH, STEPS = 48, 24, 20
EXAMPLE = torch.zeros(2, 1, 8, 8)
STRONG = Weights(triplet=0.5, relation=0.5, logit_relation=0.5)


def group_norm_net() -> nn.Module:
    torch.manual_seed(0)

    def stage(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(4, b), nn.ReLU())

    return nn.Sequential(stage(1, 8), stage(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6))


def distiller(net, **options):
    options = {"weights": STRONG, "gather": True, **options}
    return Distiller(net, ["0", "1"], 6, EXAMPLE, norm="group", **options)


def relational(net, **options):
    return RelationalDistiller(net, ["0", "1"], 6, EXAMPLE, norm="group", **options)


ALL_TERMS = RelationalWeights(rows=0.5, row_distillation=0.5, ensemble=0.5, warmup_steps=5)

METHODS = {
    "corsd": distiller,
    "corsd triplets": lambda net: distiller(net, pairs="triplets"),
    "corsd exits": lambda net: distiller(net, exits="joint"),
    "corsd released": lambda net: distiller(net, variant=Variant(logit_relation="sum", prototype="ema")),
    "ce": lambda net: CrossEntropy(net, 6),
    "label_smoothing": lambda net: CrossEntropy(net, 6, 0.1),
    **{
        name: lambda net, name=name: ExitMethod(net, 6, name, ["0", "1"], EXAMPLE, 0.01, norm="group")
        for name in EXIT_LOSSES
    },
    "cs_kd": lambda net: CSKD(net, 6),
    "ps_kd": lambda net: PSKD(net, 6, IMAGES, STEPS * BATCH),
    "dlb": lambda net: DLB(net, 6, BATCH // 2),
    "corsd_v2": relational,
    "corsd_v2 all terms": lambda net: relational(net, weights=ALL_TERMS, mixing="cutmix"),
    "corsd_v2 balanced views": lambda net: relational(net, weights=ALL_TERMS),
    "corsd_v2 unmixed": lambda net: relational(net, weights=ALL_TERMS, mixing="off"),
    "dks": lambda net: DKS(net, 6, ["0", "1"], EXAMPLE, norm="group"),
    "contrastive": lambda net: ContrastiveSupervision(net, 6, ["0", "1"], EXAMPLE, norm="group"),
    "one": lambda net: ONE(net, 6, ["0", "1"], EXAMPLE, warmup_steps=5, norm="group"),
    "sla": lambda net: SLA(net, 6, ["0", "1"], EXAMPLE, norm="group"),
    "bake": lambda net: BAKE(net, 6, ["0", "1"], EXAMPLE),
    "ols": lambda net: OLS(net, 6, IMAGES),
    "mixskd": lambda net: MixSKD(net, 6, ["0", "1"], EXAMPLE, norm="group"),
    "mixup": lambda net: MixedCrossEntropy(net, 6, "mixup"),
    "cutmix": lambda net: MixedCrossEntropy(net, 6, "cutmix"),
}


def rows_of(name: str, labels: Tensor, epoch: int) -> Tensor:
    """The images of the (two or more) batches of an epoch."""
    if name == "corsd triplets":
        return triplet_plan(labels, BATCH // 3, 0)(epoch)[..., 0]
    if name == "corsd_v2 balanced views":
        return with_views(balanced_plan(labels, 3, 4, 0))(epoch)[..., 0]
    if name == "cs_kd":
        return class_pair_plan(labels, BATCH // 2, 0)(epoch)[..., 0]
    if name == "dlb":
        return last_batch_plan(IMAGES, BATCH // 2, 0)(epoch)[..., 0]
    return shuffled_plan(IMAGES, BATCH, 0)(epoch)[..., 0]


def twenty_steps(names: list[str]) -> dict[str, dict[str, Tensor]]:
    """The state of each method after twenty steps on this process's share of the global batches."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(IMAGES, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.arange(IMAGES) % 6
    states = {}
    for name in names:
        torch.manual_seed(0)
        method = METHODS[name](group_norm_net().double())
        method.double()
        model = nn.parallel.DistributedDataParallel(method) if world > 1 else method
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        step = epoch = 0
        while step < STEPS:
            for rows in rows_of(name, labels, epoch)[: STEPS - step]:
                mine = rows.view(world, -1)[rank]
                model(images[mine], labels[mine], mine).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
            epoch += 1
        states[name] = {key: value.clone() for key, value in method.state_dict().items()}
    return states


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, dict[str, Tensor]]]:
    return run_ranks(twenty_steps, 2, list(METHODS), timeout=300.0)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(name, two_processes):
    alone = twenty_steps([name])[name]
    for states in two_processes:
        for key, value in alone.items():
            torch.testing.assert_close(
                states[name][key], value, rtol=0, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
            )


SILENT = ("corsd", "ps_kd", "corsd_v2", "mixup", "one", "ols", "mixskd")
TABLES = {**{name: [] for name in SILENT}, "dlb": ["last", "last_index"]}
"""The buffers that DistributedDataParallel sends, by method."""


def buffers_sent() -> dict[str, list[str]]:
    sent = {}
    for name in TABLES:
        model = nn.parallel.DistributedDataParallel(METHODS[name](group_norm_net()))
        buffers = {id(buffer) for buffer in model.modules_buffers}
        sent[name] = [n for n, b in model.module.named_buffers() if id(b) in buffers]
    return sent


def test_tables_that_all_processes_compute_are_not_sent_at_every_step():
    for sent in run_ranks(buffers_sent, 2):
        assert sent == TABLES


def a_net_inside_of_ddp() -> str:
    net = nn.parallel.DistributedDataParallel(group_norm_net())
    assert CrossEntropy(net, 6)(torch.rand(6, 1, 8, 8), torch.arange(6)).loss.isfinite()
    try:
        distiller(net)
    except TypeError as error:
        return str(error)
    return ""


def test_a_net_inside_of_ddp_is_refused_with_the_remedy_where_modules_are_added():
    for message in run_ranks(a_net_inside_of_ddp, 2):
        assert (
            "give net.module, and wrap the whole: DistributedDataParallel(Distiller(net.module, ...))"
            in message
        )
