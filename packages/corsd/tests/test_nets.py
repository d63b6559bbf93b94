"""Nets by name, weights that fit or say why not."""

import pytest
import torch
from corsd.nets import SMALL, open_net, small_resnet, wide_resnet
from corsd.stages import find_stages
from safetensors.torch import save_file
from shared_core.fitting_weights import load_weights

RESNET_MAPS = [(64, 32), (128, 16), (256, 8), (512, 4)]
BOTTLENECK_MAPS = [(256, 32), (512, 16), (1024, 8), (2048, 4)]


@pytest.mark.parametrize(
    ("spec", "channels"), [*((f"small:{name}", 1) for name in SMALL), ("torchvision:resnet18", 3)]
)
def test_named_nets_have_the_asked_inputs_and_outputs(spec, channels):
    net = open_net(spec, 7, channels, width=8 if spec.startswith("small") else None)
    assert net(torch.rand(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "parameters", "maps"),
    [
        ("resnet18", 11_220_132, RESNET_MAPS),
        ("resnet50", 23_705_252, BOTTLENECK_MAPS),
        ("resnet101", 42_697_380, BOTTLENECK_MAPS),
        ("wrn16-8", 11_007_540, [(128, 32), (256, 16), (512, 8)]),
        ("wrn28-10", 36_536_884, [(160, 32), (320, 16), (640, 8)]),
        ("mobilenet-v2", 2_351_972, [(24, 32), (32, 16), (96, 8), (1280, 4)]),
    ],
)
def test_nets_for_cifar_have_the_published_size_and_stages(name, parameters, maps):
    net = open_net(f"small:{name}", 100)
    assert sum(p.numel() for p in net.parameters()) == parameters
    stages = find_stages(net, torch.zeros(2, 3, 32, 32))
    assert [stage.shape[1:3] for stage in stages] == maps
    if name != "mobilenet-v2":
        assert [stage.name for stage in stages] == [f"layer{i + 1}" for i in range(len(maps))]


@pytest.mark.parametrize(("depth", "parameters"), [(16, 703_284), (40, 2_255_156)])
def test_wide_nets_of_factor_2_are_the_published_sizes(depth, parameters):
    """WRN-16-2 and WRN-40-2 of 100 classes, whose parameters are often printed."""
    assert sum(p.numel() for p in wide_resnet(depth, 32, 100).parameters()) == parameters


def test_a_wide_block_is_its_equation():
    block = wide_resnet(10, 16, 3).layer2[0].eval()
    x = torch.randn(2, 16, 8, 8)
    active = block.bn1(x).relu()
    wanted = block.shortcut(active) + block.conv2(block.bn2(block.conv1(active)).relu())
    assert torch.equal(block(x), wanted)
    same = wide_resnet(10, 16, 3).layer1[0].eval()
    inner = same.conv2(same.bn2(same.conv1(same.bn1(x).relu())).relu())
    assert torch.equal(same(x), x + inner)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", r"none of small:resnet10, small:resnet18, .*small:mobilenet-v2, torchvision:NAME"),
        ("small:resnet51", r"choose small:resnet10, small:resnet18"),
        ("torchvision:resnet19", r"torchvision has no classifier 'resnet19'; it has .*resnet18"),
    ],
)
def test_unknown_nets_list_the_known(spec, message):
    with pytest.raises(ValueError, match=message):
        open_net(spec, 3)


def test_weights_come_back_and_another_head_is_left_fresh(tmp_path):
    net = small_resnet([1, 1, 1, 1], 8, 5)
    file = tmp_path / "net.safetensors"
    save_file(net.state_dict(), file)
    same = open_net("small:resnet10", 5, width=8, weights=file)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), net.parameters(), strict=True))
    other = small_resnet([1, 1, 1, 1], 8, 9)
    assert load_weights(other, file, new_head=True) == ["fc.weight", "fc.bias"]
    assert torch.equal(other.conv1.weight, net.conv1.weight)
