"""A survey names images by what their neighbours are called, and asks in any order the same."""

import pytest
import torch
from calib.calibrator import Calibrator
from calib.domains import Domain
from calib.neighbours import Neighbours
from calib.survey import Survey, draw
from calib.views import Teacher, Views
from shared_core.testing import assert_same_state
from torch.utils.data import TensorDataset

CPU = torch.device("cpu")
VIEWS = Views(count=2, zooms=(1.0,), shear=0.0)


def target(count=60, side=12):
    """Bright and dark halves; the classifier of these tests is wrong about a sixth."""
    images = 0.05 * torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))
    images[::2, :, : side // 2] += 0.7
    images[1::2, :, :, : side // 2] += 0.7
    return images, torch.arange(count) % 2


def mistaken(images):
    """By the halves; the other way round where one pixel's noise is high, which no neighbour shares."""
    upper = images[:, 0, :6, 6:].mean((1, 2)) - images[:, 0, 6:, :6].mean((1, 2))
    sign = 1 - 2 * (images[:, 0, -1, -1] % 0.7 > 0.05 * 5 / 6).float()
    return torch.stack([20 * sign * upper, -20 * sign * upper], 1).softmax(1)


def survey(how, answers=mistaken):
    images, _ = target()
    domain = Domain("target", TensorDataset(images), Calibrator(1, epsilon=0.1), 8, seed=0)
    return Survey(Teacher(answers, VIEWS), domain, how, seed=0, device=CPU)


def test_neighbours_put_right_what_single_answers_get_wrong():
    images, labels = target()
    assert float((mistaken(images).argmax(1) == labels).float().mean()) < 0.9
    found = survey(Neighbours(count=8))
    found.ask(0)
    taught = found.teach(torch.arange(60))
    sure = taught.sum(1) > 0
    assert float(sure.float().mean()) > 0.8
    assert torch.equal(taught[sure].argmax(1), labels[sure])


def halves(images):
    """Of four in a row the first two are one class, though the first and third look alike."""
    first = torch.arange(len(images)) % 4 < 2
    return torch.stack([0.05 + 0.9 * first, 0.95 - 0.9 * first], 1)


def test_with_answers_neighbours_are_of_those_that_are_answered_alike():
    labels = torch.arange(60) % 4 < 2
    how = Neighbours(count=8, answers=10.0, restart=0.1)
    found = survey(how, answers=halves)
    found.ask(0)
    taught = found.teach(torch.arange(60))
    assert float(taught.amax(1).min()) > 0.94
    assert torch.equal(taught.argmax(1) == 0, labels)
    # By looks alone half of an image's neighbours are answered otherwise: hardly more than its own answer is left.
    alone = survey(Neighbours(count=8, restart=0.1), answers=halves)
    alone.ask(0)
    assert float(alone.teach(torch.arange(60)).amax(1).max()) < 0.7
    # Another survey with the same answers teaches the same, as a resumed run does.
    other = survey(how)
    other.load_state_dict(found.state_dict())
    assert torch.equal(other.teach(torch.arange(60)), taught)


def test_answers_of_surveys_are_averaged_and_the_state_comes_back():
    how = Neighbours(count=3)
    found = survey(how)
    found.ask(0)
    first = found.answers.clone()
    found.ask(200)
    alone = survey(how)
    alone.ask(200)
    assert torch.allclose(found.answers, (first + alone.answers) / 2)
    other = survey(how)
    other.load_state_dict(found.state_dict())
    assert_same_state(found.state_dict(), other.state_dict())
    places = torch.tensor([5, 0, 59])
    assert torch.equal(other.teach(places), found.teach(places))


def test_of_a_large_target_some_are_drawn_once_for_a_seed():
    data = TensorDataset(torch.arange(60))
    assert draw(data, 60, seed=0) is data
    first = [int(item[0]) for item in draw(data, 20, seed=0)]
    assert first == sorted(set(first))
    assert len(first) == 20
    assert [int(item[0]) for item in draw(data, 20, seed=0)] == first
    assert [int(item[0]) for item in draw(data, 20, seed=1)] != first


def test_doubt_among_neighbours_teaches_nothing():
    found = survey(Neighbours(count=3), answers=lambda images: torch.full((len(images), 2), 0.5))
    found.ask(0)
    assert torch.equal(found.teach(torch.arange(60)), torch.zeros(60, 2))


def test_a_loader_and_a_question_too_early_are_refused():
    with pytest.raises(ValueError, match=r"give a data set, or neighbours\.count 0"):
        draw([target()[0]], 20, seed=0)
    with pytest.raises(RuntimeError, match="call ask first"):
        survey(Neighbours(count=3)).teach(torch.arange(2))
