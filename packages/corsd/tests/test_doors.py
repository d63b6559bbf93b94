"""The public doors name wrong shapes and types in one sentence, also for users without shape checks."""

import pytest
import torch
from corsd import (
    Distiller,
    EarlyExit,
    Exits,
    TripletDataset,
    collate_triplets,
    find_stages,
    losses,
    triplet_plan,
)
from corsd.baselines import CSKD, PSKD, bake, contrastive, dks, handcrafted, mixskd, ols, one, sla
from corsd.ensemble import ensemble_distillation, stage_ensemble
from corsd.mixing import TwoHot, cutmix, mixing_draws, mixup, two_hot_cross_entropy
from corsd.nets import small_resnet
from corsd.rows import cosine_relations, relation_auc, relation_rows, row_distillation, row_targets
from shared_core.ops import all_gather, average_gradients, entropy, kl_divergence, project, soft_cross_entropy
from torch import nn

pytestmark = pytest.mark.usefixtures("as_a_user")
Z, LABELS = torch.rand(4, 3), torch.tensor([0, 0, 1, 1])
EXAMPLE = torch.zeros(2, 3, 16, 16)


def net():
    return small_resnet([1, 1, 1, 1], 8, 4)


def distiller():
    return Distiller(net(), num_classes=4, example=EXAMPLE)


CASES = {
    "distiller: images": (lambda: distiller()([1, 2], LABELS), TypeError, "images must be a tensor"),
    "distiller: too few labels": (
        lambda: distiller()(torch.rand(3, 3, 16, 16), LABELS),
        ValueError,
        r"logits of shape \(3, 4\) for 4 labels",
    ),
    "distiller: example": (
        lambda: Distiller(net(), num_classes=4, example=[1]),
        TypeError,
        "example must be a tensor",
    ),
    "distiller: no example": (
        lambda: Distiller(net(), num_classes=4, example=EXAMPLE[:0]),
        ValueError,
        r"example has shape \(0, 3, 16, 16\); give a batch",
    ),
    "exits: number": (
        lambda: Exits([4, 8], 16, 3)([torch.zeros(1, 4, 4, 4)]),
        ValueError,
        r"of \[4, 8\] channels, shallow to deep; got shapes",
    ),
    "exits: channels": (
        lambda: Exits([4], 16, 3)([torch.zeros(1, 5, 4, 4)]),
        ValueError,
        r"got shapes \[\(1, 5, 4, 4\)\]",
    ),
    "exits: maps": (lambda: Exits([4], 16, 3)([torch.zeros(1, 4)]), ValueError, "made for maps"),
    "early exit": (
        lambda: EarlyExit(net(), find_stages(net(), EXAMPLE)[:-1], Exits([8, 16, 32], 64, 4))([1]),
        TypeError,
        "images must be a tensor",
    ),
    "triplet plan: anchors": (lambda: triplet_plan(LABELS, 0, 0), ValueError, "anchors=0; a batch has"),
    "triplet plan: one-hot": (
        lambda: triplet_plan(torch.eye(4), 1, 0),
        ValueError,
        r"labels.argmax\(1\)",
    ),
    "triplet data set": (
        lambda: TripletDataset([(0, 0)] * 3, LABELS),
        ValueError,
        "there are 4 labels for 3 images",
    ),
    "collate": (
        lambda: collate_triplets([([torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)], [0, 1])]),
        ValueError,
        "images of one batch must have one shape",
    ),
    "cs_kd": (
        lambda: CSKD(net(), 4)(torch.rand(6, 3, 16, 16), LABELS),
        ValueError,
        "there are 4 labels for 6 images",
    ),
    "ps_kd": (
        lambda: PSKD(net(), 4, 9, 9)(torch.rand(4, 3, 16, 16), LABELS, torch.arange(3)),
        ValueError,
        "there are 3 index for 4 images",
    ),
    "entropy": (lambda: entropy(Z[0]), ValueError, r"logits has shape \(3,\); it must be \(batch, classes\)"),
    "entropy: integers": (
        lambda: entropy(LABELS[None]),
        TypeError,
        "floating-point numbers .*got torch.int64",
    ),
    "kl": (lambda: kl_divergence(Z, Z.tolist()), TypeError, "teacher_logits must be a tensor .*got a list"),
    "kl: three axes": (lambda: kl_divergence(Z[None], Z[None]), ValueError, r"has shape \(1, 4, 3\)"),
    "soft": (lambda: soft_cross_entropy(Z, Z[:, :1]), ValueError, r"\(4, 1\) and logits has shape \(4, 3\)"),
    "soft: labels": (lambda: soft_cross_entropy(Z, LABELS), TypeError, "target must be a tensor of floating"),
    "project": (
        lambda: project(Z, Z[:1], 0.1, 0, 1),
        ValueError,
        r"x has shape \(4, 3\) and center \(1, 3\)",
    ),
    "triplet_hinge": (
        lambda: losses.triplet_hinge(Z[:, 0], Z[0]),
        ValueError,
        r"other has shape \(3,\); it must be \(triplets=4\)",
    ),
    "pair_cross_entropy": (
        lambda: losses.pair_cross_entropy(Z, LABELS, LABELS[:2]),
        ValueError,
        r"second has shape \(2,\); it must be \(pairs=4\): one class per pair",
    ),
    "softmaxed_pair_cross_entropy": (
        lambda: losses.softmaxed_pair_cross_entropy(Z, LABELS.float(), LABELS),
        TypeError,
        r"first has the type torch.float32; give integers, first.long\(\)",
    ),
    "auxiliary_distillation": (
        lambda: losses.auxiliary_distillation(Z, Z.tolist()),
        TypeError,
        "deep is a list; give a torch.Tensor of shape",
    ),
    "raw_logit_divergence": (
        lambda: losses.raw_logit_divergence(Z, Z[:1]),
        ValueError,
        r"deep has shape \(1, 3\); it must be \(pairs=4, classes=3\)",
    ),
    "relation_distillation": (
        lambda: losses.relation_distillation(Z[:, 0], Z[:1, 0]),
        ValueError,
        r"deep has shape \(1,\); it must be \(pairs=4\)",
    ),
    **{
        name: (
            lambda relation=relation: relation(Z, Z[:2]),
            ValueError,
            r"teacher has shape \(2, 3\); it must be \(batch=4, channels\): of the same images",
        )
        for name, relation in {
            "rkd": handcrafted.rkd,
            "similarity_preserving": handcrafted.similarity_preserving,
            "probabilistic_transfer": handcrafted.probabilistic_transfer,
        }.items()
    },
    "pairwise_distillation": (
        lambda: dks.pairwise_distillation([Z, Z[:2]]),
        ValueError,
        r"logits\[1\] has shape \(2, 3\); it must be \(batch=4, classes=3\): all of the same images",
    ),
    "stage_ensemble": (lambda: stage_ensemble([Z.tolist()]), TypeError, r"logits\[0\] is a list"),
    "ensemble_distillation": (
        lambda: ensemble_distillation([Z], Z[:1]),
        ValueError,
        r"teacher has shape \(1, 3\); it must be \(batch=4, classes=3\)",
    ),
    "gated_ensemble": (
        lambda: one.gated_ensemble([Z, Z], Z),
        ValueError,
        r"gate_logits has shape \(4, 3\); it must be \(batch=4, stages=2\): one gate per image and stage",
    ),
    "supervised_contrast": (
        lambda: contrastive.supervised_contrast(Z, LABELS[:3]),
        ValueError,
        "there are 3 labels for 4 images",
    ),
    "turned": (
        lambda: sla.turned(torch.zeros(2, 3, 4, 4).byte()),
        TypeError,
        "images has the type torch.uint8",
    ),
    "joint_cross_entropy": (
        lambda: sla.joint_cross_entropy(torch.zeros(8, 12), LABELS),
        ValueError,
        "there are 4 labels for 2 images",
    ),
    "aggregated": (
        lambda: sla.aggregated(Z),
        ValueError,
        r"joint has shape \(4, 3\); with turns=4 it must be \(turns \* batch, turns \* classes\)",
    ),
    "propagated": (
        lambda: bake.propagated(Z[:2], Z),
        ValueError,
        r"logits has shape \(4, 3\); it must be \(batch=2, classes\): of the same images",
    ),
    "propagation_distillation": (
        lambda: bake.propagation_distillation(Z, LABELS),
        TypeError,
        "target has the type torch.int64",
    ),
    "online_label_smoothing": (
        lambda: ols.online_label_smoothing(Z, LABELS, Z),
        ValueError,
        r"soft_labels has shape \(4, 3\); it must be \(classes=3, classes=3\)",
    ),
    "add_right_predictions": (
        lambda: ols.add_right_predictions(Z[:3], Z[0, :2], Z, LABELS),
        ValueError,
        r"counts has shape \(2,\); it must be \(classes=3\)",
    ),
    "next_soft_labels": (
        lambda: ols.next_soft_labels(Z[:3], Z, Z[0]),
        ValueError,
        r"sums has shape \(4, 3\); it must be \(classes=3, classes=3\)",
    ),
    "interpolated": (
        lambda: mixskd.interpolated(Z, Z[0]),
        ValueError,
        r"lam has shape \(3,\); it must be \(batch=4\): one share per image",
    ),
    "mixed_logit_consistency": (
        lambda: mixskd.mixed_logit_consistency(Z, Z[:1], Z[:, 0]),
        ValueError,
        r"plain has shape \(1, 3\); it must be \(batch=4, classes=3\)",
    ),
    "mixed_map_consistency": (
        lambda: mixskd.mixed_map_consistency(Z, Z[:1], Z[:, 0]),
        ValueError,
        r"plain has shape \(1, 3\); it must be that of mixed, \(4, 3\)",
    ),
    "mixup": (
        lambda: mixup(Z, LABELS, mixing_draws(0, 0, 2)),
        ValueError,
        r"draws has shape \(2, 3\); it must be \(batch=4, 3\): see mixing_draws",
    ),
    "mixup: labels": (
        lambda: mixup(Z, LABELS[:2], mixing_draws(0, 0, 4)),
        ValueError,
        "there are 2 labels for 4 images",
    ),
    "cutmix": (
        lambda: cutmix(Z, LABELS, mixing_draws(0, 0, 4)),
        ValueError,
        r"images has shape \(4, 3\); it must be \(batch, channels, height, width\)",
    ),
    "two_hot_cross_entropy": (
        lambda: two_hot_cross_entropy(Z, TwoHot(LABELS, LABELS, Z[0])),
        ValueError,
        r"lam has shape \(3,\); it must be \(batch=4\): of the same images",
    ),
    "cosine_relations": (lambda: cosine_relations(Z[0]), ValueError, r"embeddings has shape \(3,\)"),
    "row_targets": (
        lambda: row_targets(LABELS, LABELS[:1], Z[:, 0]),
        ValueError,
        r"second has shape \(1,\); it must be \(batch=4\): one class per image",
    ),
    "relation_rows": (
        lambda: relation_rows(Z @ Z.T, Z),
        ValueError,
        r"targets has shape \(4, 3\); it must be \(batch=4, batch=4\)",
    ),
    "row_distillation": (lambda: row_distillation(Z, Z), ValueError, r"shallow has shape \(4, 3\)"),
    "relation_auc": (
        lambda: relation_auc(Z @ Z.T, LABELS.float()),
        TypeError,
        "labels has the type torch.float32",
    ),
    "gradients": (lambda: average_gradients(nn.Linear(1, 1)), ValueError, "no parameter .* has a gradient"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_tensors_are_named(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("module", [losses, handcrafted, dks, contrastive, one, sla, bake, ols, mixskd])
def test_every_loss_has_a_case(module):
    public = [
        name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__
    ]
    functions = [n for n in public if not n.startswith("_") and not isinstance(getattr(module, n), type)]
    assert functions
    assert set(functions) <= set(CASES)


def test_one_process_gathers_anything():
    assert all_gather(Z) is Z
