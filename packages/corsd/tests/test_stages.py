"""Stages of any backbone: one parametrised test over the families, the layouts, and the error texts."""

import pytest
import timm
import torch
import torchvision.models as tv
from corsd import Distiller, find_stages
from corsd.maps import as_map
from corsd.nets import small_resnet
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


# rectangular images: which axis is what


RECTANGULAR = {
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": (64, 96), "window_size": 2},
        "map_last",
        [(16, 24), (8, 12), (4, 6), (2, 3)],
    ),
    "vit": ("vit_tiny_patch16_224", {"img_size": (64, 96)}, "tokens", [(4, 6)] * 4),
    "vit of any size": (
        "vit_tiny_patch16_224",
        {"img_size": (64, 96), "dynamic_img_size": True},
        "tokens",
        [(4, 6)] * 4,
    ),
    "mixer": ("mixer_s32_224", {"img_size": (64, 96)}, "tokens", [(2, 3)] * 4),
    "convnext": ("convnext_atto", {}, "map", [(16, 24), (8, 12), (4, 6), (2, 3)]),
    "resnet": ("resnet10t", {}, "map", [(16, 24), (8, 12), (4, 6), (2, 3)]),
}


@pytest.mark.parametrize("name", RECTANGULAR)
def test_axes_of_rectangular_images_are_not_exchanged(name):
    timm_name, options, layout, sizes = RECTANGULAR[name]
    torch.manual_seed(0)
    net = timm.create_model(timm_name, num_classes=5, **options)
    images = torch.rand(2, 3, 64, 96)
    stages = find_stages(net, images)
    assert [stage.layout for stage in stages] == [layout] * 4
    features = {}
    for stage in stages:
        net.get_submodule(stage.name).register_forward_hook(
            lambda _m, _i, out, name=stage.name: features.update({name: out})
        )
    with torch.no_grad():
        net.eval()(images)
    maps = [stage.map(features[stage.name]) for stage in stages]
    assert [tuple(m.shape[2:]) for m in maps] == sizes
    assert [m.shape[1] for m in maps] == [stage.channels for stage in stages]


class Places(nn.Module):
    """A net whose stage tells rows from columns: channel 0 is the row, channel 1 the column, of patches of 8."""

    def __init__(self, layout: str, prefix: int = 0, strict: bool = False):
        super().__init__()
        self.stage, self.head = Spread(layout, prefix, strict), nn.Linear(3, 2)

    def forward(self, x):
        out = self.stage(x)
        return self.head(out.flatten(1).mean(1, keepdim=True).expand(-1, 3))


class Spread(nn.Module):
    def __init__(self, layout, prefix, strict):
        super().__init__()
        self.layout, self.prefix, self.strict, self.size = layout, prefix, strict, None

    def forward(self, x):
        self.size = self.size or x.shape[2:]
        if self.strict and x.shape[2:] != self.size:
            raise ValueError("one size only")
        rows, columns = x.shape[2] // 8, x.shape[3] // 8
        r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        found = torch.stack([r, c, r * 0], 0).float().expand(len(x), -1, -1, -1)
        if self.layout == "map_last":
            return found.permute(0, 2, 3, 1)
        if self.layout == "tokens":
            tokens = found.flatten(2).transpose(1, 2)
            return torch.cat([torch.zeros(len(x), self.prefix, 3), tokens], 1)
        return found


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (32, 160), (160, 32), (64, 64), (24, 64), (72, 104)])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("layout", ["map", "map_last", "tokens"])
def test_every_place_keeps_its_row_and_column(layout, prefix, strict, size):
    net = Places(layout, prefix, strict)
    # Of a net of one size the other tokens can only be counted where one grid fits.
    wish = {"prefix_tokens": prefix} if layout == "tokens" and strict else {}
    (stage,) = find_stages(net, torch.zeros(2, 3, *size), ["stage"], **wish)
    found = stage.map(net.stage(torch.zeros(1, 3, *size)))
    rows, columns = size[0] // 8, size[1] // 8
    assert found.shape == (1, 3, rows, columns)
    assert torch.equal(found[0, 0], torch.arange(rows).float()[:, None].expand(rows, columns))
    assert torch.equal(found[0, 1], torch.arange(columns).float()[None].expand(rows, columns))


def test_images_of_another_size_than_the_example_keep_the_ratio():
    net = Places("tokens", prefix=1)
    (stage,) = find_stages(net, torch.zeros(2, 3, 64, 96), ["stage"])
    assert stage.map(net.stage(torch.zeros(1, 3, 128, 192))).shape == (1, 3, 16, 24)
    with pytest.raises(ValueError, match=r"are no grid like the 8 x 12 of the example"):
        stage.map(torch.zeros(1, 1 + 97, 3))


@pytest.mark.usefixtures("as_a_user")
def test_ambiguous_axes_are_refused_and_can_be_said():
    class Fixed(nn.Module):
        """Pooled to 5 x 5 whatever the image: with 5 channels every reading fits."""

        def __init__(self, shape):
            super().__init__()
            self.stage, self.head = Constant(shape), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.stage(x).flatten(1)[:, :3])

    class Constant(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.shape = shape

        def forward(self, x):
            return torch.zeros(len(x), *self.shape)

    example = torch.zeros(2, 3, 32, 48)
    cube = Fixed((5, 5, 5))
    with pytest.raises(
        ValueError, match=r"stage 'stage' .*\(2, 5, 5, 5\), and channels may come first or last: say"
    ):
        find_stages(cube, example, ["stage"])
    for layout in ("map", "map_last"):
        assert find_stages(cube, example, ["stage"], layout)[0].layout == layout
        assert find_stages(cube, example, ["stage"], {"stage": layout})[0].layout == layout
    odd = Fixed((17, 4))
    with pytest.raises(ValueError, match=r"its tokens do not change with the size of the images"):
        find_stages(odd, example, ["stage"])
    with pytest.raises(ValueError, match=r"its 17 tokens fill no grid of an image of 32 x 48"):
        find_stages(odd, example, ["stage"], "tokens")
    with pytest.raises(ValueError, match=r"layout='channels'; choose one of map, map_last, tokens, vector"):
        find_stages(odd, example, ["stage"], "channels")
    with pytest.raises(ValueError, match=r"layout names stagg, which are no stages; they are stage"):
        find_stages(odd, example, ["stage"], {"stagg": "map"})
    with pytest.raises(ValueError, match=r"prefix_tokens=-1; give a number of tokens"):
        find_stages(odd, example, ["stage"], prefix_tokens=-1)
    with pytest.raises(ValueError, match=r"layout='map' has 4 axes"):
        find_stages(odd, example, ["stage"], "map")


class _Blocks(nn.Module):
    """A convolutional stem, blocks of tokens that auto may or may not be able to read, and a convolutional head."""

    def __init__(self, count: int, prefix: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)) for _ in range(count)
        )
        self.fc = nn.Conv2d(8, 5, 1)
        if prefix:
            self.num_prefix_tokens = prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).mT
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.fc(tokens.mean(1)[:, :, None, None]).flatten(1)


def test_auto_takes_no_stem_for_the_trunk():
    """As with LeViT, XCiT and hybrid transformers, whose stems shrink maps more often than the rest."""
    found = find_stages(_Blocks(8, 0), torch.zeros(2, 3, 32, 32))
    assert [stage.name for stage in found] == ["blocks.1", "blocks.3", "blocks.5", "blocks.7"]


def test_auto_takes_no_part_of_a_block_for_the_trunk():
    """Blocks whose tokens cannot be read (CaiT, ConViT) are said so, instead of four layers of one of them."""
    with pytest.raises(ValueError, match=r'no stages found by "auto"; name them: stem, fc, stem\.0'):
        find_stages(_Blocks(8, 5), torch.zeros(2, 3, 32, 32))


def test_auto_takes_no_head_of_convolutions():
    body = [nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(*body, nn.Conv2d(8, 5, 1), nn.Flatten())
    assert [stage.name for stage in find_stages(net, torch.zeros(2, 3, 32, 32))] == ["0", "1"]
