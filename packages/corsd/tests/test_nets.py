"""Nets by name, weights that fit or say why not."""

import pytest
import torch
from corsd.nets import load_weights, open_net, small_resnet
from safetensors.torch import save_file


@pytest.mark.parametrize(
    ("spec", "channels"), [("small:resnet10", 1), ("small:resnet18", 3), ("torchvision:resnet18", 3)]
)
def test_named_nets_have_the_asked_outputs(spec, channels):
    net = open_net(spec, 7, channels, width=8 if spec.startswith("small") else None)
    assert net(torch.rand(2, channels, 32, 32)).shape == (2, 7)


def test_small_net_of_width_64_is_the_published_size():
    net = small_resnet([2, 2, 2, 2], 64, 100)
    assert sum(p.numel() for p in net.parameters()) == 11_220_132


def test_timm():
    net = open_net("timm:resnet10t", 5, in_channels=1)
    assert net.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"timm has no model 'resnet99'; similar: "):
        open_net("timm:resnet99", 5)


def test_function_in_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def build(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "value = 3\n"
    )
    assert open_net(f"{file}:build", 4)(torch.rand(2, 3, 4, 4)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"has no function 'value'"):
        open_net(f"{file}:value", 4)
    with pytest.raises(ValueError, match=r"there is no file .*other.py"):
        open_net(f"{tmp_path / 'other.py'}:build", 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", r"none of small:NAME, torchvision:NAME"),
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


def test_weights_that_do_not_fit_are_named(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file({"strange": torch.zeros(1)}, file)
    with pytest.raises(
        ValueError, match=r"keys the net does not have \['strange'\], keys it needs \['bn1.bias'"
    ):
        open_net("small:resnet10", 5, weights=file)
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"is not a safetensors file .* may hold code and are not read"):
        open_net("small:resnet10", 5, weights=file)
    with pytest.raises(ValueError, match=r"there is no weights file"):
        open_net("small:resnet10", 5, weights=tmp_path / "none.safetensors")
