"""Version 2: its total against its plain functions, what each weight switches, and what is left in the net."""

import pytest
import torch
import torch.nn.functional as F
from corsd import RelationalDistiller, RelationalWeights
from corsd.baselines import ExitMethod
from corsd.ensemble import ensemble_distillation, stage_ensemble
from corsd.mixing import mix, two_hot_cross_entropy
from corsd.nets import small_resnet
from corsd.rows import cosine_relations, relation_auc, relation_rows, row_distillation, row_targets
from shared_core.testing import assert_same_state

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
ALL = RelationalWeights(rows=0.3, row_distillation=0.7, ensemble=0.5, warmup_steps=4)


def images(count=8):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def distiller(**options):
    torch.manual_seed(0)
    net = small_resnet([1, 1, 1, 1], 4, 3)
    return RelationalDistiller(net, num_classes=3, example=images(2), norm="group", **options)


@pytest.mark.parametrize("mixing", ["off", "mixup", "cutmix"])
def test_parts_are_those_of_the_plain_functions(mixing):
    made = distiller(weights=ALL, mixing=mixing, seed=3).train()
    # Batch norm in the net would otherwise move on between the two passes.
    made.net.eval()
    out = made(images(), LABELS)
    mixed, labels = mix(images(), LABELS, mixing, 1.0, 3, 0)
    with torch.no_grad():
        logits, features = made._features(mixed)
        exits = [head(f) for head, f in zip(made.exits.classifiers, features[:-1], strict=True)]
        relations = [cosine_relations(p(f)) for p, f in zip(made.projections, features, strict=True)]
        targets = row_targets(*labels)
        teacher = stage_ensemble([*exits, logits])
        expected = {
            "ce": two_hot_cross_entropy(logits, labels),
            "exit_ce": sum(two_hot_cross_entropy(z, labels) for z in exits),
            "ensemble": 0.25 * 0.5 * ensemble_distillation([*exits, logits], teacher),
            "rows": 0.3 * sum(relation_rows(r, targets) for r in relations),
            "row_distillation": 0.25 * 0.7 * sum(row_distillation(r, relations[-1]) for r in relations[:-1]),
        }
    assert list(out.parts) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(out.parts[name].detach(), value, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(out.loss.detach(), sum(expected.values()))


def test_every_parameter_is_trained_whatever_is_on():
    for weights in (
        ALL,
        RelationalWeights(),
        RelationalWeights(rows=0.0),
        RelationalWeights(rows=1.0, ensemble=1.0),
    ):
        made = distiller(weights=weights).train()
        made(images(), LABELS).loss.backward()
        assert [n for n, p in made.named_parameters() if p.grad is None] == []


def test_weights_of_0_leave_the_cross_entropy_of_the_net():
    made = distiller(weights=RelationalWeights(deep_supervision=0.0, rows=0.0), mixing="off").train()
    made.net.eval()
    out = made(images(), LABELS)
    torch.testing.assert_close(out.loss, F.cross_entropy(made.net(images()), LABELS))
    assert list(made.projections) == []


def test_without_rows_and_mixing_it_is_deep_supervision():
    made = distiller(weights=RelationalWeights(rows=0.0), mixing="off").train()
    torch.manual_seed(0)
    net = small_resnet([1, 1, 1, 1], 4, 3)
    control = ExitMethod(net, 3, "deep_supervision", example=images(2), norm="group").train()
    for method in (made, control):
        method(images(), LABELS).loss.backward()
    for own, other in zip(made.parameters(), control.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_nothing_is_mixed_or_counted_in_evaluation_mode():
    made = distiller().eval()
    torch.testing.assert_close(made(images(), LABELS).logits, made.net(images()))
    assert int(made.steps) == 0


def test_nothing_is_left_in_the_net():
    made = distiller()
    plain = small_resnet([1, 1, 1, 1], 4, 3)
    assert list(made.net.state_dict()) == list(plain.state_dict())
    made(images(), LABELS).loss.backward()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.net.modules())
    plain.load_state_dict(made.net.state_dict())
    assert_same_state(plain.state_dict(), made.net.state_dict())
    made.net.eval(), plain.eval()
    assert torch.equal(made.net(images()), plain(images()))


def class_images(seed):
    """Images of three classes: a pattern per class, under noise as large as the pattern."""
    patterns = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(24) % 3
    return patterns[labels] + torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), labels


def areas(made, seed):
    made.eval()
    x, labels = class_images(seed)
    found = [float(relation_auc(cosine_relations(g), labels)) for g in made.embeddings(x)]
    made.train()
    return found


@pytest.mark.parametrize("mixing", ["off", "mixup"])
def test_relations_of_unseen_images_are_learned_at_every_stage(mixing):
    made = distiller(mixing=mixing)
    before = areas(made, 1000)
    optimizer = torch.optim.SGD(made.parameters(), 0.05, momentum=0.9)
    for seed in range(60):
        made(*class_images(seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = areas(made, 1000)
    assert len(after) == len(made.stages)
    assert min(after) > 0.95, (before, after)
    assert max(before) < 0.95, (before, after)


@pytest.mark.usefixtures("as_a_user")
def test_settings_that_cannot_be_are_named():
    with pytest.raises(ValueError, match=r"weights.tau is 0.0; it must be a finite number above 0"):
        RelationalWeights(tau=0.0)
    with pytest.raises(ValueError, match=r"weights.ensemble is nan; it must be a finite number from 0 up"):
        RelationalWeights(ensemble=float("nan"))
    with pytest.raises(ValueError, match=r"row_distillation is 1.0 and weights.rows 0.*give rows above 0"):
        RelationalWeights(rows=0.0, row_distillation=1.0)
    with pytest.raises(ValueError, match=r"embedding=0"):
        distiller(embedding=0)
    with pytest.raises(ValueError, match=r"mixing='blend'"):
        distiller(mixing="blend")
    with pytest.raises(ValueError, match=r"no relations are learned"):
        distiller(weights=RelationalWeights(rows=0.0)).embeddings(images())
    with pytest.raises(ValueError, match=r"labels range from 0 to 7; num_classes=3"):
        distiller()(images(), torch.arange(8))
