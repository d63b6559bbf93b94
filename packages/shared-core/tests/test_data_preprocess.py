import pytest
import torch
from shared_core.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from torchvision.transforms.v2 import functional as tv


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


@pytest.mark.parametrize("shape", [(3, 1, 8000), (3, 8000, 1), (1, 2, 8001), (3, 3, 20001)])
def test_a_strip_is_cropped_before_it_is_scaled(shape):
    image = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    largest = []
    preprocess = Preprocess(224, 3, IMAGENET_MEAN, IMAGENET_STD, crop=True)
    resize = tv.resize

    def watched(image, *args, **kwargs):
        largest.append(resize(image, *args, **kwargs))
        return largest[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tv, "resize", watched)
        found = preprocess.fit(image)
    assert found.shape == (3, 224, 224)
    assert max(part.numel() for part in largest) < 3 * 256 * 256 * 9


def test_a_strip_keeps_its_middle_and_shorter_images_their_numbers():
    preprocess = Preprocess(14, 3, IMAGENET_MEAN, IMAGENET_STD, crop=True)
    image = torch.randint(256, (3, 8, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = tv.center_crop(tv.resize(image, [16], antialias=True), [14])
    assert torch.equal(preprocess.fit(image), whole)
    ordinary = image[..., :128]
    assert torch.equal(
        preprocess.fit(ordinary), tv.center_crop(tv.resize(ordinary, [16], antialias=True), [14])
    )
