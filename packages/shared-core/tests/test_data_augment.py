import numpy as np
import pytest
import torch
from shared_core.data.augment import crop_flip, normalize, to_float
from shared_core.data.sampling import Key, keyed_uniform


def pictures(batch=6, size=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, size, size + 1), dtype=torch.uint8, generator=generator)


def uniforms(batch=6):
    return torch.from_numpy(keyed_uniform(0, [Key(0, i, 0) for i in range(batch)], 4))


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("fill", [0, 128])
def test_against_one_image_at_a_time(padding, flip, fill):
    images, numbers = pictures(), uniforms()
    for image, row, out in zip(
        images.numpy(), numbers.tolist(), crop_flip(images, numbers, padding, fill, flip), strict=True
    ):
        _, height, width = image.shape
        canvas = np.full((3, height + 2 * padding, width + 2 * padding), fill, dtype=np.uint8)
        canvas[:, padding : padding + height, padding : padding + width] = image
        top, left = (int(u * (2 * padding + 1)) for u in row[:2])
        expected = canvas[:, top : top + height, left : left + width]
        if flip and row[2] < 0.5:
            expected = expected[:, :, ::-1]
        assert np.array_equal(out.numpy(), expected)


def test_every_place_and_both_sides_occur_equally_often():
    n, padding = 4000, 1
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(n, 1, 3, 3).contiguous()
    out = crop_flip(image, uniforms(n), padding)
    kinds, counts = out.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 9 * 2
    # Binomial around n/18 = 222, sd 14.5.
    assert counts.min() > 222 - 75
    assert counts.max() < 222 + 75


def test_inputs_are_not_changed():
    images = pictures()
    before = images.clone()
    crop_flip(images, uniforms())
    crop_flip(images, uniforms(), padding=0)
    to_float(images)
    assert torch.equal(images, before)


def test_the_empty_batch():
    assert crop_flip(pictures(0), uniforms(0)).shape == (0, 3, 5, 6)


def test_to_float_and_normalize():
    images = pictures()
    floats = to_float(images)
    assert floats.dtype == torch.float32
    assert torch.equal((floats * 255).round().to(torch.uint8), images)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    out = normalize(floats, mean, std)
    for channel in range(3):
        expected = (floats[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(out[:, channel], expected)


def test_error_texts():
    with pytest.raises(ValueError, match="uniforms has 2 columns; crop_flip needs 3"):
        crop_flip(pictures(), uniforms()[:, :2])
    with pytest.raises(ValueError, match="images have 3 channels; mean"):
        normalize(to_float(pictures()), (0.5,), (0.5,))
    with pytest.raises(ValueError, match="std above 0"):
        normalize(to_float(pictures()), (0.5,) * 3, (1.0, 0.0, 1.0))
