"""The distiller in a loop of one's own: parts, switches, safe behaviour on odd batches, errors, bf16, compile."""

import pytest
import torch
from corsd import Distiller, Variant, Weights
from corsd.nets import small_resnet
from corsd.pairs import triplet_plan

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3])
PARTS = ["ce", "triplet", "aux_ce", "aux_kl", "relation", "logit_relation"]


def make(**options):
    torch.manual_seed(0)
    net = small_resnet([1, 1, 1, 1], 8, 4)
    return Distiller(net, num_classes=4, example=torch.zeros(2, 3, 16, 16), **options)


def images(count=7, seed=0):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_sum_of_its_parts_and_the_logits_are_the_nets():
    distiller = make().eval()
    out = distiller(images(), LABELS)
    assert list(out.parts) == PARTS
    torch.testing.assert_close(out.loss, sum(out.parts.values()))
    assert torch.equal(out.logits, distiller.net(images()))
    assert [r.same.shape for r in out.relations] == [(2,)] * 4
    assert not any(value.requires_grad for r in out.relations for value in r)


@pytest.mark.parametrize("part", PARTS[1:])
def test_a_weight_of_zero_silences_its_part_alone(part):
    fields = {"aux_ce": ["same_ce", "other_ce", "same_kl", "other_kl"], "aux_kl": ["same_kl", "other_kl"]}
    weights = Weights(**dict.fromkeys(fields.get(part, [part]), 0.0))
    out, full = make(weights=weights)(images(), LABELS), make()(images(), LABELS)
    assert out.parts[part].item() == 0
    for other in {"ce", "triplet", "relation", "logit_relation"} - {part}:
        torch.testing.assert_close(out.parts[other], full.parts[other])


def test_choice_of_pairs_is_a_pure_function_of_seed_and_step():
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    first = [m(images(), LABELS).loss.item() for m in (a, b, c)]
    assert first[0] == first[1] != first[2]
    assert int(a.steps) == 1
    b.eval()(images(), LABELS)
    assert int(b.steps) == 1


def test_teacher_is_detached_by_default():
    def gradient_of_deepest_head(variant):
        distiller = make(variant=variant)
        distiller(images(), LABELS).parts["relation"].backward()
        return distiller.relations[-1].relation[0].weight.grad

    assert gradient_of_deepest_head(Variant()) is None
    assert gradient_of_deepest_head(Variant(detach_teacher=False)).abs().sum() > 0


@pytest.mark.parametrize(
    "variant",
    [
        Variant(detach_teacher=False),
        Variant(soft_label="softmaxed"),
        Variant(logit_relation="sum"),
        Variant(prototype="ema"),
        Variant(prototype="sum"),
        Variant(deepest_ce="reduced"),
        Variant(attention=True),
        Variant(margin=0.2),
        Variant(temperature=1.0),
        Variant(aux_kl="raw_logits"),
        Variant.released(),
    ],
    ids=str,
)
def test_every_switch_changes_the_loss_and_trains(variant):
    distiller, usual = make(variant=variant), make()
    for _ in range(2):  # the prototypes differ only after they have moved
        out, ordinary = distiller(images(), LABELS), usual(images(), LABELS)
    out.loss.backward()
    assert out.loss.isfinite()
    assert out.loss.item() != ordinary.loss.item() or not variant.detach_teacher


def test_logit_relation_can_be_off():
    distiller = make(variant=Variant(logit_relation="off"))
    assert "logit_relation" not in distiller(images(), LABELS).parts
    assert not any(key.startswith("logit_relation") for key in distiller.state_dict())


def test_warm_up_raises_all_but_cross_entropy():
    def parts(weights):
        return make(weights=weights)(images(), LABELS).parts

    warming, full = parts(Weights(warmup_steps=10)), parts(Weights())
    torch.testing.assert_close(warming["ce"], full["ce"])
    for name in PARTS[1:]:
        torch.testing.assert_close(warming[name], full[name] / 10)


def test_triplets_from_the_plan():
    labels = LABELS[torch.arange(28) % 7]
    rows = triplet_plan(labels, 4, seed=0)(0)[0, :, 0]
    out = make(pairs="triplets")(images(28)[rows], labels[rows])
    assert [r.same.shape for r in out.relations] == [(4,)] * 4


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [2, 2, 2, 2], [1, 1], [3, 0, 2]])
def test_batches_without_triplets_are_safe(labels):
    distiller = make()
    out = distiller(images(len(labels)), torch.tensor(labels))
    out.loss.backward()
    assert [out.parts[p].item() for p in ("triplet", "aux_ce", "aux_kl", "relation")] == [0] * 4
    assert out.relations == []
    # every parameter still has a gradient, so that no process waits for another's
    assert all(p.grad is not None for p in distiller.parameters())


def test_two_classes_and_odd_batches():
    torch.manual_seed(0)
    net = small_resnet([1, 1, 1, 1], 8, 2)
    distiller = Distiller(net, num_classes=2, example=torch.zeros(2, 3, 16, 16))
    for size in (3, 5, 9):
        out = distiller(images(size), torch.arange(size) % 2)
        assert out.loss.isfinite()


def test_grey_images():
    net = small_resnet([1, 1, 1, 1], 8, 4, in_channels=1)
    distiller = Distiller(net, num_classes=4, example=torch.zeros(2, 1, 8, 8))
    assert distiller(torch.rand(7, 1, 8, 8), LABELS).loss.isfinite()


@pytest.mark.usefixtures("as_a_user")
def test_wrong_input_is_named():
    distiller = make()
    with pytest.raises(ValueError, match=r"labels range from 0 to 4; num_classes=4 allows 0 to 3"):
        distiller(images(), torch.tensor([0, 1, 2, 3, 4, 0, 0]))
    with pytest.raises(ValueError, match=r"labels range from -1"):
        distiller(images(), torch.tensor([-1, 1, 2, 3, 0, 0, 0]))
    with pytest.raises(TypeError, match=r"one integer per image; got torch.float32 of shape \(7, 4\)"):
        distiller(images(), torch.rand(7, 4))
    # The dry run finds it already, on the two images of the example.
    with pytest.raises(ValueError, match=r"logits of shape \(2, 4\).*expected \(2, 9\)"):
        Distiller(distiller.net, num_classes=9, example=torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"pairs='in-batch'; choose 'in_batch' or 'triplets'"):
        make(pairs="in-batch")
    with pytest.raises(ValueError, match=r"num_classes=1: relations between classes need at least 2"):
        Distiller(distiller.net, num_classes=1)
    with pytest.raises(ValueError, match=r"exits=True; choose"):
        make(exits=True)


def test_state_dict_brings_everything_back():
    a, b = make(), make(seed=0)
    for _ in range(3):
        a(images(), LABELS).loss.backward()
        torch.optim.SGD(a.parameters(), 0.1).step()
    b.load_state_dict(a.state_dict())
    assert a(images(), LABELS).loss.item() == b(images(), LABELS).loss.item()


def test_detached_exits_leave_the_net_alone():
    def net_gradients(exits):
        torch.manual_seed(0)
        distiller = make(exits=exits)
        distiller.relations.load_state_dict(make().relations.state_dict())
        distiller.logit_relation.load_state_dict(make().logit_relation.state_dict())
        distiller(images(), LABELS).loss.backward()
        return torch.cat([p.grad.flatten() for p in distiller.net.parameters()])

    torch.testing.assert_close(net_gradients("off"), net_gradients("detached"))
    assert not torch.allclose(net_gradients("off"), net_gradients("joint"))


def test_bfloat16_autocast_is_close_to_single():
    out = make()(images(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        half = make()(images(), LABELS)
    assert half.loss.item() == pytest.approx(out.loss.item(), rel=0.05)
    half.loss.backward()


@pytest.mark.slow
@pytest.mark.compile
def test_compiled_net_gives_the_same_losses_and_keeps_no_features():
    eager, compiled = make(), make()
    compiled.net.compile()
    for _ in range(2):
        a, b = eager(images(), LABELS), compiled(images(), LABELS)
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-4, atol=1e-4)
    compiled.net.eval()(images())
    assert not any(m._forward_hooks for m in compiled.net.modules())
