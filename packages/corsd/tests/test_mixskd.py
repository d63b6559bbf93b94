"""MixSKD: consistency of mixed images with their parts against slow loops, and what a batch costs."""

import math

import pytest
import torch
import torch.nn.functional as F
from corsd.baselines.mixskd import MixSKD, interpolated, mixed_logit_consistency, mixed_map_consistency
from corsd.mixing import mix, mixing_draws, two_hot_cross_entropy
from corsd.nets import small_resnet

BATCH, CLASSES = 5, 3
PARTNERS = [1, 0, 3, 2, 4]
LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


def lam(count=BATCH):
    return mixing_draws(0, 0, BATCH, 0.4)[:count, 0]


def logits(seed, count=BATCH):
    return torch.randn(count, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def maps(seed, count=BATCH):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 3, 3, dtype=torch.float64, generator=generator)


def slow_interpolated(x, share):
    last = len(x) - 1
    rows = [s * x[a] + (1 - s) * x[min(PARTNERS[a], last)] for a, s in enumerate(share.tolist())]
    return torch.stack(rows) if rows else x


def slow_softmax(row, temperature):
    powers = [math.exp(float(v) / temperature) for v in row]
    return [p / sum(powers) for p in powers]


def slow_consistency(mixed, plain, share, temperature):
    total = 0.0
    for z, u in zip(mixed, slow_interpolated(plain, share), strict=True):
        p, q = slow_softmax(z, temperature), slow_softmax(u, temperature)
        total += sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / max(len(mixed), 1)


@pytest.mark.parametrize("count", [0, 1, BATCH])
def test_losses_equal_slow_loops(count):
    share = lam(count)
    torch.testing.assert_close(interpolated(maps(0, count), share), slow_interpolated(maps(0, count), share))
    value = mixed_logit_consistency(logits(0, count), logits(1, count), share)
    assert float(value) == pytest.approx(
        slow_consistency(logits(0, count), logits(1, count), share, 3.0), rel=1e-10
    )
    difference = maps(0, count) - slow_interpolated(maps(1, count), share)
    squares = [v * v for v in difference.flatten().tolist()]
    assert float(mixed_map_consistency(maps(0, count), maps(1, count), share)) == pytest.approx(
        sum(squares) / max(len(squares), 1), rel=1e-10
    )


def test_both_directions_teach_with_detached_targets():
    mixed, plain = logits(0).requires_grad_(), logits(1).requires_grad_()
    mixed_logit_consistency(mixed, plain, lam(), 1.0).backward()
    p, u = mixed.detach().softmax(1), interpolated(plain.detach(), lam())
    torch.testing.assert_close(mixed.grad, (p - u.softmax(1)) / BATCH)
    towards = (u.softmax(1) - p) / BATCH
    share = lam()[:, None]
    torch.testing.assert_close(plain.grad, share * towards + ((1 - share) * towards)[PARTNERS])
    moved, kept = maps(0).requires_grad_(), maps(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: mixed_map_consistency(m, kept.detach(), lam()), [moved])
    mixed_map_consistency(moved, kept, lam()).backward()
    assert kept.grad is None


def test_half_precision_is_computed_in_single():
    mixed, plain, m, n = logits(0).bfloat16(), logits(1).bfloat16(), maps(0).bfloat16(), maps(1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = mixed_logit_consistency(mixed, plain, lam())
        square = mixed_map_consistency(m, n, lam())
    assert float(value) == pytest.approx(
        slow_consistency(mixed.double(), plain.double(), lam(), 3.0), rel=1e-4
    )
    exact = (m.double() - slow_interpolated(n.double(), lam())).square().mean()
    assert float(square) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.compile
def test_compiled_equals_eager():
    def loss(z, u, m, n, share):
        return mixed_logit_consistency(z, u, share) + mixed_map_consistency(m, n, share)

    given = logits(0), logits(1), maps(0), maps(1), lam()
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(*given), loss(*given))


def test_the_parts_are_those_of_plain_and_mixed_images():
    torch.manual_seed(0)
    x, seen = torch.rand(6, 3, 16, 16), []
    net = small_resnet([1, 1, 1, 1], 8, 3)
    # batch statistics fixed, so that one pass over both kinds equals two
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.0
    module = MixSKD(net, 3, example=x, norm="group", seed=5)
    net.eval()
    net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    out = module(x, LABELS)
    assert seen == [12]
    assert int(module.steps) == 1
    mixed, two_hot = mix(x, LABELS, "mixup", 0.4, 5, 0)
    found = []
    for images in (x, mixed):
        with module.capture:
            z = net(images)
        of_images = list(module.capture.pop().values())
        found.append(([*module.exits(of_images[:-1]), z], of_images))
    (plain, plain_maps), (blend, blend_maps) = found
    torch.testing.assert_close(out.logits, plain[-1])
    ce = [
        F.cross_entropy(a, LABELS) + two_hot_cross_entropy(b, two_hot)
        for a, b in zip(plain, blend, strict=True)
    ]
    torch.testing.assert_close(out.parts["ce"], ce[-1])
    torch.testing.assert_close(out.parts["exit_ce"], sum(ce[:-1]))
    kl = sum(mixed_logit_consistency(b, a, two_hot.lam) for a, b in zip(plain, blend, strict=True))
    torch.testing.assert_close(out.parts["mixed_kl"], kl, rtol=1e-4, atol=1e-5)
    squares = sum(
        mixed_map_consistency(b, a, two_hot.lam) for a, b in zip(plain_maps, blend_maps, strict=True)
    )
    torch.testing.assert_close(out.parts["mixed_maps"], squares, rtol=1e-4, atol=1e-6)


def test_nothing_is_mixed_in_evaluation_mode():
    torch.manual_seed(0)
    x = torch.rand(6, 3, 16, 16)
    module = MixSKD(small_resnet([1, 1, 1, 1], 8, 3), 3, example=x).eval()
    out = module(x, LABELS)
    assert out.parts["mixed_kl"].item() == pytest.approx(0, abs=1e-5)
    assert out.parts["mixed_maps"].item() == pytest.approx(0, abs=1e-10)
    assert int(module.steps) == 0


@pytest.mark.usefixtures("as_a_user")
def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"alpha is 0.*above 0"):
        MixSKD(small_resnet([1, 1, 1, 1], 8, 3), 3, alpha=0.0)
