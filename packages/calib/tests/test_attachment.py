"""Attach, verify, detach: the classifier is what it was, or the error names what is not."""

import pytest
import torch
from calib.adaptation import adapt
from calib.attachment import CalibratedClassifier, ClassifierChangedError, attach, drifting, probe
from calib.calibrator import Calibrator
from calib.features import Features
from torch import nn


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def small():
    return Calibrator(1, 0.2, 2, 1)


def test_alpha_zero_is_the_classifier_alone_and_train_leaves_it_in_eval_mode():
    net = classifier().eval()
    images = torch.rand(2, 1, 12, 12)
    alone = net(images)
    model = attach(net, small()).train()
    assert model.calibrator.training
    assert not any(module.training for module in net.modules())
    assert torch.equal(model(images, alpha=0.0), alone)
    assert not any(p.requires_grad for p in net.parameters())


def test_detach_gives_the_classifier_back_as_it_came():
    net = classifier().train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    flags = [(m.training) for m in net.modules()], [p.requires_grad for p in net.parameters()]
    assert attach(net, small()).detach() is net
    assert ([(m.training) for m in net.modules()], [p.requires_grad for p in net.parameters()]) == flags


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "5.bias"])
def test_verify_finds_one_bit(name):
    model = attach(classifier(), small())
    model.verify()
    tensor = model.classifier.state_dict()[name]
    # The lowest bit of one number.
    tensor.view(torch.int32).reshape(-1)[0] ^= 1
    with pytest.raises(ClassifierChangedError, match=f"changed since it was attached: {name}"):
        model.verify()
    assert not model.unchanged()


def test_verify_finds_training_mode():
    model = attach(classifier(), small())
    model.classifier[3].train()
    with pytest.raises(ClassifierChangedError, match=r"left eval mode \(3\)"):
        model.verify()


def test_drifting_moves_buffers_as_the_released_code_does():
    model = attach(classifier(), small())
    with drifting(model):
        model(torch.rand(4, 1, 12, 12))
    with pytest.raises(
        ClassifierChangedError, match=r"1\.num_batches_tracked, 1\.running_mean, 1\.running_var"
    ):
        model.verify()
    assert not model.classifier.training


def test_what_is_no_classifier_is_refused(as_a_user):
    with pytest.raises(TypeError, match=r"is a function, not an nn\.Module"):
        attach(lambda x: x, small())
    with pytest.raises(TypeError, match="has a calibrator already"):
        attach(attach(classifier(), small()), small())


def test_value_range_is_the_calibrators():
    model = attach(classifier(), small(), value_range=(-1.0, 1.0))
    model(torch.full((1, 1, 12, 12), -1.0))
    assert model.calibrator.value_range == ((-1.0,), (1.0,))


def test_features_are_softmax_logits_or_a_layer():
    net = classifier().eval()
    images = torch.rand(2, 1, 12, 12)
    assert torch.allclose(Features(net)(images), net(images).softmax(1))
    assert torch.equal(Features(net, "logits")(images), net(images))
    assert torch.equal(Features(net, "layer:0")(images), net[0](images))
    assert torch.equal(Features(net, "layer:0", stride=2)(images), net[0](images)[..., ::2, ::2])
    with pytest.raises(ValueError, match="feature is 'pooled'; choose softmax, logits or layer:NAME"):
        Features(net, "pooled")
    with pytest.raises(ValueError, match="no submodule '9'"):
        Features(net, "layer:9")


def test_probe_names_a_classifier_that_gives_no_gradient():
    class Closed(nn.Module):
        def forward(self, images):
            return images.detach().flatten(1)[:, :3]

    model = attach(Closed(), small())
    with pytest.raises(ValueError, match=r"gives no gradient to its input .* pixels only"):
        probe(model, Features(model.classifier), torch.rand(2, 1, 12, 12))


def test_probe_names_a_hook_that_writes():
    net = classifier()

    def count(module, _args, _output):
        module.running_mean += 1

    net[1].register_forward_hook(count)
    model = attach(net, small())
    with pytest.raises(ClassifierChangedError, match=r"1\.running_mean.*hook"):
        probe(model, Features(model.classifier), torch.rand(2, 1, 12, 12))


def test_probe_names_answers_that_are_not_finite():
    net = classifier()
    net[5].bias.data[0] = float("nan")
    model = attach(net, small())
    with pytest.raises(ValueError, match="not finite"):
        probe(model, Features(model.classifier), torch.rand(2, 1, 12, 12))


def test_parameter_ratio():
    model = CalibratedClassifier(classifier(), small())
    own = sum(p.numel() for p in model.calibrator.parameters())
    assert model.parameter_ratio() == own / (40 + 8 + 111)
    assert CalibratedClassifier(nn.Flatten(), small()).parameter_ratio() is None


@pytest.mark.parametrize("images", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_a_classifier_of_another_type_is_adapted_as_it_is(kind, images):
    """Images come to it in its own type; nothing of it is cast."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).to(kind)
    model = attach(net, Calibrator(3, width=4, blocks=1))
    source = [torch.rand(4, 3, 16, 16).to(images) for _ in range(2)]
    target = [batch**2 for batch in source]
    for feature in ("softmax", "layer:1"):
        report = adapt(model, source, target, steps=1, feature=feature, selection="last")
        assert report.classifier_unchanged
    wanted = net(model.calibrator(source[0]).to(kind))
    assert torch.equal(model(source[0]), wanted)
    assert {p.dtype for p in net.parameters()} == {kind}
