"""Baselines: losses against slow loops, each method touches what it says and nothing else, draws follow the seed."""

import math

import pytest
import torch
from calib.baselines import METHODS, Labelled, NotApplicableError, Settings, target_supervised
from calib.baselines.alignment import coral, domain_loss, reversal_schedule, reverse_gradient
from calib.baselines.encoders import information_maximisation
from calib.baselines.form import FeatureNet, batches
from calib.baselines.frozen import channel_moments
from calib.baselines.statistics import entropy_loss
from shared_core.ops.freeze import changed, checksums, freeze
from shared_core.run.guard import NonFiniteError
from shared_core.testing import assert_same_state, gradients_agree
from torch import nn


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_coral(source, target):
    def covariance(x):
        n, d = len(x), len(x[0])
        mean = [sum(row[i] for row in x) / n for i in range(d)]
        return [
            [sum((r[i] - mean[i]) * (r[j] - mean[j]) for r in x) / (n - 1) for j in range(d)]
            for i in range(d)
        ]

    s, t = covariance(source.tolist()), covariance(target.tolist())
    d = len(s)
    return sum((s[i][j] - t[i][j]) ** 2 for i in range(d) for j in range(d)) / (4 * d * d)


def slow_domain_loss(source, target):
    def sigmoid(z):
        return 1 / (1 + math.exp(-z))

    s, t = source.flatten().tolist(), target.flatten().tolist()
    real = sum(-math.log(sigmoid(z)) for z in s) / len(s)
    return (real + sum(-math.log(1 - sigmoid(z)) for z in t) / len(t)) / 2


def _softmax(row):
    powers = [math.exp(z) for z in row]
    return [p / sum(powers) for p in powers]


def _entropy(p):
    return -sum(v * math.log(v) for v in p)


def slow_entropy(logits):
    return sum(_entropy(_softmax(row)) for row in logits.tolist()) / len(logits)


def slow_information_maximisation(logits):
    rows = [_softmax(row) for row in logits.tolist()]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return slow_entropy(logits) - _entropy(mean)


LOSSES = {
    "coral": (coral, slow_coral, lambda: (randn(1, 5, 3), randn(2, 4, 3))),
    "domain": (domain_loss, slow_domain_loss, lambda: (randn(1, 5, 1), randn(2, 4, 1))),
    "entropy": (entropy_loss, slow_entropy, lambda: (randn(1, 5, 3),)),
    "information": (information_maximisation, slow_information_maximisation, lambda: (randn(1, 5, 3),)),
}
every_loss = pytest.mark.parametrize(("loss", "slow", "arguments"), LOSSES.values(), ids=LOSSES)


@every_loss
def test_loss_equals_slow_loops(loss, slow, arguments):
    assert float(loss(*arguments())) == pytest.approx(slow(*arguments()), rel=1e-10)


@every_loss
def test_loss_gradient(loss, slow, arguments):
    gradients_agree(loss, *arguments())


@every_loss
def test_loss_of_half_precision_is_computed_in_single(loss, slow, arguments):
    half = [x.bfloat16() for x in arguments()]
    assert float(loss(*half)) == pytest.approx(slow(*[x.double() for x in half]), rel=1e-4)


@every_loss
@pytest.mark.compile
def test_compiled_loss_equals_eager(loss, slow, arguments):
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments()), loss(*arguments()))


def test_losses_of_one_image():
    one = randn(1, 1, 3)
    assert float(entropy_loss(one)) == pytest.approx(slow_entropy(one))
    # The mean over one image is that image: nothing is gained.
    assert float(information_maximisation(one)) == pytest.approx(0, abs=1e-12)
    assert float(domain_loss(one[:, :1], one[:, 1:2])) == pytest.approx(
        slow_domain_loss(one[:, :1], one[:, 1:2])
    )
    with pytest.raises(ValueError, match="1 and 4 rows; a covariance needs 2 or more"):
        coral(one, randn(2, 4, 3))


def test_losses_of_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    total = (
        entropy_loss(logits) + information_maximisation(logits) + domain_loss(logits[:, :1], logits[:, 1:])
    )
    total.backward()
    assert total.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_gradient_reversal_turns_the_gradient_and_nothing_else():
    x = randn(1, 4, 3).requires_grad_()
    y = reverse_gradient(x, 0.25)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad((y**2).sum(), x)
    torch.testing.assert_close(gradient, -0.25 * 2 * x.detach())


def test_reversal_schedule_is_the_paper_s():
    assert reversal_schedule(0.0) == 0
    assert reversal_schedule(0.5) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert 0.999 < reversal_schedule(1.0) < 1


def test_channel_moments_are_those_of_all_pixels():
    images = torch.randint(256, (7, 2, 5, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = channel_moments(images, batch_size=3)
    wide = images.double() / 255
    torch.testing.assert_close(mean, wide.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, wide.std((0, 2, 3), correction=0).float())


# Two domains of a stripe that is upright (class 0) or lying (class 1), the target darker and noisier.
def stripes(seed: int, count: int, level: float, noise: float) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.zeros(count, 1, 8, 8)
    images[labels == 0, :, :, 3:5] = level
    images[labels == 1, :, 3:5, :] = level
    images += noise * torch.rand(count, 1, 8, 8, generator=generator)
    return Labelled((images.clamp(0, 1) * 255).to(torch.uint8), labels)


SOURCE, TARGET = stripes(1, 96, 0.9, 0.1), stripes(2, 80, 0.5, 0.4)
TINY = Settings(steps=6, batch_size=16, learning_rate=1e-3, domain_hidden=16, tent_batch_size=16)


def small_net(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1)]
    layers += [nn.BatchNorm2d(4)] if norm else []
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 2)]
    return nn.Sequential(*layers)


TOUCHED = {
    "source_only": "nothing",
    "moment_matching": "nothing",
    "random_correction": "nothing",
    "surest_view": "nothing",
    "neighbours": "nothing",
    "bn_adapt": "buffers",
    "tent": "batch-norm weights",
    "deep_coral": "new model",
    "dann": "new model",
    "adda": "new model",
    "shot_im": "new model",
}
every_method = pytest.mark.parametrize("method", METHODS)


def test_every_method_is_here():
    assert set(METHODS) == set(TOUCHED)


@every_method
def test_method_leaves_the_given_classifier_and_the_generator_alone(method):
    net = small_net().train()
    freeze(net[3])
    before = checksums(net), [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    drawn = torch.get_rng_state()
    adapted = METHODS[method](net, SOURCE, TARGET.images, TINY, 0)
    after = checksums(net), [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    assert changed(before[0], after[0]) == []
    assert before[1:] == after[1:]
    assert torch.equal(drawn, torch.get_rng_state())
    assert not any(m._forward_hooks for m in net.modules())
    assert adapted.touched == TOUCHED[method]


@every_method
def test_method_touches_what_it_says(method):
    net = small_net()
    adapted = METHODS[method](net, SOURCE, TARGET.images, TINY, 0)
    names = set(changed(checksums(net), checksums(adapted.net)))
    if adapted.touched == "nothing":
        assert names == set()
    elif adapted.touched == "buffers":
        assert names == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    elif adapted.touched == "batch-norm weights":
        # Its layers have no running statistics any more: they normalise by the batch.
        buffers = {"1.running_mean", "1.running_var"}
        assert names - buffers == {"1.weight", "1.bias"}
    else:
        assert "0.weight" in names


@every_method
def test_method_is_a_function_of_the_seed(method):
    def logits(seed):
        return METHODS[method](small_net(), SOURCE, TARGET.images, TINY, seed).predict(TARGET.images[:20])

    first = logits(0)
    torch.manual_seed(123)
    assert_same_state(logits(0), first)
    if method not in ("source_only", "moment_matching"):
        assert not torch.equal(logits(1), first)
    assert first.shape == (20, 2)
    assert not first.requires_grad


@every_method
def test_method_takes_floats_as_it_takes_bytes(method):
    floats = Labelled(SOURCE.images.float() / 255, SOURCE.labels)
    target = TARGET.images.float() / 255
    one = METHODS[method](small_net(), SOURCE, TARGET.images, TINY, 0).predict(TARGET.images)
    other = METHODS[method](small_net(), floats, target, TINY, 0).predict(target)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["bn_adapt", "tent"])
def test_methods_of_batch_norm_need_it(method):
    with pytest.raises(NotApplicableError, match="no batch norm"):
        METHODS[method](small_net(norm=False), SOURCE, TARGET.images, TINY, 0)


@pytest.mark.parametrize("method", ["deep_coral", "dann", "adda", "shot_im"])
def test_methods_of_features_work_on_a_frozen_classifier_and_need_a_linear_layer(method):
    net = small_net(norm=False)
    freeze(net)
    ours = METHODS[method](net, SOURCE, TARGET.images, TINY, 0).net
    assert "0.weight" in changed(checksums(net), checksums(ours))
    head_kept = method in ("adda", "shot_im")
    assert torch.equal(ours[5].weight, net[5].weight) is head_kept
    convolutional = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten())
    with pytest.raises(NotApplicableError, match="no linear layer"):
        METHODS[method](convolutional, SOURCE, TARGET.images, TINY, 0)


def test_bn_adapt_finds_the_target_s_statistics():
    net = small_net()
    adapted = METHODS["bn_adapt"](net, SOURCE, TARGET.images, Settings(batch_size=len(TARGET.images)), 0)
    seen = net[0](TARGET.images.float() / 255)
    norm = adapted.net[1]
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_tent_makes_the_target_s_predictions_surer():
    net = trained()
    before = METHODS["bn_adapt"](net, SOURCE, TARGET.images, TINY, 0).predict(TARGET.images)
    adapted = METHODS["tent"](
        net, SOURCE, TARGET.images, Settings(tent_batch_size=8, tent_learning_rate=0.01), 0
    )
    assert entropy_loss(adapted.predict(TARGET.images)) < entropy_loss(before)
    with pytest.raises(ValueError, match="two images or more"):
        adapted.predict(TARGET.images[:1])


def test_moment_matching_undoes_a_change_of_brightness_and_contrast():
    net = trained()
    darker = (SOURCE.images.float() / 255) * 0.3 + 0.2
    adapted = METHODS["moment_matching"](net, SOURCE, darker, TINY, 0)
    clean = METHODS["source_only"](net, SOURCE, darker, TINY, 0)
    torch.testing.assert_close(adapted.predict(darker), clean.predict(SOURCE.images), rtol=1e-3, atol=1e-3)
    assert (clean.predict(darker) - clean.predict(SOURCE.images)).abs().max() > 0.1


def test_moment_matching_shifts_a_channel_without_deviation():
    grey = torch.full((4, 1, 8, 8), 0.5)
    assert METHODS["moment_matching"](small_net(), SOURCE, grey, TINY, 0).predict(grey).isfinite().all()


def test_random_correction_stays_within_epsilon_and_the_box():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :2]

    images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = Settings(epsilon=0.125)
    METHODS["random_correction"](Watch(), SOURCE, TARGET.images, settings, 0).predict(images)
    # The copy of Watch appends to the same list through its closure; first it is asked what its answers mean.
    *_, x = seen
    moved = (x - images).abs()
    assert moved.max() <= 0.125 + 1e-6
    assert x.min() >= 0
    assert x.max() <= 1
    inside = (images > 0.125) & (images < 0.875)
    torch.testing.assert_close(moved[inside], torch.full_like(moved[inside], 0.125))
    assert 0.4 < float((x > images)[inside].float().mean()) < 0.6


def accuracy(adapted, labelled):
    return float((adapted.predict(labelled.images).argmax(1) == labelled.labels).float().mean())


def trained() -> nn.Module:
    settings = Settings(steps=60, batch_size=32, learning_rate=0.01)
    return target_supervised(small_net(), SOURCE, settings, 0).net


def test_supervised_learns_the_labels_it_is_given_and_the_source_s_methods_keep_them():
    settings = Settings(steps=60, batch_size=32, learning_rate=0.01)
    net = small_net()
    before = checksums(net)
    bound = target_supervised(net, TARGET, settings, 0)
    assert changed(before, checksums(net)) == []
    assert bound.touched == "new model"
    assert accuracy(bound, stripes(3, 100, 0.5, 0.4)) > 0.95
    for method in ("deep_coral", "dann"):
        adapted = METHODS[method](small_net(), SOURCE, TARGET.images, settings, 0)
        assert accuracy(adapted, stripes(4, 100, 0.9, 0.1)) > 0.95, method


def test_features_are_the_input_of_the_last_linear_layer():
    net = small_net().eval()
    x = SOURCE.images[:3].float() / 255
    logits, features = FeatureNet(net)(x)
    torch.testing.assert_close(logits, net(x))
    torch.testing.assert_close(features, net[:-1](x))
    assert FeatureNet(net).width == 64

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).log_softmax(1)

    logits, _ = FeatureNet(Wrapped())(x)
    torch.testing.assert_close(logits, net(x).log_softmax(1))


def test_a_domain_smaller_than_a_batch_gives_all_it_has_and_one_image_is_refused():
    assert sorted(next(batches(5, 64, 0)).tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="has 1 images; training needs 2 or more"):
        next(batches(1, 64, 0))


@pytest.mark.parametrize("method", ["tent", "deep_coral", "dann", "adda", "shot_im"])
def test_values_that_are_not_finite_stop_the_training(method):
    images = TARGET.images.float() / 255
    images[:] = torch.nan
    with pytest.raises(NonFiniteError, match="nan at step 1"):
        METHODS[method](small_net(), SOURCE, images, TINY, 0)


def test_settings_name_the_bad_one():
    with pytest.raises(ValueError, match=r"settings.epsilon is 0.0; it must be above 0"):
        Settings(epsilon=0.0)
