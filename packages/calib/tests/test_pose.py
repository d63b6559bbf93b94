"""Poses against slow loops; figures brought into a pose have it; a data set in another's poses keeps its labels."""

import math

import pytest
import torch
from calib.pose import FARTHEST, PosedImages, Poses, grounds, poses, poses_of, reposed
from shared_core.data.arrays import ArrayImages
from torch.utils.data import Subset


def figure(x=0.0, y=0.0, height=0.3, slant=0.0, side=48, breadth=0.1):
    """A soft bar on black, [1, 1, side, side]."""
    at = (2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1
    v, u = at[:, None] - y, at[None, :] - x
    across = (u - slant * v) / breadth
    ink = torch.exp(-(across**2) / 2 - (v / height) ** 2 / 2)
    return torch.where(ink > 1e-3, ink, 0.0)[None, None]


def slow_pose(image):
    channels, rows, columns = image.shape
    gray = [
        [sum(float(image[c, i, j]) for c in range(channels)) / channels for j in range(columns)]
        for i in range(rows)
    ]
    # torch's median is the lower of the two in the middle.
    ground = sorted(v for row in gray for v in row)[(rows * columns - 1) // 2]
    mass = [[abs(v - ground) for v in row] for row in gray]
    total = sum(map(sum, mass))

    def mean(value):
        return (
            sum(
                mass[i][j] * value((2 * j + 1) / columns - 1, (2 * i + 1) / rows - 1)
                for i in range(rows)
                for j in range(columns)
            )
            / total
        )

    x, y = mean(lambda u, v: u), mean(lambda u, v: v)
    spread = mean(lambda u, v: (v - y) ** 2)
    return x, y, math.sqrt(spread), mean(lambda u, v: (u - x) * (v - y)) / spread


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 13), (1, 28, 20)])
def test_poses_equal_slow_loops(shape):
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    found = poses(images)
    for place, image in enumerate(images):
        assert [float(part[place]) for part in found] == pytest.approx(slow_pose(image), rel=1e-9)


def test_a_slant_is_at_most_1_and_a_flat_image_has_no_height():
    lying = figure(height=0.05, slant=3.0)
    assert float(poses(lying).slant) == 1
    flat = poses(torch.full((2, 3, 8, 8), 0.25))
    assert flat.height.tolist() == [0, 0]
    assert flat.slant.tolist() == [0, 0]


WANTED = [
    {"x": 0.1, "y": -0.2, "height": 0.2, "slant": 0.3},
    {"x": 0.0, "y": 0.0, "height": 0.27, "slant": -0.4},
    {"x": -0.2, "y": 0.1, "height": 0.25, "slant": 0.0},
]


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("dark", [False, True])
def test_a_figure_brought_into_a_pose_has_it(wanted, dark):
    image = figure(0.05, 0.1, 0.25, 0.2)
    image = 1 - image if dark else image
    want = Poses(*(torch.tensor([wanted[name]], dtype=torch.float64) for name in Poses._fields))
    made = reposed(image, want)
    for name, part in zip(Poses._fields, poses(made), strict=True):
        assert float(part) == pytest.approx(wanted[name], abs=0.01), name
    # It is the figure that stands there, breadth following height.  (Of a bar 0.25 high and 0.1 broad.)
    zoom = float(want.height / poses(image).height)
    expected = figure(wanted["x"], wanted["y"], 0.25 * zoom, wanted["slant"], breadth=0.1 * zoom)
    expected = 1 - expected if dark else expected
    assert (made - expected).abs().max() < 0.06
    assert (made - image).abs().max() > 0.2


def test_its_own_pose_gives_the_image_back():
    images = torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    own = poses(images, grounds(images))
    torch.testing.assert_close(reposed(images, own), images, rtol=0, atol=1e-5)


def test_values_stay_within_those_of_the_image_and_beyond_it_is_its_ground():
    images = 0.2 + 0.6 * torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    images[:, :, :10] = 0.3
    want = Poses(*(torch.full((3,), value) for value in (0.0, 0.5, 0.1, 0.2)))
    made = reposed(images, want)
    for was, now in zip(images, made, strict=True):
        assert was.min() <= now.min() <= now.max() <= was.max()
    assert torch.allclose(made[:, :, 0, 0], torch.full((3, 1), 0.3), atol=0.02)


def test_the_ground_is_the_commonest_value_beside_the_figure():
    # A broad square with soft edges: more ink than ground, and most pixels of all are ink.
    image = torch.zeros(1, 1, 32, 32)
    image[..., 2:-2, 2:-2], image[..., 4:-4, 4:-4] = 0.4, 1.0
    assert float(image.median()) == 1.0
    assert grounds(image).tolist() == [[0.0]]
    both = torch.cat([image, 1 - image], 1)
    assert grounds(both).tolist() == [[0.0, 1.0]]
    assert grounds(torch.full((1, 2, 8, 8), 0.25)).tolist() == [[0.25, 0.25]]
    # The pose on that ground is of the ink; beside the median it would be of the frame.
    v = (2 * torch.arange(32) + 1) / 32 - 1
    height = float(((image[0, 0].sum(1) * v**2).sum() / image.sum()).sqrt())
    assert float(poses(image, grounds(image)).height) == pytest.approx(height, rel=1e-5)
    assert float(poses(image).height) > 1.3 * height
    with pytest.raises(ValueError, match=r"values run from 0 to 255; give images in \[0, 1\]"):
        grounds(255 * image)


def test_flat_images_stay_and_a_speck_is_magnified_no_further_than_stated():
    flat = torch.full((1, 1, 16, 16), 0.25)
    want = poses(figure(0.3, 0.0, 0.4).float())
    assert torch.equal(reposed(flat, want), flat)
    # Nor does a pose without height shrink a figure to nothing.
    centred = figure().float()
    assert torch.allclose(reposed(centred, poses(flat)), centred, atol=1e-5)
    speck = torch.zeros(1, 1, 64, 64)
    speck[0, 0, 29:35, 29:35] = 1
    found = poses(reposed(speck, Poses(*(torch.tensor([value]) for value in (0.0, 0.0, 0.5, 0.0)))))
    assert float(found.height) == pytest.approx(FARTHEST * float(poses(speck).height), rel=0.05)


def small(count, heights, slants, side=24, channels=1):
    parts = [
        figure(height=heights[i % len(heights)], slant=slants[i % len(slants)], side=side)
        for i in range(count)
    ]
    images = (torch.cat(parts).expand(-1, channels, -1, -1) * 255).round().to(torch.uint8)
    return ArrayImages(images, torch.arange(count) % 3, ["a", "b", "c"])


def test_a_posed_data_set_has_the_poses_of_the_other_and_its_own_labels():
    source = small(60, [0.35], [0.0])
    target = small(40, [0.1, 0.15, 0.2], [-0.3, 0.3], side=32, channels=3)
    like = poses_of(target, 24, 1)
    assert len(like.x) == 40
    posed = PosedImages(source, like, 24, 1, seed=0)
    assert len(posed) == 60
    assert posed.class_names == ["a", "b", "c"]
    assert torch.equal(posed.labels, source.labels)
    assert [posed[i][1] for i in range(6)] == [0, 1, 2, 0, 1, 2]
    found = poses_of(posed, 24, 1)
    assert torch.unique((found.height * 100).round()).numel() >= 3
    assert float(found.height.mean()) == pytest.approx(float(like.height.mean()), rel=0.05)
    assert float(found.slant.mean()) == pytest.approx(float(like.slant.mean()), abs=0.1)
    assert float(found.slant.std()) == pytest.approx(float(like.slant.std()), rel=0.15)


def test_which_pose_an_image_gets_depends_on_seed_and_place_alone():
    source, like = small(12, [0.3], [0.0]), poses_of(small(9, [0.1, 0.2], [-0.4, 0.0, 0.4]), 24, 1)
    posed = PosedImages(source, like, 24, 1, seed=0)
    backwards = [PosedImages(source, like, 24, 1, seed=0)[i][0] for i in reversed(range(12))]
    assert all(torch.equal(posed[i][0], backwards[11 - i]) for i in range(12))
    other = PosedImages(source, like, 24, 1, seed=1)
    assert any(not torch.equal(posed[i][0], other[i][0]) for i in range(12))
    part = PosedImages(Subset(source, [4, 7]), like, 24, 1, seed=0)
    assert part.labels.tolist() == [1, 1]


def test_images_of_another_size_and_channel_count_are_fitted_first():
    image, label = PosedImages(
        small(3, [0.3], [0.0], side=40), poses_of(small(3, [0.2], [0.1]), 16, 3), 16, 3, 0
    )[2]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.uint8
    assert label == 2
