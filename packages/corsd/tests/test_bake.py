"""BAKE: propagated labels against slow loops, as a walk that never ends."""

import math

import pytest
import torch
import torch.nn.functional as F
from corsd.baselines.bake import BAKE, propagated, propagation_distillation
from corsd.nets import small_resnet

BATCH, CLASSES = 5, 3


def features(count=BATCH):
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def logits(count=BATCH):
    return 3 * torch.randn(count, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def slow_softmax(row):
    powers = [math.exp(float(v)) for v in row]
    return [p / sum(powers) for p in powers]


def slow_propagated(f, z, omega, temperature, tau):
    """Q <- omega A Q + (1 - omega) P, again and again."""
    unit = [[float(v) / math.dist(row, [0] * len(row)) for v in row] for row in f.tolist()]
    count = len(unit)
    near = [[sum(map(math.prod, zip(a, b, strict=True))) / tau for b in unit] for a in unit]
    spread = []
    for a in range(count):
        others = [b for b in range(count) if b != a] or [a]
        shares = dict(zip(others, slow_softmax([near[a][b] for b in others]), strict=True))
        spread.append([shares.get(b, 0.0) for b in range(count)])
    own = [slow_softmax(row / temperature) for row in z]
    found = own
    for _ in range(200):
        found = [
            [
                omega * sum(spread[a][b] * found[b][k] for b in range(count)) + (1 - omega) * own[a][k]
                for k in range(z.shape[1])
            ]
            for a in range(count)
        ]
    return torch.tensor(found, dtype=torch.float64).reshape(count, z.shape[1])


@pytest.mark.parametrize(("omega", "temperature", "tau"), [(0.5, 4.0, 1.0), (0.9, 1.0, 0.1), (0.0, 2.0, 1.0)])
@pytest.mark.parametrize("count", [0, 1, 2, BATCH])
def test_propagation_equals_slow_loops(count, omega, temperature, tau):
    found = propagated(features(count), logits(count), omega, temperature, tau)
    expected = slow_propagated(features(count), logits(count), omega, temperature, tau)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones(count, dtype=torch.float64))


def slow_distillation(z, target, temperature):
    total = 0.0
    for row, p in zip(z, target.tolist(), strict=True):
        pairs = zip(p, slow_softmax(row / temperature), strict=True)
        total += sum(a * math.log(a / b) for a, b in pairs if a > 0)
    return temperature**2 * total / max(len(z), 1)


@pytest.mark.parametrize("count", [0, 1, BATCH])
def test_distillation_equals_slow_loops_also_for_a_certain_target(count):
    target = propagated(features(count), logits(count))
    certain = F.one_hot(torch.zeros(count, dtype=torch.int64), CLASSES).double()
    for q in (target, certain):
        value = propagation_distillation(logits(count), q)
        assert float(value) == pytest.approx(slow_distillation(logits(count), q, 4.0), rel=1e-9, abs=1e-12)


def test_gradient_reaches_the_student_alone():
    z, target = logits().requires_grad_(), propagated(features(), logits())
    assert not target.requires_grad
    assert torch.autograd.gradcheck(lambda x: propagation_distillation(x, target), [z])


def test_half_precision_is_computed_in_single():
    f, z = features().bfloat16(), logits().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        target = propagated(f, z)
        value = propagation_distillation(z, target)
    exact = slow_propagated(f.double(), z.double(), 0.5, 4.0, 1.0)
    torch.testing.assert_close(target.double(), exact, rtol=1e-4, atol=1e-5)
    assert float(value) == pytest.approx(slow_distillation(z.double(), exact, 4.0), rel=1e-3)


@pytest.mark.compile
def test_compiled_equals_eager():
    def loss(f, z):
        return propagation_distillation(z, propagated(f, z))

    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(features(), logits()), loss(features(), logits()))


@pytest.mark.usefixtures("as_a_user")
def test_wrong_settings_are_refused():
    for settings in ({"omega": 1.0}, {"temperature": 0.0}, {"tau": 0.0}):
        name, value = next(iter(settings.items()))
        with pytest.raises(ValueError, match=f"{name}={value}.*omega must be from 0"):
            propagated(features(), logits(), **settings)


def test_the_deepest_stage_says_who_is_alike():
    torch.manual_seed(0)
    images, labels = torch.rand(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 2, 2])
    net = small_resnet([1, 1, 1, 1], 8, 3)
    module = BAKE(net, 3, example=images).eval()
    out = module(images, labels)
    with module.capture:
        z = net(images)
    deepest = module.capture.pop()["layer4"].mean((2, 3))
    torch.testing.assert_close(
        out.parts["propagation"], propagation_distillation(z, propagated(deepest, z)), rtol=1e-4, atol=1e-6
    )
    assert list(module.state_dict()) == [f"net.{key}" for key in net.state_dict()]
