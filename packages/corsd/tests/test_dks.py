"""DKS: every stage teaches every other, against slow loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from corsd.baselines.dks import DKS, pairwise_distillation
from corsd.nets import small_resnet

STAGES, BATCH, CLASSES = 3, 4, 5


def logits(count=BATCH):
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(STAGES, count, CLASSES, dtype=torch.float64, generator=generator))


def slow_softmax(row, temperature):
    powers = [math.exp(float(v) / temperature) for v in row]
    return [p / sum(powers) for p in powers]


def slow_pairs(all_logits, temperature):
    total = 0.0
    for i, student in enumerate(all_logits):
        for j, teacher in enumerate(all_logits):
            for a in range(len(student) if i != j else 0):
                p, q = slow_softmax(teacher[a], temperature), slow_softmax(student[a], temperature)
                total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / len(student)
    return temperature**2 * total


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("count", [0, 1, BATCH])
def test_pairs_equal_slow_loops(count, temperature):
    value = pairwise_distillation(logits(count), temperature)
    assert float(value) == pytest.approx(slow_pairs(logits(count), temperature), rel=1e-12)


def test_one_stage_has_no_partner():
    assert float(pairwise_distillation(logits()[:1])) == 0


def test_the_gradient_of_a_stage_is_that_of_a_student_alone():
    z = [x.requires_grad_() for x in logits()]
    pairwise_distillation(z).backward()
    others = [x.detach() for x in z]
    # d KL(p || softmax(z)) / dz = softmax(z) - p, summed over the two teachers
    for i, x in enumerate(z):
        p = sum(others[j].softmax(1) for j in range(STAGES) if j != i)
        torch.testing.assert_close(x.grad, (2 * others[i].softmax(1) - p) / BATCH)


def test_half_precision_is_computed_in_single():
    z = [x.bfloat16() for x in logits()]
    with torch.autocast("cpu", torch.bfloat16):
        value = pairwise_distillation(z)
    assert float(value) == pytest.approx(slow_pairs([x.double() for x in z], 1.0), rel=1e-4)


@pytest.mark.compile
def test_compiled_equals_eager():
    compiled = torch.compile(lambda *z: pairwise_distillation(z), fullgraph=True)
    torch.testing.assert_close(compiled(*logits()), pairwise_distillation(logits()))


@pytest.mark.usefixtures("as_a_user")
def test_no_stage_or_a_wrong_temperature_is_refused():
    with pytest.raises(ValueError, match="got the logits of 0 stages; give those of at least one"):
        pairwise_distillation([])
    with pytest.raises(ValueError, match="temperature=0"):
        pairwise_distillation(logits(), 0)


def test_the_parts_are_the_losses_of_the_exits():
    torch.manual_seed(0)
    images, labels = torch.rand(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 2, 2])
    module = DKS(small_resnet([1, 1, 1, 1], 8, 3), 3, example=images, weight=0.5).eval()
    out = module(images, labels)
    with module.capture:
        z = module.net(images)
    exits = module.exits(list(module.capture.pop().values())[:-1])
    torch.testing.assert_close(out.parts["ce"], F.cross_entropy(z, labels))
    torch.testing.assert_close(out.parts["exit_ce"], sum(F.cross_entropy(e, labels) for e in exits))
    torch.testing.assert_close(out.parts["exit_kl"], pairwise_distillation([*exits, z]) / 2)
