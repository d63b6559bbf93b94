"""The ensemble of stages and its distillation against slow loops."""

import math

import pytest
import torch
from corsd.ensemble import ensemble_distillation, ramp, stage_ensemble

STAGES, BATCH, CLASSES = 3, 4, 5


def logits(count=BATCH):
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(STAGES, count, CLASSES, dtype=torch.float64, generator=generator))


def slow_softmax(row, temperature):
    powers = [math.exp(float(v) / temperature) for v in row]
    return [p / sum(powers) for p in powers]


def slow_distillation(all_logits, teacher, temperature):
    total = 0.0
    for z in all_logits:
        for row, t in zip(z, teacher, strict=True):
            pairs = zip(slow_softmax(t, temperature), slow_softmax(row, temperature), strict=True)
            total += temperature**2 * sum(p * math.log(p / q) for p, q in pairs) / len(teacher)
    return total


def test_ensemble_equals_slow_loops():
    z, weights = logits(), [1, 2, 4]
    for row in range(BATCH):
        for k in range(CLASSES):
            mean = sum(w * float(x[row, k]) for w, x in zip(weights, z, strict=True)) / 7
            assert float(stage_ensemble(z, 2.0)[row, k]) == pytest.approx(mean, rel=1e-12)


def test_distillation_equals_slow_loops():
    z = logits()
    teacher = stage_ensemble(z)
    expected = slow_distillation(z, teacher, 3.0)
    assert float(ensemble_distillation(z, teacher)) == pytest.approx(expected, rel=1e-12)


def test_gradient_reaches_every_stage_and_not_the_teacher():
    z = [x.requires_grad_() for x in logits()]
    teacher = stage_ensemble(z).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: ensemble_distillation(x, teacher), z)
    ensemble_distillation(z, teacher).backward()
    assert teacher.grad is None
    assert all(x.grad.abs().sum() > 0 for x in z)


@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_one_image(count):
    z = logits(count)
    teacher = stage_ensemble(z)
    expected = slow_distillation(z, teacher, 3.0)
    assert float(ensemble_distillation(z, teacher)) == pytest.approx(expected, rel=1e-12)


def test_half_precision_is_computed_in_single():
    z = [x.bfloat16() for x in logits()]
    exact = [x.double() for x in z]
    with torch.autocast("cpu", torch.bfloat16):
        value = ensemble_distillation(z, stage_ensemble(z))
    expected = float(ensemble_distillation(exact, stage_ensemble(exact)))
    assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.compile
def test_compiled_equals_eager():
    def loss(*z):
        return ensemble_distillation(z, stage_ensemble(z))

    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(*logits()), loss(*logits()))


def test_ramp_rises_and_stays():
    assert [ramp(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert ramp(0, 0) == 1


@pytest.mark.usefixtures("as_a_user")
def test_no_stage_or_a_wrong_beta_is_refused():
    with pytest.raises(ValueError, match="needs a stage and beta above 0; got 0 stages"):
        stage_ensemble([])
    with pytest.raises(ValueError, match="beta=0"):
        stage_ensemble(logits(), 0)
