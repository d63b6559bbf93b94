"""Evaluation against a loop, and noise that is the same for every net."""

import pytest
import torch
from corsd.evaluate import accuracy, evaluate
from shared_core.data.open import ArrayImages
from shared_core.data.preprocess import Preprocess
from shared_core.testing import run_ranks
from torch import nn

CPU = torch.device("cpu")
PREPROCESS = Preprocess(2, 1, (0.0,), (1.0,), crop=False)


class Brightest(nn.Module):
    """Logits are the four pixels, scaled: the class is where the brightest pixel is."""

    def forward(self, images):
        return 5 * images.flatten(1)


def _set(count=300):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 2, 2), generator=generator).to(torch.uint8)
    right = images.flatten(1).float().argmax(1)
    labels = torch.where(torch.arange(count) % 3 == 0, (right + 1) % 4, right)
    return ArrayImages(images, labels), right


def test_accuracy_per_class_and_calibration_equal_a_loop():
    data, right = _set()
    found = evaluate(Brightest(), data, PREPROCESS, CPU)
    hits = (right == data.labels).tolist()
    assert found["accuracy"] == pytest.approx(100 * sum(hits) / len(hits))
    assert accuracy(Brightest(), data, PREPROCESS, CPU) == pytest.approx(found["accuracy"])
    for label in range(4):
        own = [hit for hit, y in zip(hits, data.labels.tolist(), strict=True) if y == label]
        assert found["per_class"][label] == pytest.approx(100 * sum(own) / len(own), abs=0.01)
    confidence = (5 * data.images.flatten(1).float() / 255).softmax(1).amax(1).tolist()
    error = 0.0
    for low in range(15):
        inside = [i for i, c in enumerate(confidence) if low / 15 < c <= (low + 1) / 15]
        if inside:
            gap = sum(confidence[i] for i in inside) / len(inside) - sum(hits[i] for i in inside) / len(
                inside
            )
            error += len(inside) / len(hits) * abs(gap)
    assert found["calibration_error"] == pytest.approx(100 * error, rel=1e-4)


def test_noise_lowers_accuracy_the_more_the_stronger_and_repeats():
    images, right = _set()
    data = ArrayImages(images.images, right)
    first, second = (evaluate(Brightest(), data, PREPROCESS, CPU, (0.01, 0.5)) for _ in range(2))
    assert first == second
    assert first["accuracy"] == 100
    assert 100 > first["noise"]["0.01"] > first["noise"]["0.5"] > 25


def test_the_net_is_left_in_eval_mode():
    net = Brightest().train()
    accuracy(net, _set(10)[0], PREPROCESS, CPU)
    assert not net.training


def test_a_class_without_images_has_no_figure():
    data, right = _set()
    kept = right < 3
    found = evaluate(Brightest(), ArrayImages(data.images[kept], right[kept]), PREPROCESS, CPU)
    assert found["per_class"] == [100.0, 100.0, 100.0, None]


def test_labels_beyond_the_classes_are_refused():
    data, _ = _set()
    with pytest.raises(ValueError, match="labels up to 4, but the net has 4 classes, 0 to 3"):
        evaluate(Brightest(), ArrayImages(data.images, torch.full((300,), 4)), PREPROCESS, CPU)


def _shared_figures(count):
    data, _ = _set(count)
    shared = evaluate(Brightest(), data, PREPROCESS, CPU, (0.1, 0.5), 0, True)
    return shared, accuracy(Brightest(), data, PREPROCESS, CPU, 0, True)


@pytest.mark.parametrize("count", [300, 1700])
def test_processes_that_share_the_images_find_what_one_finds(count):
    data, _ = _set(count)
    alone = evaluate(Brightest(), data, PREPROCESS, CPU, (0.1, 0.5))
    # Three batches of 500 and one of 200 on two processes; of 300 images the second process has none.
    for shared, plain in run_ranks(_shared_figures, 2, count):
        assert shared == alone
        assert plain == accuracy(Brightest(), data, PREPROCESS, CPU)
