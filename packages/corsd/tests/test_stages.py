"""Stages of any backbone: one parametrised test over the families, the layouts, and the error texts."""

import pytest
import timm
import torch
import torchvision.models as tv
from corsd import Distiller, find_stages
from corsd.nets import small_resnet
from corsd.stages import as_map
from torch import nn

BACKBONES = {
    "resnet18": (lambda: tv.resnet18(num_classes=5), ["layer1", "layer2", "layer3", "layer4"]),
    "wide_resnet": (
        lambda: timm.create_model("wide_resnet50_2", num_classes=5),
        ["layer1", "layer2", "layer3", "layer4"],
    ),
    "resnext": (lambda: tv.resnext50_32x4d(num_classes=5), ["layer1", "layer2", "layer3", "layer4"]),
    "se_resnet": (
        lambda: timm.create_model("seresnet18", num_classes=5),
        ["layer1", "layer2", "layer3", "layer4"],
    ),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(num_classes=5), None),
    "mobilenet_v3": (lambda: tv.mobilenet_v3_small(num_classes=5), None),
    "shufflenet": (lambda: tv.shufflenet_v2_x0_5(num_classes=5), None),
    "vgg": (lambda: tv.vgg11_bn(num_classes=5), None),
    "densenet": (lambda: tv.densenet121(num_classes=5), None),
    "efficientnet": (lambda: tv.efficientnet_b0(num_classes=5), None),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64),
        ["blocks.2", "blocks.5", "blocks.8", "blocks.11"],
    ),
    "swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, img_size=64, window_size=2),
        None,
    ),
    "small": (lambda: small_resnet([1, 1, 1, 1], 8, 5), ["layer1", "layer2", "layer3", "layer4"]),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_trains_any_backbone_and_leaves_it_as_it_was(name):
    make, wanted = BACKBONES[name]
    torch.manual_seed(0)
    net = make()
    keys = list(net.state_dict())
    modules = [n for n, _ in net.named_modules()]
    images, labels = torch.rand(6, 3, 64, 64), torch.tensor([0, 0, 1, 1, 2, 2])
    distiller = Distiller(net, num_classes=5, example=images[:2])
    if wanted is not None:
        assert [stage.name for stage in distiller.stages] == wanted
    assert 2 <= len(distiller.stages) <= 4
    out = distiller(images, labels)
    out.loss.backward()
    assert out.loss.isfinite()
    assert set(out.parts) == {"ce", "triplet", "aux_ce", "aux_kl", "relation", "logit_relation"}
    shallow = net.get_submodule(distiller.stages[0].name)
    assert all(p.grad is not None for p in shallow.parameters())

    assert list(net.state_dict()) == keys
    assert [n for n, _ in net.named_modules()] == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    fresh = make()
    fresh.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images), net.eval()(images))


def test_dry_run_touches_neither_mode_nor_statistics():
    net = small_resnet([1, 1, 1, 1], 8, 5)
    net.layer2.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    find_stages(net, torch.rand(2, 3, 16, 16))
    assert net.training
    assert not net.layer2.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_names_are_put_in_the_order_of_the_forward_pass():
    net = small_resnet([1, 1, 1, 1], 8, 5)
    stages = find_stages(net, torch.rand(2, 3, 16, 16), ["layer4", "layer2"])
    assert [s.name for s in stages] == ["layer2", "layer4"]
    assert [s.channels for s in stages] == [16, 64]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def test_wrong_names_are_answered_with_the_possible_ones():
    net, example = small_resnet([1, 1, 1, 1], 8, 5), torch.rand(2, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r"no submodule 'layer5'; close names: layer\d.*stages that can be read: .*layer4"
    ):
        find_stages(net, example, ["layer5"])
    with pytest.raises(ValueError, match=r"'unused' gave no single tensor.*can be read: body, head"):
        find_stages(Odd(), example, ["unused"])
    with pytest.raises(ValueError, match=r"none of them twice"):
        find_stages(net, example, ["layer1", "layer1"])
    with pytest.raises(ValueError, match=r'a list of submodule names, or "auto"'):
        find_stages(net, example, "layer1")


def test_auto_says_so_when_it_finds_nothing():
    with pytest.raises(ValueError, match=r'no stages found by "auto"; name them: body, head'):
        find_stages(Odd(), torch.rand(2, 3, 16, 16))


def test_tokens_become_a_square_and_the_class_token_joins_every_patch():
    tokens = torch.randn(2, 1 + 9, 5)
    got = as_map(tokens, "tokens")
    assert got.shape == (2, 5, 3, 3)
    for y in range(3):
        for x in range(3):
            torch.testing.assert_close(got[:, :, y, x], tokens[:, 1 + 3 * y + x] + tokens[:, 0])


def test_other_layouts():
    assert as_map(torch.rand(2, 7), "vector").shape == (2, 7, 1, 1)
    last = torch.rand(2, 4, 4, 7)
    assert torch.equal(as_map(last, "map_last")[:, 3], last[..., 3])
