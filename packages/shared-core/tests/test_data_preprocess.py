import pytest
import torch
from shared_core.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def test_fit_brings_any_image_to_the_input():
    colour = Preprocess(16, 3, (0.5,) * 3, (0.5,) * 3, crop=True)
    assert colour.fit(torch.zeros(1, 40, 20, dtype=torch.uint8)).shape == (3, 16, 16)
    grey = Preprocess(16, 1, (0.5,), (0.5,), crop=False)
    assert grey.fit(torch.zeros(3, 40, 20, dtype=torch.uint8)).shape == (1, 16, 16)
    assert Preprocess(**grey.record()) == grey


def test_a_batch_is_normalised_per_channel():
    preprocess = Preprocess(4, 3, IMAGENET_MEAN, IMAGENET_STD, crop=False)
    found = preprocess(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8))
    for channel in range(3):
        expected = (0.2 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert found[1, channel, 2, 2].item() == pytest.approx(expected, abs=1e-6)


def test_the_crop_keeps_the_centre_and_the_proportions():
    image = torch.zeros(3, 100, 300, dtype=torch.uint8)
    image[:, :, 100:200] = 255
    found = Preprocess(14, 3, (0.0,) * 3, (1.0,) * 3, crop=True).fit(image)
    assert found.shape == (3, 14, 14)
    assert int(found.min()) == 255
