"""The controls: relations against slow loops, the published weights, and the batches that each needs."""

import math

import pytest
import torch
from corsd import baselines
from corsd.baselines import CSKD, DLB, PSKD, CrossEntropy, ExitMethod
from corsd.nets import small_resnet

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def net():
    torch.manual_seed(0)
    return small_resnet([1, 1, 1, 1], 8, 4)


def images(count=6):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _features(seed, count=5, width=3):
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _huber(a, b):
    d = abs(a - b)
    return 0.5 * d * d if d < 1 else d - 0.5


def slow_rkd(student, teacher):
    n = len(student)

    def distances(x):
        d = [[math.dist(a.tolist(), b.tolist()) for b in x] for a in x]
        mean = sum(map(sum, d)) / (n * (n - 1))
        return [[v / mean for v in row] for row in d]

    def angle(x, a, i, j):
        u, v = x[i] - x[a], x[j] - x[a]
        lengths = float(u.norm() * v.norm())
        return float(u @ v) / lengths if lengths else 0.0

    s, t = distances(student), distances(teacher)
    distance = sum(_huber(s[i][j], t[i][j]) for i in range(n) for j in range(n)) / n**2
    triples = [(a, i, j) for a in range(n) for i in range(n) for j in range(n)]
    angles = sum(_huber(angle(student, *k), angle(teacher, *k)) for k in triples) / n**3
    return 25 * distance + 50 * angles


def slow_sp(student, teacher):
    def gram(x):
        g = [[float(a @ b) for b in x] for a in x]
        return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in g]

    s, t, n = gram(student), gram(teacher), len(student)
    return 3000 * sum((s[i][j] - t[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def slow_pkt(student, teacher):
    def affinity(x):
        a = [[(float(p @ q / (p.norm() * q.norm())) + 1) / 2 for q in x] for p in x]
        return [[v / sum(row) for v in row] for row in a]

    s, t, n = affinity(student), affinity(teacher), len(student)
    total = sum(t[i][j] * math.log((t[i][j] + 1e-7) / (s[i][j] + 1e-7)) for i in range(n) for j in range(n))
    return 30000 * total / n**2


RELATIONS = {
    "rkd": (baselines.rkd, slow_rkd),
    "sp": (baselines.similarity_preserving, slow_sp),
    "pkt": (baselines.probabilistic_transfer, slow_pkt),
}
every_relation = pytest.mark.parametrize(("fast", "slow"), RELATIONS.values(), ids=RELATIONS)


@every_relation
def test_handcrafted_relations_equal_slow_loops(fast, slow):
    assert fast(_features(1), _features(2)).item() == pytest.approx(
        slow(_features(1), _features(2)), rel=1e-6
    )


@every_relation
def test_handcrafted_relations_vanish_for_equal_features(fast, slow):
    assert fast(_features(1), _features(1)).item() == pytest.approx(0, abs=1e-9)


@every_relation
def test_handcrafted_relations_have_finite_gradients_for_equal_images(fast, slow):
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    fast(x, _features(1, 3, 2)).backward()
    assert x.grad.isfinite().all()


METHODS = ["deep_supervision", "byot", "byot_tpami", "rkd", "sp", "pkt"]


@pytest.mark.parametrize("method", METHODS)
def test_exit_methods_train_and_leave_the_net_as_it_was(method):
    plain = net()
    keys = list(plain.state_dict())
    module = ExitMethod(plain, 4, method, example=images(2))
    out = module(images(), LABELS)
    torch.testing.assert_close(out.loss, sum(out.parts.values()))
    out.loss.backward()
    assert plain.layer1[0].conv1.weight.grad.abs().sum() > 0
    assert list(plain.state_dict()) == keys
    assert not any(m._forward_hooks for m in plain.modules())
    wanted = {"byot": {"ce", "exit_ce", "exit_kl", "hint"}, "deep_supervision": {"ce", "exit_ce"}}
    wanted["byot_tpami"] = wanted["byot"]
    assert set(out.parts) == wanted.get(method, {"ce", "exit_ce", "relation"})


def test_relation_weight_scales_the_relation_alone():
    def parts(weight):
        torch.manual_seed(1)
        return ExitMethod(net(), 4, "rkd", example=images(2), relation_weight=weight)(images(), LABELS).parts

    one, tenth = parts(1.0), parts(0.1)
    torch.testing.assert_close(tenth["relation"], one["relation"] / 10)
    torch.testing.assert_close(tenth["exit_ce"], one["exit_ce"])


def test_byot_weights_are_the_published_ones():
    module = ExitMethod(net(), 4, "byot", example=images(2)).eval()
    out = module(images(), LABELS)
    with module.capture:
        logits = module.net(images())
    maps = list(module.capture.pop().values())
    features = module.exits.features(maps[:-1])
    exit_logits = module.exits(maps[:-1])
    ce = sum(torch.nn.functional.cross_entropy(z, LABELS) for z in exit_logits)
    p = (logits / 3).softmax(1)
    kl = sum((p * (p.log() - (z / 3).log_softmax(1))).sum(1).mean() for z in exit_logits)
    hint = sum((f - maps[-1].mean((2, 3))).square().sum() for f in features)
    torch.testing.assert_close(out.parts["exit_ce"], 0.9 * ce)
    torch.testing.assert_close(out.parts["exit_kl"], 0.1 * 9 * kl)
    torch.testing.assert_close(out.parts["hint"], 1e-6 * hint)


@pytest.mark.usefixtures("as_a_user")
def test_cross_entropy_and_label_smoothing():
    plain = net()
    for smoothing in (0.0, 0.1):
        out = CrossEntropy(plain, 4, smoothing).eval()(images(), LABELS)
        log_probs = plain.eval()(images()).log_softmax(1)
        target = torch.nn.functional.one_hot(LABELS, 4) * (1 - smoothing) + smoothing / 4
        torch.testing.assert_close(out.loss, -(target * log_probs).sum(1).mean())
    with pytest.raises(ValueError, match=r"smoothing=1"):
        CrossEntropy(plain, 4, 1)


def test_class_wise_self_distillation_equals_its_formula():
    plain = net().eval()
    out = CSKD(plain, 4)(images(), LABELS)
    z = plain(images())
    p, q = (z[1::2] / 4).softmax(1), (z[0::2] / 4).log_softmax(1)
    torch.testing.assert_close(out.parts["class_wise"], 16 * (p * (p.log() - q)).sum(1).mean())
    assert out.logits.shape == (6, 4)
    with pytest.raises(ValueError, match=r"CS-KD needs batches of \(image, image of the same class\)"):
        CSKD(plain, 4)(images(), torch.tensor([0, 1, 1, 1, 2, 2]))


def test_progressive_targets_follow_past_predictions():
    plain = net()
    module = PSKD(plain, 4, num_images=6, total_images=12)
    index = torch.arange(6)
    first = module(images(), LABELS, index)
    torch.testing.assert_close(
        first.parts["soft_ce"], torch.nn.functional.cross_entropy(first.logits, LABELS), rtol=1e-5, atol=1e-6
    )
    past = module.past.clone()
    torch.testing.assert_close(past, first.logits.detach().softmax(1))
    second = module(images(), LABELS, index)
    target = 0.6 * torch.nn.functional.one_hot(LABELS, 4) + 0.4 * past  # half way: a = 0.8 / 2
    torch.testing.assert_close(
        second.parts["soft_ce"], -(target * second.logits.log_softmax(1)).sum(1).mean()
    )
    with pytest.raises(ValueError, match=r"PS-KD needs index"):
        module(images(), LABELS)


def test_last_batch_distils_only_images_that_the_last_step_saw():
    module = DLB(net(), 4, fresh=3)
    index = torch.tensor([0, 9, 1, 8, 2, 7])
    first = module(images(), LABELS, index)
    assert first.parts["last_batch"].item() == 0
    second = module(images(), LABELS, torch.tensor([3, 0, 4, 1, 5, 6]))
    last = first.logits.detach()[0::2]
    p, q = (last / 3).softmax(1), (second.logits[1::2] / 3).log_softmax(1)
    kl = (p * (p.log() - q)).sum(1)
    torch.testing.assert_close(second.parts["last_batch"], 9 * (kl[0] + kl[1]) / 3)
    with pytest.raises(ValueError, match=r"DLB needs index and batches made by"):
        module(images(), LABELS)


@pytest.mark.usefixtures("as_a_user")
def test_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match=r"method='kd'; choose one of deep_supervision, byot"):
        ExitMethod(net(), 4, "kd")


def test_the_package_lists_every_control_with_its_cost():
    from corsd import mixing

    assert baselines.MixedCrossEntropy is mixing.MixedCrossEntropy
    rows = [line for line in baselines.__doc__.splitlines() if line.startswith("| `")]
    listed = {line.split("`")[1] for line in rows}
    assert listed == {name for name in baselines.__all__ if name[0].isupper()}
    assert all(line.endswith("| nothing |") for line in rows)
