"""SLA-style rotation heads: joint labels and aggregated logits against slow loops, and what a batch costs."""

import math

import pytest
import torch
import torch.nn.functional as F
from corsd.baselines.sla import SLA, aggregated, joint_cross_entropy, turned
from corsd.nets import small_resnet

LABELS = torch.tensor([0, 2, 1])
every_turns = pytest.mark.parametrize("turns", [2, 4])


def images(count=3, height=4, width=4):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 2, height, width, generator=generator, dtype=torch.float64)


def joint(turns, count=3, classes=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(turns * count, turns * classes, generator=generator, dtype=torch.float64)


@every_turns
def test_images_are_turned_counter_clockwise_upright_first(turns):
    x, size = images(), 4
    found = turned(x, turns)
    assert torch.equal(found[:3], x)
    for j in range(turns):
        for a in range(3):
            for row in range(size):
                for column in range(size):
                    r, c = row, column
                    for _ in range(j * (4 // turns)):
                        r, c = size - 1 - c, r  # a quarter turn counter-clockwise
                    assert torch.equal(found[3 * j + a, :, r, c], x[a, :, row, column])


def slow_joint(q, labels, turns):
    total = 0.0
    for row, values in enumerate(q.tolist()):
        j, a = divmod(row, len(labels))
        total += math.log(sum(map(math.exp, values))) - values[int(labels[a]) * turns + j]
    return total / max(len(q), 1)


def slow_aggregated(q, turns):
    count, classes = len(q) // turns, q.shape[1] // turns
    rows = [
        [sum(float(q[j * count + a, k * turns + j]) for j in range(turns)) / turns for k in range(classes)]
        for a in range(count)
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(count, classes)


@every_turns
@pytest.mark.parametrize("count", [0, 1, 3])
def test_losses_equal_slow_loops(turns, count):
    q, labels = joint(turns, count), LABELS[:count]
    assert float(joint_cross_entropy(q, labels, turns)) == pytest.approx(
        slow_joint(q, labels, turns), rel=1e-12
    )
    torch.testing.assert_close(aggregated(q, turns), slow_aggregated(q, turns), rtol=1e-12, atol=1e-15)


def test_gradient_and_half_precision():
    q = joint(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: joint_cross_entropy(x, LABELS), [q])
    assert torch.autograd.gradcheck(aggregated, [q])
    half = joint(4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value, mean = joint_cross_entropy(half, LABELS), aggregated(half)
    assert float(value) == pytest.approx(slow_joint(half.double(), LABELS, 4), rel=1e-5)
    torch.testing.assert_close(mean.double(), slow_aggregated(half.double(), 4), rtol=1e-5, atol=1e-6)


@pytest.mark.compile
def test_compiled_equals_eager():
    def loss(x, q):
        return turned(x).sum() + joint_cross_entropy(q, LABELS) + aggregated(q).square().sum()

    torch.testing.assert_close(
        torch.compile(loss, fullgraph=True)(images(), joint(4)), loss(images(), joint(4))
    )


@pytest.mark.usefixtures("as_a_user")
def test_images_that_cannot_be_turned_are_refused():
    with pytest.raises(ValueError, match=r"turns=3; choose 4 .* or 2"):
        turned(images(), 3)
    with pytest.raises(ValueError, match=r"square; got shape \(3, 2, 4, 6\): give square images, or turns=2"):
        turned(images(width=6))
    assert turned(images(width=6), 2).shape == (6, 2, 4, 6)
    with pytest.raises(ValueError, match=r"turns=4 needs images \(batch, channels.*got shape \(3, 32\)"):
        turned(images().flatten(1))


@every_turns
def test_the_upright_images_are_scored_and_the_deepest_head_teaches(turns):
    torch.manual_seed(0)
    x, seen = torch.rand(3, 3, 16, 16), []
    net = small_resnet([1, 1, 1, 1], 8, 3)
    module = SLA(net, 3, example=x, turns=turns).eval()
    net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    out = module(x, LABELS)
    assert seen == [3 * turns]
    torch.testing.assert_close(out.logits, net(x))
    torch.testing.assert_close(out.parts["ce"], F.cross_entropy(net(x), LABELS))
    with module.capture:
        net(turned(x, turns))
    maps = list(module.capture.pop().values())
    heads = [*module.joint_exits(maps[:-1]), module.joint(maps[-1].mean((2, 3)))]
    ce = sum(joint_cross_entropy(q, LABELS, turns) for q in heads)
    torch.testing.assert_close(out.parts["joint_ce"], ce)
    p, log_q = aggregated(heads[-1], turns).softmax(1), out.logits.log_softmax(1)
    torch.testing.assert_close(out.parts["joint_kl"], (p * (p.log() - log_q)).sum(1).mean())
    # the teacher is detached: its head learns from labels alone
    out.parts["joint_kl"].backward()
    assert module.joint.weight.grad is None
    assert net.layer1[0].conv1.weight.grad.abs().sum() > 0
