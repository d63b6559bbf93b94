"""Other people's nets: nothing of them changes by wrapping, and their outputs, labels and types fit or are named."""

import copy
import io
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torchvision.models as tv
from corsd import Distiller, RelationalDistiller, TripletDataset, find_stages
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
from corsd.frame import check_first_step
from corsd.nets import small_resnet
from corsd.relation import LogitRelation
from shared_core.testing import assert_same_state
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

LABELS = torch.tensor([0, 0, 1, 1, 0, 0])
EXAMPLE = torch.zeros(2, 3, 16, 16)


def images(count=6, **options):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(**options)


class Small(nn.Module):
    """Two stages and a head; what it returns is up to `wrap`."""

    def __init__(self, wrap=None, classes=2):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)
        self.norm, self.head, self.wrap = nn.BatchNorm2d(8), nn.Linear(8, classes), wrap

    def forward(self, x):
        logits = self.head(self.norm(self.second(self.first(x).relu())).mean((2, 3)))
        return self.wrap(logits) if self.wrap else logits


def methods(net, **options):
    stages = {"stages": ["first", "second"], "example": EXAMPLE}
    yield "corsd", Distiller(net, num_classes=2, **stages, **options)
    yield "exits", Distiller(net, num_classes=2, exits="joint", **stages, **options)
    yield "ce", CrossEntropy(net, 2, **options)
    for method in EXIT_LOSSES:
        yield method, ExitMethod(net, 2, method, **stages, **options)
    yield "cs_kd", CSKD(net, 2, **options)
    yield "ps_kd", PSKD(net, 2, 6, 12, **options)
    yield "dlb", DLB(net, 2, 3, **options)
    yield "corsd_v2", RelationalDistiller(net, num_classes=2, **stages, **options)
    yield "dks", DKS(net, 2, **stages, **options)
    yield "contrastive", ContrastiveSupervision(net, 2, **stages, **options)
    yield "one", ONE(net, 2, **stages, **options)
    yield "sla", SLA(net, 2, **stages, **options)
    yield "bake", BAKE(net, 2, **stages, **options)
    yield "ols", OLS(net, 2, 6, **options)
    yield "mixskd", MixSKD(net, 2, **stages, **options)
    yield "mixup", MixedCrossEntropy(net, 2, "mixup", **options)
    yield "cutmix", MixedCrossEntropy(net, 2, "cutmix", **options)


NAMES = [name for name, _ in methods(Small())]


def method(name, net, **options):
    torch.manual_seed(1)
    return next(made for other, made in methods(net, **options) if other == name)


# labels


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("name", NAMES)
def test_labels_of_any_integer_type_give_the_same_loss(name):
    index = torch.arange(6)
    expected = method(name, Small())(images(), LABELS, index).loss
    kinds = [LABELS.to(t) for t in (torch.int32, torch.int16, torch.uint8, torch.bool)]
    for labels in (*kinds, LABELS.tolist()):
        assert torch.equal(method(name, Small())(images(), labels, index.int()).loss, expected)
    with pytest.raises(TypeError, match=r"as of one-hot or soft labels: give labels.argmax\(1\)"):
        method(name, Small())(images(), nn.functional.one_hot(LABELS), index)
    with pytest.raises(TypeError, match=r"give labels.squeeze\(1\)"):
        method(name, Small())(images(), LABELS[:, None], index)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("kind", [list, "numpy", torch.uint8, torch.bool])
def test_triplet_data_set_takes_labels_of_any_kind(kind):
    labels = {list: LABELS.tolist(), "numpy": LABELS.numpy()}.get(kind)
    labels = LABELS.to(kind) if labels is None else labels
    _, found = TripletDataset([(image, 0) for image in images()], labels)[2]
    assert found == [1, 1, 0]


# nothing of the net changes


class Merging(nn.Linear):
    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


class Mixed(nn.Module):
    """Several types, a frozen part in eval mode, a layer that acts in train(), buffers that every pass moves."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3).bfloat16(), nn.Conv2d(8, 8, 3, 2)
        self.norm, self.drop, self.head = nn.BatchNorm2d(8).eval(), nn.Dropout(0.5), Merging(8, 2)
        self.register_buffer("table", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        x = self.second(self.first(x.bfloat16()).float())
        return self.head(self.drop(self.norm(x).mean((2, 3))))


@pytest.mark.parametrize("name", NAMES)
def test_wrapping_changes_nothing_of_the_net(name):
    net = Mixed()
    modes = [m.training for m in net.modules()]
    state = copy.deepcopy(net.state_dict())
    keys = set(vars(net))
    made = next(m for other, m in methods(net) if other == name)
    assert_same_state(dict(net.state_dict()), dict(state))
    assert [m.training for m in net.modules()] == modes
    assert not net.head.merged
    assert set(vars(net)) == keys
    made(images(), LABELS, torch.arange(6)).loss.backward()
    assert next(p.dtype for p in net.parameters()) == torch.bfloat16
    assert net.table.dtype == torch.float64
    assert all(p.grad is not None for p in net.parameters())


def test_the_dry_runs_draw_nothing_from_the_random_generators():
    net, draw = Mixed(), torch.get_rng_state()
    find_stages(net, EXAMPLE, ["first", "second"])
    check_first_step(net, EXAMPLE, None, 2)
    assert torch.equal(torch.get_rng_state(), draw)


class InPlace(Small):
    def forward(self, x):
        x -= 0.5
        return super().forward(x)


@pytest.mark.parametrize("name", NAMES)
def test_the_callers_images_stay_as_they_are(name):
    net = InPlace()
    batch = images()
    method(name, net)(batch, LABELS, torch.arange(6)).loss.backward()
    assert torch.equal(batch, images())
    assert torch.equal(EXAMPLE, torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("name", NAMES)
def test_a_used_method_can_be_copied_pickled_and_averaged(name):
    index = torch.arange(6)
    used = method(name, Small())
    used(images(), LABELS, index).loss.backward()
    used.zero_grad()
    averaged = AveragedModel(used, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    file = io.BytesIO()
    torch.save(used, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)  # noqa: TID251
    copied = copy.deepcopy(used)
    expected = used(images(), LABELS, index).loss
    for other in (copied, loaded, averaged.module):
        assert torch.equal(other(images(), LABELS, index).loss, expected)
        assert other.net is not used.net
    copied(images(), LABELS, index).loss.backward()
    assert copied.net.first.weight.grad is not None
    averaged.update_parameters(used)


# how nets run


class Checkpointed(Small):
    reentrant = False

    def forward(self, x):
        x = checkpoint(self.first, x.requires_grad_(), use_reentrant=self.reentrant)
        x = checkpoint(self.second, x.relu(), use_reentrant=self.reentrant)
        return self.head(self.norm(x).mean((2, 3)))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["corsd", "byot"])
def test_activation_checkpoints_give_the_same_gradients(name, reentrant):
    gradients = []
    for net in (Small(), Checkpointed()):
        net.reentrant = reentrant
        method(name, net)(images(), LABELS).loss.backward()
        gradients.append({n: p.grad for n, p in net.named_parameters()})
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_torchscript_works_where_no_stage_is_read_and_is_refused_elsewhere():
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    scripted = torch.jit.script(pooled)
    assert CrossEntropy(scripted, 2)(images(), LABELS).loss.isfinite()
    for make in (Distiller, lambda net, **o: ExitMethod(net, 2, "byot", **o)):
        with pytest.raises(TypeError, match=r"net is TorchScript.* give the nn.Module it was made from"):
            make(scripted, stages=["0"], example=EXAMPLE)


def test_data_parallel_wrappers_are_refused_with_the_remedy():
    for make in (Distiller, lambda net, **o: ExitMethod(net, 2, "byot", **o)):
        with pytest.raises(TypeError, match=r"inside of DataParallel already.* give net.module"):
            make(nn.DataParallel(Small()), stages=["first"], example=EXAMPLE)


def test_a_stage_under_its_second_name():
    net = Small()
    net.alias = net.second
    distiller = Distiller(net, stages=["first", "alias"], num_classes=2, example=EXAMPLE)
    assert distiller(images(), LABELS).loss.isfinite()


# outputs


class Fields(NamedTuple):
    logits: Tensor
    aux: Tensor | None


@dataclass
class Record:
    loss: Tensor | None
    logits: Tensor


WRAPS = {
    "dict": lambda z: {"features": z[:, :1], "logits": z},
    "named tuple": lambda z: Fields(z, None),
    "dataclass": lambda z: Record(None, z),
    "list of one": lambda z: [z],
    "out": lambda z: {"out": z, "aux": 2 * z},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrap", WRAPS)
def test_logits_are_found_by_name(name, wrap):
    index = torch.arange(6)
    expected = method(name, Small())(images(), LABELS, index).loss
    assert torch.equal(method(name, Small(WRAPS[wrap]))(images(), LABELS, index).loss, expected)


def test_logits_are_picked_as_said_or_what_there_is_is_listed():
    pair = lambda z: (z[:, :1], z)  # noqa: E731
    expected = method("corsd", Small())(images(), LABELS).loss
    for output in (1, -1, lambda out: out[1]):
        assert torch.equal(method("corsd", Small(pair), output=output)(images(), LABELS).loss, expected)
    with pytest.raises(
        ValueError, match=r"a tuple of 0: a tensor .*\(2, 1\), 1: a tensor .*\(2, 2\): say which"
    ):
        method("corsd", Small(pair))
    with pytest.raises(
        ValueError, match=r"output='scores' is not in what the net returns, a dict of 'features'"
    ):
        method("corsd", Small(WRAPS["dict"]), output="scores")
    with pytest.raises(ValueError, match=r"logits of shape \(2, 3\).*expected \(2, 2\)"):
        method("corsd", Small(classes=3))


def test_googlenet_trains_with_its_auxiliary_heads():
    net = tv.googlenet(num_classes=2, aux_logits=True, init_weights=False)
    distiller = Distiller(net, num_classes=2, example=torch.zeros(2, 3, 64, 64))
    out = distiller(torch.rand(4, 3, 64, 64), torch.tensor([0, 0, 1, 1]))
    assert out.logits.shape == (4, 2)
    out.loss.backward()


# types


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_nets_and_images_of_other_types_are_near_float32(name, dtype):
    index = torch.arange(6)
    expected = method(name, Small())(images(), LABELS, index)
    got = method(name, Small().to(dtype))(images(), LABELS, index)
    got.loss.backward()
    for part, value in expected.parts.items():
        assert got.parts[part].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), part
    if dtype == torch.float64:
        same = method(name, Small())(images(dtype=torch.float64), LABELS, index)
        torch.testing.assert_close(same.loss, expected.loss)


@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_every_method_is_near_float32(name):
    index = torch.arange(6)
    expected = method(name, Small())(images(), LABELS, index)
    with torch.autocast("cpu", torch.bfloat16):
        got = method(name, Small())(images(dtype=torch.float64), LABELS, index)
    got.loss.backward()
    for part, value in expected.parts.items():
        assert got.parts[part].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), part


def test_prototypes_stay_in_single_precision():
    relation = LogitRelation(3).bfloat16()
    assert relation.project.weight.dtype == torch.bfloat16
    assert relation.prototypes.dtype == torch.float32
    for _ in range(400):
        relation.update(torch.tensor([[30.0, 0.0, 0.0]], dtype=torch.bfloat16), torch.tensor([0]))
    assert relation.prototypes[0, 0].item() == pytest.approx(401)


@pytest.mark.parametrize("kind", ["mean", "ema", "sum"])
def test_prototypes_by_rows_equal_those_of_all_classes(kind):
    generator = torch.Generator().manual_seed(0)
    relation, labels = LogitRelation(7, kind), torch.tensor([1, 3, 1, 1, 6, 3])
    slow = torch.eye(7)
    for _ in range(3):
        logits = torch.randn(6, 7, generator=generator)
        relation.update(logits, labels)
        softmax = logits.softmax(1)
        for c in range(7):
            rows = softmax[labels == c]
            if len(rows):
                slow[c] = 0.99 * slow[c] + 0.01 * rows.mean(0) if kind == "ema" else slow[c] + rows.sum(0)
    torch.testing.assert_close(relation.prototypes, slow)


def test_odd_nets_small_resnet_in_evaluation_mode_stays_there():
    net = small_resnet([1, 1, 1, 1], 8, 4).eval()
    Distiller(net, num_classes=4, example=EXAMPLE)
    assert not any(m.training for m in net.modules())
