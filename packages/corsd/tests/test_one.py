"""ONE-like: the gated ensemble of stages against slow loops, and its ramp."""

import math

import pytest
import torch
import torch.nn.functional as F
from corsd.baselines.one import ONE, gated_ensemble
from corsd.ensemble import ensemble_distillation
from corsd.nets import small_resnet

STAGES, BATCH, CLASSES = 3, 4, 5


def logits(count=BATCH):
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(STAGES, count, CLASSES, dtype=torch.float64, generator=generator))


def gates(count=BATCH):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, STAGES, dtype=torch.float64, generator=generator)


def slow_ensemble(all_logits, gate_logits):
    rows = []
    for a, gate in enumerate(gate_logits.tolist()):
        weights = [math.exp(g) / sum(map(math.exp, gate)) for g in gate]
        columns = range(all_logits[0].shape[1])
        rows.append(
            [sum(w * float(z[a, k]) for w, z in zip(weights, all_logits, strict=True)) for k in columns]
        )
    return torch.tensor(rows, dtype=torch.float64).reshape(len(gate_logits), -1 if rows else CLASSES)


@pytest.mark.parametrize("count", [0, 1, BATCH])
def test_the_ensemble_equals_slow_loops(count):
    expected = slow_ensemble(logits(count), gates(count))
    torch.testing.assert_close(gated_ensemble(logits(count), gates(count)), expected, rtol=1e-12, atol=0)


def test_gradient_and_half_precision():
    inputs = [x.requires_grad_() for x in (gates(), *logits())]
    assert torch.autograd.gradcheck(lambda g, *z: gated_ensemble(z, g), inputs)
    half = [x.detach().bfloat16() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        value = gated_ensemble(half[1:], half[0])
    exact = slow_ensemble([z.double() for z in half[1:]], half[0].double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.compile
def test_compiled_equals_eager():
    compiled = torch.compile(lambda g, *z: gated_ensemble(z, g), fullgraph=True)
    torch.testing.assert_close(compiled(gates(), *logits()), gated_ensemble(logits(), gates()))


@pytest.mark.usefixtures("as_a_user")
def test_another_number_of_gates_is_refused():
    with pytest.raises(ValueError, match=r"gate_logits has shape \(4, 3\); it must be \(batch=4, stages=2\)"):
        gated_ensemble(logits()[:2], gates())


def test_the_parts_rise_with_the_steps_and_reach_the_gate():
    torch.manual_seed(0)
    images, labels = torch.rand(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 2, 2])
    module = ONE(small_resnet([1, 1, 1, 1], 8, 3), 3, example=images, warmup_steps=4).eval()
    out = module(images, labels)
    with module.capture:
        z = module.net(images)
    maps = list(module.capture.pop().values())
    stages = [*module.exits(maps[:-1]), z]
    teacher = gated_ensemble(stages, module.gate(maps[0].mean((2, 3))))
    torch.testing.assert_close(out.parts["ensemble_ce"], F.cross_entropy(teacher, labels))
    torch.testing.assert_close(out.parts["ensemble"], ensemble_distillation(stages, teacher, 3.0) / 4)
    assert int(module.steps) == 0
    module.train()
    module(images, labels).loss.backward()
    assert int(module.steps) == 1
    assert module.gate.weight.grad.abs().sum() > 0
