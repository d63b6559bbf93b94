"""Upright images against the shear that was put in; neighbours and their agreement against slow loops."""

import pytest
import torch
from calib.neighbours import SIDE, Neighbours, agree, looks_and_answers, nearest, upright
from calib.views import look


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def strokes(count, side=32):
    """Images of a few blurred dots on a vertical line and one beside it: none is its own slant."""
    images = torch.zeros(count, 1, side, side)
    where = torch.arange(side) + 0.5
    for image in images:
        for x in (0.0, 0.0, 0.0, 3.0):
            y = 12 * (torch.rand((), generator=generator(int(image.sum() * 100))) - 0.5)
            dot = torch.exp(-(((where - 16 - y) ** 2)[:, None] + ((where - 16 - x) ** 2)[None, :]) / 6)
            image[0] = torch.maximum(image[0], dot)
    return images


def test_a_slanted_image_comes_upright_as_the_same():
    straight = strokes(1)
    same = upright(straight)
    for shear in (-0.3, 0.2, 0.4):
        slanted = look(straight, torch.ones(1), torch.full((1,), shear))
        other = upright(slanted)
        assert (other - same).abs().max() < 0.06
        # Without it they are far from each other.
        assert (slanted - straight).abs().max() > 0.3


def test_a_moved_image_and_a_dark_one_on_white_count_as_the_same_figure():
    straight = strokes(1)
    moved = straight.roll((3, -2), dims=(2, 3))
    assert (upright(moved) - upright(straight)).abs().max() < 0.02
    assert torch.allclose(1 - upright(1 - straight), upright(straight), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 28, 28), (2, 3, 50, 33)])
def test_any_size_and_flat_images(shape):
    assert upright(torch.rand(shape, generator=generator())).shape == (shape[0], SIDE * SIDE)
    flat = upright(torch.full(shape, 0.25))
    assert torch.allclose(flat, torch.full_like(flat, 0.25))


def test_nearest_is_the_sorted_distance_without_the_image_itself():
    features = torch.randn(40, 6, generator=generator())
    features[7] = features[3]
    found = nearest(features, 4)
    for i in range(40):
        others = sorted((float((features[i] - features[j]).norm()), j) for j in range(40) if j != i)
        assert {j for _, j in others[:4]} == set(found[i].tolist())
    assert 3 in found[7].tolist()
    assert nearest(features, 1, features).tolist() != nearest(features, 1).tolist()
    assert set(nearest(features, 4, features[9:10] + 1e-6)[0].tolist()) == {9, *found[9, :3].tolist()}


def test_looks_and_answers_weigh_against_each_other_whatever_their_scale():
    looks = torch.randn(30, 6, generator=generator(), dtype=torch.float64)
    answers = torch.rand(30, 3, generator=generator(1), dtype=torch.float64)
    answers /= answers.sum(1, keepdim=True)
    found = looks_and_answers(100 * looks + 5, answers, 0.25)
    assert torch.allclose(found, looks_and_answers(looks, answers, 0.25))
    for part, variance in ((found[:, :6], 1.0), (found[:, 6:], 0.25**2)):
        assert sum(float(column.var(correction=0)) for column in part.T) == pytest.approx(variance)
    # Twice the distance between the roots is twice the distance here.
    apart = (answers[:, None].sqrt() - answers[None, :].sqrt()).norm(dim=2)
    ratio = torch.cdist(found[:, 6:], found[:, 6:])[apart > 0] / apart[apart > 0]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio))
    alike = looks_and_answers(looks, answers[:1].expand(30, -1), 1.0)[:, 6:]
    assert torch.equal(alike, alike[:1].expand(30, -1))


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="5 images have no 5 neighbours each"):
        nearest(torch.zeros(5, 2), 5)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_agreement_is_the_balanced_mean_of_neighbours_and_the_own_answer(balance):
    answers = torch.rand(6, 3, generator=generator(), dtype=torch.float64)
    answers /= answers.sum(1, keepdim=True)
    neighbours = [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]
    how = Neighbours(count=2, restart=0.3, rounds=3, balance=balance)
    own = answers.tolist()
    expected = own
    for _ in range(3):
        mixed = [
            [0.7 * sum(expected[j][k] for j in neighbours[i]) / 2 + 0.3 * own[i][k] for k in range(3)]
            for i in range(6)
        ]
        share = [sum(row[k] for row in mixed) / 6 for k in range(3)]
        raised = [[row[k] / (3 * share[k]) ** balance for k in range(3)] for row in mixed]
        expected = [[value / sum(row) for value in row] for row in raised]
    found = agree(answers, torch.tensor(neighbours), how)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))


def test_a_class_that_is_overlooked_grows():
    """Half of the images are of a class that is named for a fifth of them, and doubtfully for the others."""
    answers = torch.tensor([[0.9, 0.1]] * 10 + [[0.1, 0.9]] * 4 + [[0.8, 0.2]] * 6)
    groups = [list(range(10)), list(range(10, 20))]
    neighbours = torch.tensor([[j for j in group if j != i] for group in groups for i in group])
    right = [0] * 10 + [1] * 10
    assert agree(answers, neighbours, Neighbours(count=9)).argmax(1).tolist() == right
    assert agree(answers, neighbours, Neighbours(count=9, balance=0.0)).argmax(1).tolist() != right


def test_one_wrong_answer_among_neighbours_is_outvoted():
    answers = torch.tensor([[0.05, 0.95]] * 5 + [[0.9, 0.1]])
    neighbours = torch.tensor([[j for j in range(6) if j != i] for i in range(6)])
    agreed = agree(answers, neighbours, Neighbours(count=5, balance=0.0))
    assert agreed.argmax(1).tolist() == [1] * 6
    alone = agree(answers, neighbours, Neighbours(count=5, balance=0.0, restart=1.0))
    assert alone.argmax(1).tolist() == [1] * 5 + [0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": -1}, "count must be 0 or more"),
        ({"every": 0}, "the others at least 1"),
        ({"answers": -0.1}, "answers=-0.1; it must be 0 or more"),
        ({"answers": float("nan")}, "answers=nan"),
        ({"restart": 0.0}, r"restart must be in \(0, 1\]"),
        ({"balance": 1.5}, r"balance in \[0, 1\]"),
        ({"threshold": 1.0}, r"threshold in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Neighbours(**wrong)
