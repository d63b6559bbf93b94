"""Nets by name, weights that fit or say why not."""

import pytest
import torch
from safetensors.torch import save_file
from shared_core.fitting_weights import load_weights
from shared_core.nets import open_net
from torch import nn


def tiny(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes))


OWN = {"own:tiny": tiny}


def two_layers(outputs):
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, outputs))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def build(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "def finished():\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(6))\n"
        "def anything(**options):\n"
        "    return nn.Linear(options.get('in_channels'), options.get('num_classes', 9))\n"
        "def wrong(num_classes):\n"
        "    return 'a net'\n"
        "value = 3\n"
    )
    return path


@pytest.mark.parametrize(("num_classes", "outputs"), [(7, 7), (None, 1000)])
def test_torchvision(num_classes, outputs):
    net = open_net("torchvision:squeezenet1_1", num_classes)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, outputs)


def test_torchvision_takes_colour_only():
    with pytest.raises(ValueError, match=r"take images of 3 channels, these have 1: use timm:NAME"):
        open_net("torchvision:resnet18", 7, in_channels=1)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
@pytest.mark.parametrize(("num_classes", "fresh"), [(None, False), (6, False), (5, True)])
def test_published_weights_keep_a_head_of_the_right_size(monkeypatch, name, num_classes, fresh):
    import torchvision.models as models

    usual, made = models.get_model, []

    def without_download(asked, weights, **options):
        assert (asked, weights, options) == (name, "DEFAULT", {})
        made.append(usual(asked, weights=None, num_classes=6))
        made.append({key: value.clone() for key, value in made[0].state_dict().items()})
        return made[0]

    monkeypatch.setattr(models, "get_model", without_download)
    if fresh:
        with pytest.raises(ValueError, match=r"published weights are of 6 classes, not 5.* new_head"):
            open_net(f"torchvision:{name}", num_classes, pretrained=True)
        made.clear()
    net = open_net(f"torchvision:{name}", num_classes, pretrained=True, new_head=fresh)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, num_classes or 6)
    found = net.state_dict()
    other = {key for key, value in made[1].items() if value.shape != found[key].shape}
    head = {"fc.weight", "fc.bias"} if name == "resnet18" else {"classifier.1.weight", "classifier.1.bias"}
    assert other == (head if fresh else set())


def test_timm():
    net = open_net("timm:resnet10t", 5, in_channels=1)
    assert net.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    assert open_net("timm:resnet10t", None).num_classes == 1000
    with pytest.raises(ValueError, match=r"timm has no model 'resnet99'; similar: "):
        open_net("timm:resnet99", 5)


def test_without_timm_the_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:resnet10t needs the package timm, which is not installed"):
        open_net("timm:resnet10t", 5)


def test_function_in_a_file(file):
    assert open_net(f"{file}:build", 4)(torch.rand(2, 3, 4, 4)).shape == (2, 4)
    assert open_net(f"{file}:finished", 4)(torch.rand(2, 3, 4, 4)).shape == (2, 6)
    assert open_net(f"{file}:anything", None, in_channels=2)(torch.rand(1, 2)).shape == (1, 9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("value", r"has no function 'value'"),
        ("wrong", r"mine.py:wrong returned a str; it must return a torch.nn.Module"),
    ],
)
def test_files_without_a_net_are_refused(file, name, message):
    with pytest.raises(ValueError, match=message):
        open_net(f"{file}:{name}", 4)
    with pytest.raises(ValueError, match=r"there is no file .*other.py"):
        open_net(f"{file.parent / 'other.py'}:build", 4)


def test_builders_of_a_method():
    assert open_net("own:tiny", 3, 1, builders=OWN)(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"own:tiny has no head of its own: give the number of classes"):
        open_net("own:tiny", None, builders=OWN)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", r"none of own:tiny, torchvision:NAME, timm:NAME, path/to/file.py:function"),
        ("own:huge", r"there is no net own:huge; choose own:tiny"),
        ("torchvision:resnet19", r"torchvision has no classifier 'resnet19'; it has .*resnet18"),
    ],
)
def test_unknown_nets_list_the_known(spec, message):
    with pytest.raises(ValueError, match=message):
        open_net(spec, 3, builders=OWN)


def test_weights_come_back_and_another_head_is_left_fresh(tmp_path):
    net, path = two_layers(5), tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    same = open_net("own:mlp", 5, weights=path, builders={"own:mlp": lambda k, c: two_layers(k)})
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), net.parameters(), strict=True))
    other = two_layers(9)
    assert load_weights(other, path, new_head=True) == ["1.weight", "1.bias"]
    assert torch.equal(other[0].weight, net[0].weight)


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"strange": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"file lacks \(0.weight, .* net does not know \(strange\)"):
        load_weights(two_layers(5), path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"is not a safetensors file .* may hold code and are not read"):
        load_weights(two_layers(5), path)
    with pytest.raises(ValueError, match=r"there is no weights file"):
        load_weights(two_layers(5), tmp_path / "none.safetensors")
