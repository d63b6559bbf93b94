"""Relation networks: the split form against the plain one, sizes of the paper, prototypes against loops."""

import pytest
import torch
from corsd.relation import LogitRelation, RelationNetwork, Triplets, relation_networks
from torch import nn

TRIPLETS = Triplets(torch.tensor([0, 3, 0]), torch.tensor([1, 4, 2]), torch.tensor([5, 2, 4]))


def _network(norm="batch", widths=(24, 48), attention=False):
    torch.manual_seed(0)
    return RelationNetwork(8, list(widths), 5, 16, norm, attention).double()


def _plain(network: RelationNetwork, maps, triplets):
    """The network as the method states it: join two maps along the channels, then convolve the pairs."""
    first = maps[torch.cat([triplets.anchor, triplets.anchor])]
    second = maps[torch.cat([triplets.positive, triplets.negative])]
    x = torch.cat([first, second], 1)
    if network.first is not None:
        block = network.first
        x = block.norm(block.pointwise(block.depthwise(x))).relu()
        x = block.out_norm(block.expand(x)).relu()
        x = network.blocks(x)
    vector = x.mean((2, 3))
    return network.relation(vector).squeeze(1), network.classifier(vector)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("widths", [(), (24,), (24, 48)])
def test_split_form_equals_joined_maps(norm, widths):
    network = _network(norm, widths)
    maps = torch.randn(6, 8, 7, 6, dtype=torch.float64)
    relation, logits = _plain(network, maps, TRIPLETS)
    got = network(maps, TRIPLETS)
    torch.testing.assert_close(torch.cat([got.same, got.other]), relation, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat([got.same_logits, got.other_logits]), logits, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_split_form_equal_those_of_joined_maps():
    network = _network("group")
    maps = torch.randn(6, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    parameters = [maps, *network.parameters()]
    relation, logits = _plain(network, maps, TRIPLETS)
    wanted = torch.autograd.grad(relation.sum() + logits.square().sum(), parameters)
    got = network(maps, TRIPLETS)
    total = (
        got.same.sum() + got.other.sum() + got.same_logits.square().sum() + got.other_logits.square().sum()
    )
    for a, b in zip(torch.autograd.grad(total, parameters), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_extra_parameters_for_resnet18_at_width_64_and_100_classes():
    # Section 1.4 of the study: 1.29 + 1.24 + 1.03 + 0.37 million.
    networks = relation_networks([64, 128, 256, 512], 100)
    millions = [round(sum(p.numel() for p in net.parameters()) / 1e6, 2) for net in networks]
    assert millions == [1.29, 1.24, 1.03, 0.37]
    assert sum(p.numel() for p in networks.parameters()) == 3_921_812


def test_all_stages_end_at_one_width():
    networks = relation_networks([48, 96, 192, 384], 7)
    assert {net.classifier.in_features for net in networks} == {768}


@pytest.mark.parametrize("channels", [[12], [192, 192, 192, 192], [16, 24, 40, 1280], [7, 9]])
def test_any_widths(channels):
    networks = relation_networks(channels, 3, norm="group")
    for net, c in zip(networks, channels, strict=True):
        assert net(torch.randn(6, c, 4, 4), TRIPLETS).same.shape == (3,)


def test_group_norm_makes_pairs_independent_of_the_batch():
    network = _network("group").train()
    maps = torch.randn(6, 8, 4, 4, dtype=torch.float64)
    alone = network(maps, Triplets(*(rows[:1] for rows in TRIPLETS)))
    torch.testing.assert_close(network(maps, TRIPLETS).same[:1], alone.same)


@pytest.mark.parametrize("channels", [4, 8, 16])
def test_a_narrow_head_with_group_norm_still_compares(channels):
    """Groups of one value would leave the biases alone: one relation for every pair, and rounding to train on."""
    torch.manual_seed(0)
    widths = [channels, 2 * channels]
    for network, width in zip(relation_networks(widths, 3, norm="group"), widths, strict=True):
        same = network.double()(torch.randn(6, width, 4, 4, dtype=torch.float64), TRIPLETS).same
        assert same.std() > 1e-3


def test_attention_changes_the_relation_and_keeps_shapes():
    maps = torch.randn(6, 8, 5, 5, dtype=torch.float64)
    with_it, without = _network(attention=True)(maps, TRIPLETS), _network()(maps, TRIPLETS)
    assert with_it.same.shape == without.same.shape
    assert not torch.allclose(with_it.same, without.same)


def _slow_prototypes(kind, start, batches, decay):
    rows = start.clone()
    for softmax, labels in batches:
        for k in range(len(rows)):
            own = [s for s, y in zip(softmax, labels.tolist(), strict=True) if y == k]
            if kind == "ema" and own:
                rows[k] = decay * rows[k] + (1 - decay) * torch.stack(own).mean(0)
            elif own and kind != "ema":
                rows[k] += torch.stack(own).sum(0)
    return rows


@pytest.mark.parametrize("kind", ["mean", "ema", "sum"])
def test_prototypes_equal_a_loop(kind):
    module = LogitRelation(4, kind, decay=0.9).double()
    logits = [torch.randn(6, 4, dtype=torch.float64) for _ in range(3)]
    labels = [torch.tensor([0, 1, 1, 3, 0, 1]), torch.tensor([3] * 6), torch.tensor([0, 1, 2, 3, 2, 2])]
    for z, y in zip(logits, labels, strict=True):
        module.update(z, y)
    batches = [(z.softmax(1), y) for z, y in zip(logits, labels, strict=True)]
    wanted = _slow_prototypes(kind, torch.eye(4, dtype=torch.float64), batches, 0.9)
    torch.testing.assert_close(module.prototypes, wanted)


def test_logit_relation_equals_a_loop():
    module = LogitRelation(4, "mean").double().eval()
    module.update(torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 4)
    logits, own, other = (
        torch.randn(5, 4, dtype=torch.float64),
        torch.arange(5) % 4,
        (torch.arange(5) + 1) % 4,
    )
    got = module(logits, own, other)
    for i in range(5):
        values = []
        for label in (own[i], other[i]):
            row = module.prototypes[label] / module.prototypes[label].sum()
            joined = torch.cat([logits[i].softmax(0), row])[None]
            hidden = module.norm(nn.functional.linear(joined, module.project.weight, module.project.bias))
            values.append(torch.sigmoid(module.scale(hidden.relu())).item())
        assert got[i].item() == pytest.approx(values[0] - values[1], rel=1e-10, abs=1e-14)


def test_prototypes_are_in_the_state_dict():
    assert "prototypes" in LogitRelation(3).state_dict()


@pytest.mark.compile
def test_compiled_network_equals_eager():
    network = _network("group")
    maps = torch.randn(6, 8, 6, 6, dtype=torch.float64)
    compiled = torch.compile(network)
    torch.testing.assert_close(compiled(maps, TRIPLETS).same, network(maps, TRIPLETS).same)


@pytest.mark.parametrize("prototype", ["mean", "ema", "sum"])
def test_images_without_finite_logits_leave_the_prototypes_alone(prototype: str) -> None:
    """A step that a loss scaler leaves out must not poison every later loss."""
    labels, fine = torch.tensor([0, 1, 0, 2]), torch.tensor([True, True, False, False])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    broken = torch.where(fine[:, None], logits, float("inf"))
    whole, part = LogitRelation(3, prototype), LogitRelation(3, prototype)
    whole.update(broken, labels)
    part.update(logits[fine], labels[fine])
    assert torch.equal(whole.prototypes, part.prototypes)
