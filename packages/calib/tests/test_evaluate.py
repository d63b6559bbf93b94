"""The four numbers against counting by hand."""

import pytest
import torch
from calib.attachment import attach
from calib.calibrator import Calibrator
from calib.evaluate import (
    both_domains,
    evaluate_classifier,
    evaluate_segmenter,
    four_numbers,
    is_near_chance,
    latency_ratio,
    scores_of,
)
from shared_core.data.arrays import ArrayImages
from shared_core.data.masks import ArrayMasks
from shared_core.testing import run_ranks
from torch import nn

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Class 0 for dark images, 1 for bright ones."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        mean = images.flatten(1).mean(1, keepdim=True)
        return self.gain * torch.cat([0.5 - mean, mean - 0.5], 1)


def levels(*values, labels):
    images = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    return ArrayImages(images, torch.tensor(labels))


def test_scores_by_hand():
    found = evaluate_classifier(Brightness(), levels(0, 10, 200, 255, labels=[0, 1, 1, 1]), 3, CPU)
    assert found["accuracy"] == 75.0
    assert found["per_class"] == [100.0, 66.67, None]
    assert found["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert sum(map(sum, scores_of(torch.eye(2, dtype=torch.int64))["confusion"])) == 2


@pytest.mark.parametrize(
    ("matrix", "guessed"),
    [
        ([[5, 5], [5, 5]], True),
        ([[90, 0], [10, 0]], True),  # always the class that 90 % of the images have
        ([[54, 46], [46, 54]], True),
        ([[56, 44], [44, 56]], False),
        ([[1, 9, 0], [0, 10, 0], [0, 10, 0]], True),
        ([[5, 5, 0], [0, 10, 0], [0, 10, 0]], False),
        ([[9, 1, 0], [1, 9, 0], [0, 0, 0]], False),
        ([[0, 9, 0], [0, 9, 0], [0, 0, 0]], True),
        ([[1, 9], [0, 0]], False),  # one class alone says nothing
    ],
)
def test_near_chance_is_less_than_a_tenth_of_the_way_to_perfect(matrix, guessed):
    assert is_near_chance(torch.tensor(matrix)) is guessed


def test_four_numbers_are_with_and_without_the_calibrator():
    model = attach(Brightness(), Calibrator(1, 0.5, body="constant"))
    # Everything is made 0.4 brighter: dark source images turn bright, grey target images are named right.
    nn.init.constant_(model.calibrator.body.map, float(torch.atanh(torch.tensor(0.8))))
    source = levels(0, 60, 255, labels=[0, 0, 1])
    target = levels(0, 60, 100, labels=[0, 1, 1])
    found = four_numbers(model, source, target, 2, CPU)
    accuracies = {name: round(scores["accuracy"], 1) for name, scores in found.items()}
    assert accuracies == {
        "source_before": 100.0, "source_after": 66.7, "target_before": 33.3, "target_after": 100.0,
    }  # fmt: skip


def test_segmentation_leads_with_miou_and_ignores_what_it_is_told_to():
    class Threshold(nn.Module):
        def forward(self, images):
            return torch.cat([0.5 - images, images - 0.5], 1)

    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[..., 4:] = 255
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    masks[..., 2:] = 1
    masks[..., 0] = 9
    found = evaluate_segmenter(Threshold(), ArrayMasks(images, masks, ["a", "b"], ignore=9), 2, CPU, ignore=9)
    # Class 0: 8 right of 8 labelled and 24 predicted; class 1: 32 right of 48 labelled and 32 predicted.
    assert found["accuracy"] == pytest.approx(100 * (8 / 24 + 32 / 48) / 2)
    assert found["pixel_accuracy"] == pytest.approx(100 * 40 / 56)


def test_latency_ratio_of_a_real_body_is_above_that_of_none():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(*[nn.Conv2d(1, 1, 9, padding=4) for _ in range(20)], nn.Flatten())

        def forward(self, images):
            return self.net(images)

    images = torch.rand(4, 1, 32, 32)
    heavy = latency_ratio(attach(Slow(), Calibrator(1, 0.2, 8, 9)), images)
    assert heavy > latency_ratio(attach(Slow(), Calibrator(1, 0.2, body="constant")), images) > 0.5


def test_labels_beyond_the_classes_are_refused_in_words():
    with pytest.raises(
        ValueError, match="labels up to 3, but the classifier has 3 classes, 0 to 2: match them by name"
    ):
        evaluate_classifier(Brightness(), levels(0, 1, 2, 3, labels=[0, 1, 2, 3]), 3, CPU)


def test_no_images_no_figure():
    found = both_domains(Brightness(), levels(0, 255, labels=[0, 1]), None, 2, CPU)
    assert found["target"] == {"accuracy": None, "per_class": [None, None], "confusion": [[0, 0], [0, 0]]}
    assert found["source"]["accuracy"] == 100


def _many():
    labels = torch.arange(1200) % 2
    return ArrayImages((labels * 200 + torch.arange(1200) % 97).to(torch.uint8).view(-1, 1, 1, 1), labels)


def _shared():
    return evaluate_classifier(Brightness(), _many(), 2, CPU, shared=True)


def test_processes_that_share_the_images_count_what_one_counts():
    alone = evaluate_classifier(Brightness(), _many(), 2, CPU)
    assert run_ranks(_shared, 2) == [alone, alone]
