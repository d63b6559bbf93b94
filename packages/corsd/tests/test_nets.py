"""Nets by name, weights that fit or say why not."""

import pytest
import torch
from corsd.nets import open_net, small_resnet
from safetensors.torch import save_file
from shared_core.nets import load_weights


@pytest.mark.parametrize(
    ("spec", "channels"), [("small:resnet10", 1), ("small:resnet18", 3), ("torchvision:resnet18", 3)]
)
def test_named_nets_have_the_asked_outputs(spec, channels):
    net = open_net(spec, 7, channels, width=8 if spec.startswith("small") else None)
    assert net(torch.rand(2, channels, 32, 32)).shape == (2, 7)


def test_small_net_of_width_64_is_the_published_size():
    net = small_resnet([2, 2, 2, 2], 64, 100)
    assert sum(p.numel() for p in net.parameters()) == 11_220_132


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", r"none of small:resnet10, small:resnet18, torchvision:NAME"),
        ("small:resnet50", r"choose small:resnet10, small:resnet18"),
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
    assert load_weights(other, file) == ["fc.weight", "fc.bias"]
    assert torch.equal(other.conv1.weight, net.conv1.weight)
