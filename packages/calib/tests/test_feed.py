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


def test_a_table_holds_every_image_once_and_is_given_up_before_it_grows_too_large(classifier, monkeypatch):
    both = domains()
    feed = Feed(both, Features(classifier), classifier, Weights(), 0, CPU)
    feed.fill_tables(100)
    for table, domain in zip(feed.tables, both, strict=True):
        (pixels,) = domain.all_images()
        assert torch.allclose(table, Features(classifier)(pixels))
    asked = []
    classifier.register_forward_hook(lambda _m, inputs, _o: asked.append(len(inputs[0])))
    small = Feed(both, Features(classifier), classifier, Weights(), 0, CPU)
    monkeypatch.setattr("calib.feed.TABLE_LIMIT", 29)  # ten rows of three numbers are 30
    monkeypatch.setattr("calib.feed.VALIDATION_BATCH", 4)
    small.fill_tables(100)
    assert small.tables == [None, None]
    assert asked == [4, 4]  # one batch of each domain, not all of it


def test_a_sample_of_large_images_has_fewer_of_them(monkeypatch):
    (source, _) = domains()
    assert len(source.some(8).pixels) == 8
    monkeypatch.setattr("calib.domains.SAMPLE_NUMBERS", 3 * 64)
    assert torch.equal(source.some(8).pixels, source.some(3).pixels)
    monkeypatch.setattr("calib.domains.SAMPLE_NUMBERS", 1)
    assert len(source.some(8).pixels) == 1


def test_too_few_images_are_refused_before_any_is_read(classifier):
    (_, target) = domains()
    target.all_images = lambda _size: pytest.fail("read all images first")
    teacher = Teacher(lambda images: classifier(images).softmax(1), Views())
    with pytest.raises(ValueError, match="10 images have no 10 neighbours each"):
        Survey(teacher, target, Neighbours(count=10), 0, CPU)


def test_large_images_are_validated_in_smaller_batches(classifier, monkeypatch):
    import calib
    from calib.step import Critics
    from calib.validation import measure

    asked = []
    both = domains()
    samples = [domain.some(10) for domain in both]
    calibrator = both[0].calibrator
    model = calib.attach(classifier, calibrator, value_range=(0.0, 1.0))
    arguments = (model, calibrator, Critics(None, None), None, samples, CPU, 4, 0)
    whole = measure(*arguments)
    classifier.register_forward_hook(lambda _m, inputs, _o: asked.append(len(inputs[0])))
    monkeypatch.setattr("calib.validation.BATCH_NUMBERS", 4 * 64)
    assert measure(*arguments) == pytest.approx(whole, abs=1e-5)
    assert max(asked) == 4
