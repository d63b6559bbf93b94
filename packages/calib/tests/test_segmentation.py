"""Segmentation: scores against slow loops, the small net at any size, training that is a function of the seed."""

import math
from pathlib import Path

import pytest
import torch
from calib.segmentation import (
    SegmenterSettings,
    class_weights,
    confusion,
    confusion_over,
    segmentation_scores,
    tiny_segmenter,
    train_segmenter,
)
from shared_core.data.open import open_dataset
from shared_core.run.guard import NonFiniteError
from shared_core.testing import assert_same_state

CAMVID = Path(__file__).parents[4] / "shared/data/camvid_day_dusk_160x120.npz"


def slow_scores(labels, predicted, classes, ignore):
    pairs = [(a, b) for a, b in zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True)]
    pairs = [(a, b) for a, b in pairs if a != ignore]
    ious, weighted = [], 0.0
    for c in range(classes):
        both = sum(a == c and b == c for a, b in pairs)
        either = sum(a == c or b == c for a, b in pairs)
        ious.append(100 * both / either if either else math.nan)
        weighted += sum(a == c for a, _ in pairs) * (ious[-1] if either else 0.0)
    held = [iou for iou in ious if not math.isnan(iou)]
    accuracy = 100 * sum(a == b for a, b in pairs) / len(pairs)
    return sum(held) / len(held), weighted / len(pairs), accuracy, ious


@pytest.mark.parametrize("ignore", [255, 4])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_slow_loops(seed, ignore):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 6, 5, 7, generator=generator)
    # Class 5 is nowhere: neither labelled nor, with this score, predicted.  Class 3 is predicted only.
    scores[:, 5] = -100
    labels = torch.tensor([0, 1, 2, ignore])[torch.randint(4, (2, 5, 7), generator=generator)]
    found = segmentation_scores(confusion(scores, labels, ignore))
    miou, fwiou, accuracy, ious = slow_scores(labels, scores.argmax(1), 6, ignore)
    assert found.miou == pytest.approx(miou)
    assert found.fwiou == pytest.approx(fwiou)
    assert found.pixel_accuracy == pytest.approx(accuracy)
    assert found.iou.tolist() == pytest.approx(ious, nan_ok=True)
    assert math.isnan(ious[5])
    assert ious[3] == 0


def test_a_perfect_prediction_scores_a_hundred():
    labels = torch.tensor([[[0, 2], [2, 255]]])
    scores = torch.nn.functional.one_hot(labels.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    assert segmentation_scores(confusion(scores, labels))[:3] == (100, 100, 100)


def test_confusion_counts_rows_by_label():
    scores = torch.tensor([[[[9.0, 0.0]], [[0.0, 9.0]]]])
    assert confusion(scores, torch.tensor([[[1, 1]]])).tolist() == [[0, 0], [1, 1]]


def test_labels_that_are_no_class_are_refused():
    scores = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"the label 11, .* 3 classes and the ignored label is 255"):
        confusion(scores, torch.full((1, 2, 2), 11))
    with pytest.raises(ValueError, match="counts no pixel"):
        segmentation_scores(confusion(scores, torch.full((1, 2, 2), 255)))
    with pytest.raises(ValueError, match="must be square"):
        segmentation_scores(torch.ones(2, 3, dtype=torch.int64))


def test_class_weights_balance():
    masks = torch.tensor([[[0, 0, 0, 0], [1, 1, 9, 2]]])
    none, full = (class_weights(masks, 4, 9, balance) for balance in (0.0, 1.0))
    assert none.tolist() == [1, 1, 1, 0]
    assert full.tolist() == [0.5, 1, 2, 0]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (15, 20), (24, 33)])
def test_segmenter_keeps_any_size(height, width):
    net = tiny_segmenter(5, in_channels=1, width=4).eval()
    assert net(torch.rand(2, 1, height, width)).shape == (2, 5, height, width)


def test_segmenter_has_the_parameters_it_states():
    assert sum(p.numel() for p in tiny_segmenter(11).parameters()) == 311_331


# Left half dark and right half bright, with a border that moves: what a crop must not confuse.
def halves(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(5, 12, (count, 1, 1), generator=generator)
    masks = (torch.arange(16) >= edges).expand(count, 16, 16).to(torch.uint8)
    noise = torch.randint(60, (count, 3, 16, 16), generator=generator)
    return (masks[:, None] * 120 + noise).to(torch.uint8), masks.clone()


TINY = SegmenterSettings(epochs=25, batch_size=4, learning_rate=0.01, crop=(12, 12))


def trained(seed=0, masks=None, settings=TINY):
    torch.manual_seed(0)
    net = tiny_segmenter(2, width=4)
    images, own = halves(16)
    losses = train_segmenter(net, images, own if masks is None else masks, settings, seed)
    return net, losses


def test_training_learns_is_a_function_of_the_seed_and_ends_in_eval_mode():
    net, losses = trained()
    assert losses[-1] < 0.6 * losses[0]
    assert not any(module.training for module in net.modules())
    images, masks = halves(16)
    scores = segmentation_scores(confusion_over(net, images, masks, batch_size=5))
    assert scores.miou > 90
    torch.manual_seed(99)
    assert_same_state(trained()[0].state_dict(), net.state_dict())
    assert trained(seed=1)[1] != losses


def test_ignored_pixels_do_not_teach():
    masks = halves(16)[1]
    masks[:, 8:] = 255
    changed = masks.clone()
    changed[:, 8:] = 254
    with pytest.raises(ValueError, match="the label 254"):
        trained(masks=changed)
    net, _ = trained(masks=masks)
    images, all_masks = halves(16)
    assert segmentation_scores(confusion_over(net, images, all_masks)).miou > 80


@pytest.mark.usefixtures("as_a_user")
def test_bad_training_sets_are_named():
    images, masks = halves(4)
    net = tiny_segmenter(2, width=4)
    with pytest.raises(ValueError, match="one mask of the same height and width per image"):
        train_segmenter(net, images, masks[:, :8], TINY, 0)
    with pytest.raises(ValueError, match="4 images do not fill one batch of 5"):
        train_segmenter(net, images, masks, SegmenterSettings(batch_size=5), 0)
    with pytest.raises(NonFiniteError, match="cross_entropy"):
        train_segmenter(net, images, torch.full_like(masks, 255), TINY, 0)


@pytest.mark.skipif(not CAMVID.is_file(), reason="needs ../shared/data/camvid_day_dusk_160x120.npz")
def test_camvid_opens_and_scores():
    data = open_dataset(f"npz:{CAMVID}#day", "test")
    net = tiny_segmenter(11, width=4).eval()
    scores = segmentation_scores(confusion_over(net, data.images[:4], data.masks[:4], ignore=11))
    assert 0 <= scores.miou <= 100
    assert scores.iou.shape == (11,)
