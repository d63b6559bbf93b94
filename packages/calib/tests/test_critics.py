"""Critics against plain loops; draws that depend on seed and step alone."""

import pytest
import torch
from calib.critics import FeatureCritic, PixelCritic, PixelwiseFeatureCritic, draw_patch


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_the_papers():
    assert (count(PixelCritic(3, 4)), count(PixelCritic(3, 8))) == (6_788, 25_220)
    assert count(FeatureCritic(10)) == 513_504


def test_pixel_critic_sees_the_shuffled_patch_of_each_image():
    critic = PixelCritic(2, 4)
    seen = []
    critic.net.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    images = torch.rand(3, 2, 16, 12)
    patch = draw_patch(16, 12, 4, seed=3, step=5, patches=2)
    critic(images, patch)
    rows = []
    for row, column in patch.corners.tolist():
        for image in images:
            cut = image[:, row : row + 4, column : column + 4].reshape(2, 16)
            rows.append(torch.cat([channel[patch.order] for channel in cut]))
    assert torch.equal(seen[0], torch.stack(rows))


def test_draws_are_a_function_of_seed_and_step_and_reach_the_whole_image():
    first, again = draw_patch(32, 32, 8, 1, 7), draw_patch(32, 32, 8, 1, 7)
    assert torch.equal(first.corners, again.corners)
    assert torch.equal(first.order, again.order)
    drawn = [draw_patch(32, 32, 8, 0, step) for step in range(200)]
    assert {tuple(d.corners[0].tolist()) for d in drawn} == {
        (8 * r, 8 * c) for r in range(4) for c in range(4)
    }
    assert all(sorted(d.order.tolist()) == list(range(64)) for d in drawn)
    assert len({tuple(d.order.tolist()) for d in drawn}) == 200


@pytest.mark.parametrize(("side", "rows"), [(4, {0, 4}), (8, {0})])
def test_top_rows_only_is_the_released_fault(side, rows):
    drawn = [draw_patch(32, 32, side, 0, step, top_rows_only=True) for step in range(100)]
    assert {int(d.corners[0, 0]) for d in drawn} == rows


def test_an_image_smaller_than_a_patch_is_named():
    with pytest.raises(ValueError, match="patch is 16 pixels, the image 12x20"):
        draw_patch(12, 20, 16, 0, 0)


def test_feature_critic_flattens_and_pixelwise_critic_keeps_the_map():
    assert FeatureCritic(12)(torch.rand(5, 3, 2, 2)).shape == (5, 4)
    assert PixelwiseFeatureCritic(3)(torch.rand(2, 3, 6, 5)).shape == (2, 4, 6, 5)


def test_pixelwise_critic_is_the_same_small_net_at_every_pixel():
    critic = PixelwiseFeatureCritic(3).eval()
    scores = torch.rand(1, 3, 4, 5)
    whole = critic(scores)
    for row in range(4):
        for column in range(5):
            alone = critic(scores[:, :, row : row + 1, column : column + 1])
            assert torch.allclose(whole[:, :, row : row + 1, column : column + 1], alone, atol=1e-6)
