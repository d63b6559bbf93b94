"""Every loss against slow loops in float64, its gradient, its small cases, half precision and compilation."""

import math

import pytest
import torch
from corsd import losses
from corsd.losses import Variant, Weights

PAIRS, CLASSES = 5, 4


def _softmax(row, temperature=1.0):
    top = max(float(v) for v in row)
    powers = [math.exp((float(v) - top) / temperature) for v in row]
    return [p / sum(powers) for p in powers]


def _logits(seed, scale=2.0):
    return scale * torch.randn(
        PAIRS, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def _labels(seed):
    return torch.randint(CLASSES, (PAIRS,), generator=torch.Generator().manual_seed(seed))


def slow_triplet_hinge(same, other, margin):
    return sum(max(0.0, float(s) - float(o) + margin) for s, o in zip(same, other, strict=True)) / len(same)


def slow_pair_cross_entropy(logits, first, second):
    total = 0.0
    for row, a, b in zip(logits, first.tolist(), second.tolist(), strict=True):
        two_hot = [0.5 * (k == a) + 0.5 * (k == b) for k in range(CLASSES)]
        total -= sum(t * math.log(p) for t, p in zip(two_hot, _softmax(row), strict=True))
    return total / len(logits)


def slow_softmaxed_pair_cross_entropy(logits, first, second, temperature):
    total = 0.0
    for row, a, b in zip(logits, first.tolist(), second.tolist(), strict=True):
        two_hot = [0.5 * (k == a) + 0.5 * (k == b) for k in range(CLASSES)]
        target = _softmax(two_hot, temperature)
        total -= sum(t * math.log(p) for t, p in zip(target, _softmax(row, temperature), strict=True))
    return total / len(logits)


def slow_auxiliary_distillation(shallow, deep, temperature):
    total = 0.0
    for s, d in zip(shallow, deep, strict=True):
        p, q = _softmax(d, temperature), _softmax(s, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(shallow)


def slow_raw_logit_divergence(shallow, deep):
    total = 0.0
    for s, d in zip(shallow.flatten().tolist(), deep.flatten().tolist(), strict=True):
        total += d * (math.log(d) - s) if d > 0 else 0.0
    return total / shallow.numel()


def slow_relation_distillation(shallow, deep):
    return sum((float(s) - float(d)) ** 2 for s, d in zip(shallow, deep, strict=True)) / len(shallow)


CASES = {
    "triplet_hinge": (
        losses.triplet_hinge,
        slow_triplet_hinge,
        lambda: [_logits(1)[:, 0], _logits(2)[:, 0], 0.3],
    ),
    "pair_cross_entropy": (
        losses.pair_cross_entropy,
        slow_pair_cross_entropy,
        lambda: [_logits(1), _labels(2), _labels(3)],
    ),
    "softmaxed_pair_cross_entropy": (
        losses.softmaxed_pair_cross_entropy,
        slow_softmaxed_pair_cross_entropy,
        lambda: [_logits(1), _labels(2), _labels(3), 3.0],
    ),
    "auxiliary_distillation": (
        losses.auxiliary_distillation,
        slow_auxiliary_distillation,
        lambda: [_logits(1), _logits(2), 3.0],
    ),
    "raw_logit_divergence": (
        losses.raw_logit_divergence,
        slow_raw_logit_divergence,
        lambda: [_logits(1), _logits(2)],
    ),
    "relation_distillation": (
        losses.relation_distillation,
        slow_relation_distillation,
        lambda: [_logits(1)[:, 0].sigmoid(), _logits(2)[:, 0].sigmoid()],
    ),
}
every_loss = pytest.mark.parametrize(("loss", "slow", "arguments"), CASES.values(), ids=CASES)


@every_loss
def test_equals_slow_loops(loss, slow, arguments):
    values = arguments()
    assert float(loss(*values)) == pytest.approx(slow(*values), rel=1e-12)


@every_loss
def test_gradient(loss, slow, arguments):
    values = [
        v.requires_grad_() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for v in arguments()
    ]
    assert torch.autograd.gradcheck(loss, values)


@every_loss
def test_one_pair(loss, slow, arguments):
    values = [v[:1] if isinstance(v, torch.Tensor) else v for v in arguments()]
    assert float(loss(*values)) == pytest.approx(slow(*values), rel=1e-12)


@every_loss
def test_half_precision_is_computed_in_single(loss, slow, arguments):
    values = [
        v.bfloat16() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in arguments()
    ]
    exact = loss(
        *[v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values]
    )
    assert float(loss(*values)) == pytest.approx(float(exact), rel=1e-2, abs=1e-3)


@every_loss
@pytest.mark.compile
def test_compiled_equals_eager(loss, slow, arguments):
    values = arguments()
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(*values), loss(*values))


def test_same_class_pair_is_plain_cross_entropy():
    logits, labels = _logits(1), _labels(2)
    torch.testing.assert_close(
        losses.pair_cross_entropy(logits, labels, labels), torch.nn.functional.cross_entropy(logits, labels)
    )


def test_distillation_is_zero_for_equal_logits_and_shift_invariant():
    logits = _logits(1)
    assert float(losses.auxiliary_distillation(logits, logits + 7)) == pytest.approx(0, abs=1e-12)


def test_margin_one_never_closes_the_hinge():
    same, other = torch.rand(100), torch.rand(100)
    torch.testing.assert_close(losses.triplet_hinge(same, other, 1.0), (same - other + 1).mean())


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0]])
    first, second = torch.tensor([0]), torch.tensor([1])
    assert losses.pair_cross_entropy(logits, first, second).isfinite()
    assert losses.auxiliary_distillation(logits, -logits).isfinite()


@pytest.mark.usefixtures("as_a_user")
def test_weights_name_the_bad_one():
    with pytest.raises(ValueError, match=r"weights.triplet is -1.*finite number from 0 up"):
        Weights(triplet=-1)
    with pytest.raises(ValueError, match=r"weights.relation is nan"):
        Weights(relation=float("nan"))


@pytest.mark.usefixtures("as_a_user")
def test_variant_temperature():
    with pytest.raises(ValueError, match=r"temperature is 0; it must be above 0"):
        Variant(temperature=0)


def test_released_variant_differs_in_every_switch_that_the_page_lists():
    released, intended = vars(Variant.released()), vars(Variant())
    changed = {name for name in released if released[name] != intended[name]}
    assert changed == {"detach_teacher", "aux_kl", "soft_label", "logit_relation", "prototype", "deepest_ce"}
