"""What a step is given: shaken target images with what is said of the images as they are, and features that fit."""

import pytest
import torch
from calib.calibrator import Calibrator
from calib.domains import Domain
from calib.features import Features
from calib.feed import Feed
from calib.neighbours import Neighbours
from calib.step import Weights
from calib.survey import Survey
from calib.views import STUDENT, Teacher, Views, shaken, view_draws
from shared_core.data.arrays import ArrayImages
from torch import nn

CPU = torch.device("cpu")


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()


def domains():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 10, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return [
        Domain(name, ArrayImages(part, torch.zeros(10, dtype=torch.int64)), Calibrator(1, 0.2, 2, 0), 4, 0)
        for name, part in zip(("source", "target"), images, strict=True)
    ]


def fed(classifier, shake, surveyed, turns=5, first=0):
    """The batches of a feed whose teacher has this shake."""
    views = Views(count=2, threshold=0.0, shake=shake)
    teacher = Teacher(lambda images: classifier(images).softmax(1), views)
    both, weights = domains(), Weights(views=1.0, hold=1.0)
    if surveyed:
        teacher = Survey(teacher, both[1], Neighbours(count=3, threshold=0.0), 0, CPU)
        teacher.ask(0)
    feed = Feed(both, Features(classifier), classifier, weights, 0, CPU, teacher)
    feed.seek(first)
    feed.fill_tables(100)
    return [feed.next_batch(turn) for turn in range(first, turns)]


@pytest.mark.parametrize("surveyed", [False, True])
def test_the_calibrator_gets_shaken_images_and_the_answers_are_of_those_as_they_are(classifier, surveyed):
    plain, moved = (fed(classifier, shake, surveyed) for shake in (0.0, 0.2))
    both = domains()
    for turn, (still, batch) in enumerate(zip(plain, moved, strict=True)):
        target = both[1].next_batch(CPU)
        assert torch.equal(still.target, target.pixels)
        by_hand = shaken(target.pixels, 0.2, view_draws(0, turn, target.places.tolist(), 1, STUDENT))
        assert torch.equal(batch.target, by_hand)
        assert not torch.allclose(batch.target, still.target, atol=0.01)
        assert torch.equal(batch.taught, still.taught)
        assert torch.equal(batch.source, still.source)
        assert torch.allclose(batch.clean_source, still.clean_source, atol=1e-6)
        # A critic compares the features of the images that the calibrator got.
        assert torch.allclose(batch.clean_target, classifier(batch.target).softmax(1), atol=1e-6)


def test_a_feed_that_goes_on_shakes_as_one_that_never_stopped(classifier):
    whole, later = fed(classifier, 0.2, True), fed(classifier, 0.2, True, first=3)
    for one, other in zip(whole[3:], later, strict=True):
        assert torch.equal(one.target, other.target)
    assert not torch.equal(whole[0].target, whole[1].target)
