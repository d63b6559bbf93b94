"""Views against slow loops; the teacher names what the classifier knows only larger; it teaches the calibrator."""

import math

import pytest
import torch
from calib.baselines import METHODS, Labelled, Settings
from calib.views import (
    STUDENT,
    Teacher,
    Views,
    look,
    shaken,
    surest,
    surest_answers,
    view_draws,
    zoom_weights,
)
from shared_core.testing import assert_same_state
from torch import nn

SIDE = 16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def squares(n, half):
    """Squares of `half` pixels to each side of the centre: even ones filled, odd ones hollow."""
    images = torch.zeros(n, 1, SIDE, SIDE)
    middle = SIDE // 2
    images[:, :, middle - half : middle + half, middle - half : middle + half] = 1
    inner = half // 2
    images[1::2, :, middle - inner : middle + inner, middle - inner : middle + inner] = 0
    return images, torch.arange(n) % 2


class KnowsLargeOnes(nn.Module):
    """Sure of squares that reach near the border: filled or hollow; of smaller ones it knows nothing."""

    def forward(self, images):
        middle = SIDE // 2
        reach = images[:, 0, middle, 2:4].mean(1) + images[:, 0, middle, -4:-2].mean(1)
        hollow = 1 - 2 * images[:, 0, middle - 2 : middle + 2, middle - 2 : middle + 2].mean((1, 2))
        sure = 5 * (reach - 1).clamp(min=0)
        return torch.stack([-sure * hollow, sure * hollow], 1)


def answers(images):
    return KnowsLargeOnes()(images).softmax(1)


def slow_look(image, zoom, shear):
    """Bilinear, pixel by pixel: where each pixel of the view comes from."""
    size = image.shape[-1]
    found = torch.zeros_like(image)

    def at(row, column):
        return float(image[0, min(max(row, 0), size - 1), min(max(column, 0), size - 1)])

    for i in range(size):
        for j in range(size):
            y, x = (2 * i + 1) / size - 1, (2 * j + 1) / size - 1
            x, y = (x + shear * y) / zoom, y / zoom
            row, column = ((y + 1) * size - 1) / 2, ((x + 1) * size - 1) / 2
            row, column = min(max(row, 0), size - 1), min(max(column, 0), size - 1)
            top, left = math.floor(row), math.floor(column)
            down, right = row - top, column - left
            found[0, i, j] = (
                at(top, left) * (1 - down) * (1 - right)
                + at(top, left + 1) * (1 - down) * right
                + at(top + 1, left) * down * (1 - right)
                + at(top + 1, left + 1) * down * right
            )
    return found


@pytest.mark.parametrize(("zoom", "shear"), [(1.0, 0.0), (1.5, 0.0), (0.7, 0.0), (1.2, 0.4), (0.8, -0.3)])
def test_look_is_bilinear_about_the_centre(zoom, shear):
    images = torch.rand(2, 1, 7, 7, generator=generator(), dtype=torch.float64)
    same = torch.ones(2, dtype=torch.float64)
    seen = look(images, zoom * same, shear * same)
    for image, view in zip(images, seen, strict=True):
        assert torch.allclose(view, slow_look(image, zoom, shear), atol=1e-12)


def test_an_image_as_it_is_comes_back_bit_for_bit_and_no_value_leaves_its_range():
    images = torch.rand(3, 2, 9, 12, generator=generator()) * 0.4 + 0.3
    zoom, shear = torch.tensor([1.0, 0.6, 1.6]), torch.tensor([0.0, 0.4, 0.0])
    seen = look(images, zoom, shear)
    assert torch.equal(seen[0], images[0])
    for image, view in zip(images, seen, strict=True):
        assert image.min() <= view.min()
        assert view.max() <= image.max()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_surest_is_the_mean_weighed_by_entropy(temperature):
    p = torch.randn(3, 4, 5, generator=generator(), dtype=torch.float64).softmax(2)
    found = surest(p, temperature)
    for b in range(4):
        entropy = [-sum(float(q) * math.log(float(q)) for q in p[v, b]) for v in range(3)]
        raw = [math.exp(-h / temperature) for h in entropy]
        for k in range(5):
            expected = sum(w * float(p[v, b, k]) for v, w in enumerate(raw)) / sum(raw)
            assert float(found[b, k]) == pytest.approx(expected, rel=1e-9)


def test_one_view_alone_is_the_answer():
    p = torch.tensor([[[0.2, 0.8], [1.0, 0.0]]])
    assert torch.allclose(surest(p, 0.1), p[0])


def test_the_zoom_at_which_the_classifier_knows_most_weighs_most():
    images, _ = squares(20, half=4)
    views = Views(zooms=(0.5, 1.0, 1.6))
    weights = zoom_weights(answers, images, views, batch_size=7)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights[2]) > 0.99
    assert torch.allclose(weights, zoom_weights(answers, images, views, batch_size=20))


def test_the_teacher_names_what_the_classifier_does_not_know():
    images, labels = squares(40, half=4)
    assert float((answers(images).amax(1) > 0.6).float().mean()) == 0
    teacher = Teacher(answers, Views(zooms=(0.5, 1.0, 1.6), shear=0.1))
    teacher.weigh_zooms(images)
    taught = teacher.teach(images, view_draws(0, 0, range(40), 4))
    sure = taught.sum(1) > 0
    assert float(sure.float().mean()) > 0.9
    assert torch.equal(taught[sure].argmax(1), labels[sure])


def test_doubt_teaches_nothing():
    draws, views = view_draws(0, 0, range(4), 4), Views(zooms=(1.0,), shear=0.0)
    taught = surest_answers(answers, squares(4, half=3)[0], torch.tensor([1.0]), views, draws)
    assert torch.equal(taught, torch.zeros(4, 2))


def test_an_image_s_views_depend_on_seed_turn_and_place_and_on_no_neighbour():
    whole = view_draws(1, 7, range(6), 4)
    assert torch.equal(view_draws(1, 7, [4, 1], 4), whole[[4, 1]])
    for other in (
        view_draws(2, 7, range(6), 4),
        view_draws(1, 8, range(6), 4),
        view_draws(1, 7, range(6), 4, STUDENT),
    ):
        assert not torch.equal(whole, other)
    many = view_draws(0, 0, range(5000), 2)
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(float(many.mean()) - 0.5) < 4 / (12 * many.numel()) ** 0.5


def test_shaking_goes_as_far_as_it_says_and_no_further():
    images, _ = squares(3, half=4)
    # In the middle nothing moves; at the ends all that `shake` allows.
    draws = torch.tensor([0.5, 0.0, 1.0])[:, None, None].expand(3, 2, 1)
    found = shaken(images, 0.2, draws)
    assert torch.equal(found[:1], images[:1])
    ends = torch.tensor([-0.2, 0.2])
    assert torch.equal(found[1:], look(images[1:], ends.exp(), ends))
    assert torch.equal(shaken(images, 0.0, draws), images)


def test_zooms_are_drawn_by_their_weights():
    seen = []

    def notes(images):
        seen.append(images[:, 0, SIDE // 2, :].sum(1))
        return answers(images)

    images = torch.zeros(4000, 1, SIDE, SIDE)
    images[..., SIDE // 2 - 2 : SIDE // 2 + 2] = 1
    views = Views(count=1, zooms=(1.0, 2.0, 0.5), shear=0.0)
    surest_answers(notes, images, torch.tensor([0.25, 0.75, 0.0]), views, view_draws(0, 0, range(4000), 1))
    wide = float((seen[0] > 6).float().mean())
    assert abs(wide - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert float(seen[0].min()) == 4


def test_the_state_comes_back_and_another_is_refused():
    teacher = Teacher(answers, Views(zooms=(0.5, 1.0, 1.6)))
    teacher.weigh_zooms(squares(10, half=4)[0])
    other = Teacher(answers, Views(zooms=(0.5, 1.0, 1.6)))
    other.load_state_dict(teacher.state_dict())
    assert_same_state(teacher.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match="3 zooms, these views 10"):
        Teacher(answers, Views()).load_state_dict(teacher.state_dict())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 0}, "at least one view"),
        ({"zooms": ()}, "one zoom"),
        ({"zooms": (1.0, 0.0)}, "zooms above 0"),
        ({"shear": -0.1}, "shear 0 or more"),
        ({"temperature": 0.0}, "temperatures must be above 0"),
        ({"threshold": 1.0}, r"threshold in \[0, 1\)"),
        ({"shake": -0.1}, r"shake=-0.1; it must be in \[0, 1\)"),
        ({"shake": 1.0}, r"shake=1.0"),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Views(**wrong)


def test_the_baseline_asks_the_views_at_test_time():
    images, labels = squares(40, half=4)
    source = Labelled(squares(40, half=6)[0], labels)
    found = METHODS["surest_view"](KnowsLargeOnes(), source, images, Settings(), 0)
    assert found.touched == "nothing"
    assert float((found.predict(images).argmax(1) == labels).float().mean()) > 0.9
    assert torch.equal(found.predict(images), found.predict(images))
