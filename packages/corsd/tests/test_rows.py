"""Relation rows and their area under the ROC curve against slow loops."""

import math

import pytest
import torch
from corsd import rows

BATCH, WIDTH, CLASSES = 6, 4, 3
FIRST, SECOND = torch.tensor([0, 0, 1, 2, 1, 0]), torch.tensor([0, 1, 1, 0, 2, 2])


def embeddings(seed, count=BATCH):
    return torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lam(count=BATCH):
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def relations(seed):
    return rows.cosine_relations(embeddings(seed))


def slow_cosine(x):
    return [[float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for b in x] for a in x]


def slow_targets(first, second, share):
    labels = [
        [p * (k == a) + (1 - p) * (k == b) for k in range(CLASSES)]
        for a, b, p in zip(first.tolist(), second.tolist(), share.tolist(), strict=True)
    ]
    found = []
    for a, y in enumerate(labels):
        row = [0.0 if a == b else sum(map(float.__mul__, y, other)) for b, other in enumerate(labels)]
        found.append([v / sum(row) if sum(row) else 0.0 for v in row])
    return found


def slow_row(relations, a, tau):
    powers = [0.0 if a == b else math.exp(float(r) / tau) for b, r in enumerate(relations[a])]
    return [p / sum(powers) if p else 0.0 for p in powers]


def slow_relation_rows(relations, targets, tau):
    counted = [a for a in range(len(targets)) if float(targets[a].sum()) > 0]
    total = 0.0
    for a in counted:
        p = slow_row(relations, a, tau)
        total -= sum(float(t) * math.log(q) for t, q in zip(targets[a], p, strict=True) if q)
    return total / max(len(counted), 1)


def slow_row_distillation(shallow, deep, tau):
    total = 0.0
    for a in range(len(shallow)):
        pairs = zip(slow_row(deep, a, tau), slow_row(shallow, a, tau), strict=True)
        total += sum(p * math.log(p / q) for p, q in pairs if p)
    return total / max(len(shallow), 1)


CASES = {
    "rows": (
        rows.relation_rows,
        slow_relation_rows,
        lambda: [relations(1), rows.row_targets(FIRST, SECOND, lam()), 0.2],
    ),
    "distillation": (rows.row_distillation, slow_row_distillation, lambda: [relations(1), relations(2), 0.2]),
}
every_loss = pytest.mark.parametrize(("loss", "slow", "arguments"), CASES.values(), ids=CASES)


def test_cosine_relations_equal_slow_loops():
    torch.testing.assert_close(relations(1), torch.tensor(slow_cosine(embeddings(1)), dtype=torch.float64))


def test_targets_equal_slow_loops_over_two_hot_labels():
    expected = torch.tensor(slow_targets(FIRST, SECOND, lam()), dtype=torch.float64)
    torch.testing.assert_close(rows.row_targets(FIRST, SECOND, lam()), expected)


def test_a_row_without_a_match_has_no_target_and_is_not_counted():
    labels, ones = torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.float64)
    targets = rows.row_targets(labels, labels, ones)
    assert targets.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    found = relations(1)[:3, :3]
    assert float(rows.relation_rows(found, targets)) == pytest.approx(slow_relation_rows(found, targets, 0.1))


@every_loss
def test_equals_slow_loops(loss, slow, arguments):
    assert float(loss(*arguments())) == pytest.approx(slow(*arguments()), rel=1e-12)


@every_loss
def test_gradient(loss, slow, arguments):
    relation, other, tau = arguments()
    assert torch.autograd.gradcheck(lambda r: loss(r, other, tau), [relation.requires_grad_()])


def test_gradient_of_cosine_relations():
    assert torch.autograd.gradcheck(rows.cosine_relations, [embeddings(1).requires_grad_()])


@every_loss
@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_one_image_give_zero_and_a_finite_gradient(loss, slow, arguments, count):
    relation, other = (x[:count, :count] for x in arguments()[:2])
    relation.requires_grad_()
    value = loss(relation, other)
    value.backward()
    assert float(value.detach()) == 0
    assert torch.isfinite(relation.grad).all()


@every_loss
def test_half_precision_is_computed_in_single(loss, slow, arguments):
    relation, other, tau = arguments()
    relation, other = relation.bfloat16(), other.bfloat16()
    exact = float(loss(relation.double(), other.double(), tau))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(loss(relation, other, tau)) == pytest.approx(exact, rel=1e-5)


def test_half_embeddings_are_compared_in_single_under_autocast():
    half = embeddings(1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = rows.cosine_relations(half)
    torch.testing.assert_close(found.double(), rows.cosine_relations(half.double()), rtol=0, atol=1e-6)


@every_loss
@pytest.mark.compile
def test_compiled_equals_eager(loss, slow, arguments):
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(*arguments()), loss(*arguments()))


@pytest.mark.compile
def test_compiled_targets_equal_eager():
    compiled = torch.compile(rows.row_targets, fullgraph=True)
    torch.testing.assert_close(compiled(FIRST, SECOND, lam()), rows.row_targets(FIRST, SECOND, lam()))


def test_the_deep_stage_is_not_taught():
    shallow, deep = relations(1).requires_grad_(), relations(2).requires_grad_()
    rows.row_distillation(shallow, deep).backward()
    assert deep.grad is None
    assert shallow.grad.abs().sum() > 0
    assert float(rows.row_distillation(deep, deep).detach()) == pytest.approx(0, abs=1e-12)


@pytest.mark.usefixtures("as_a_user")
def test_tau_must_be_above_0():
    with pytest.raises(ValueError, match=r"tau is 0; it must be above 0"):
        rows.row_distillation(relations(1), relations(2), tau=0)


def slow_auc(relations, labels):
    pairs = [(a, b) for a in range(len(labels)) for b in range(a + 1, len(labels))]
    same = [float(relations[a, b]) for a, b in pairs if labels[a] == labels[b]]
    other = [float(relations[a, b]) for a, b in pairs if labels[a] != labels[b]]
    wins = sum((s > o) + 0.5 * (s == o) for s in same for o in other)
    return wins / (len(same) * len(other))


@pytest.mark.parametrize("digits", [1, 8])
def test_area_equals_slow_loops_with_and_without_ties(digits):
    found = (relations(1) * 10**digits).round() / 10**digits
    assert float(rows.relation_auc(found, FIRST)) == pytest.approx(slow_auc(found, FIRST), abs=1e-12)


def test_area_of_perfect_and_useless_relations_and_of_one_class():
    same = (FIRST[:, None] == FIRST[None]).double()
    assert float(rows.relation_auc(same, FIRST)) == 1
    assert float(rows.relation_auc(torch.zeros_like(same), FIRST)) == 0.5
    assert rows.relation_auc(same, torch.zeros_like(FIRST)).isnan()
    assert rows.relation_auc(same[:1, :1], FIRST[:1]).isnan()
    assert rows.relation_auc(same[:0, :0], FIRST[:0]).isnan()
