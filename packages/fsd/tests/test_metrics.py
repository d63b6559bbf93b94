"""Each number against a closed form or a slow loop."""

import math
from itertools import combinations

import numpy as np
import pytest
from fsd.metrics import (
    cross_seed_fid,
    distinct,
    enclosed_share,
    floaters,
    frechet_distance,
    inception_score,
    label_entropy,
    pairwise_distance,
    seed_inception_score,
    vendi_score,
    view_consistency,
    volume_distance,
)


def test_pairwise_distance_is_the_slow_loop() -> None:
    views = np.random.default_rng(0).random((4, 3, 5, 6, 3))
    distances = []
    for i, j in combinations(range(4), 2):
        squares = [(a - b) ** 2 for a, b in zip(views[i].ravel(), views[j].ravel(), strict=True)]
        distances.append(math.sqrt(sum(squares) / len(squares)))
    assert pairwise_distance(views) == pytest.approx((sum(distances) / 6, min(distances)))


def test_two_seeds_alike_show_in_the_minimum() -> None:
    views = np.zeros((3, 2, 4, 4, 3))
    views[2] = 0.5
    assert pairwise_distance(views) == pytest.approx((2 * 0.5 / 3, 0.0))
    with pytest.raises(ValueError, match=r"1 seed\(s\).*at least two"):
        pairwise_distance(views[:1])


def test_vendi_counts_groups() -> None:
    axes = np.eye(4, 9)
    assert vendi_score(axes) == pytest.approx(4)
    assert vendi_score(np.repeat(axes[:1], 4, 0)) == pytest.approx(1)
    assert vendi_score(axes[[0, 0, 1, 1]] * [[1], [3], [2], [5]]) == pytest.approx(2)
    # Two rows at an angle: the eigenvalues of K / 2 are (1 ± cos) / 2.
    up, down = (1 + 0.6) / 2, (1 - 0.6) / 2
    expected = math.exp(-up * math.log(up) - down * math.log(down))
    assert vendi_score(np.array([[1.0, 0.0], [0.6, 0.8]])) == pytest.approx(expected)
    assert vendi_score(np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])) == pytest.approx(
        math.exp(-2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3))
    )
    with pytest.raises(ValueError, match="no rows"):
        vendi_score(np.zeros((0, 3)))


def test_labels() -> None:
    assert distinct(["red cube", "red ball", None, "red cube"]) == 2
    assert label_entropy(["a", "a", "a"]) == 0
    assert label_entropy(["a", "b", "c", "d"]) == pytest.approx(math.log(4))
    assert label_entropy(["a", "a", "b", "b"]) == pytest.approx(math.log(2))
    assert view_consistency([["a", "a", "b", "c"], ["d", "d", "d", "d"]]) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="no labels"):
        view_consistency([["a"], []])


def test_inception_score_runs_from_one_to_the_classes() -> None:
    assert inception_score(np.eye(5)) == pytest.approx(5)
    assert inception_score(np.full((7, 5), 0.2)) == pytest.approx(1)
    p = np.random.default_rng(1).dirichlet(np.ones(4), size=6)
    mean = p.mean(0)
    divergences = [sum(a * math.log(a / b) for a, b in zip(row, mean, strict=True)) for row in p]
    assert inception_score(p) == pytest.approx(math.exp(sum(divergences) / 6))


def test_frechet_distance_in_one_dimension_and_for_diagonal_covariances() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.normal(1, 2, (40, 1)), generator.normal(-1, 0.5, (30, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)
    # A square's corners have covariance (4 / 3) I; stretched by s, s^2 times that.
    square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    expected = 2 * (3 * math.sqrt(4 / 3) - math.sqrt(4 / 3)) ** 2 + 25
    assert frechet_distance(square, 3 * square + [3.0, 4.0]) == pytest.approx(expected)


def test_frechet_distance_agrees_with_scipys_square_root() -> None:
    from scipy.linalg import sqrtm

    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(50, 4)), generator.normal(size=(60, 4)) @ generator.normal(size=(4, 4))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        first + second - 2 * sqrtm(first @ second).real
    )
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_shrinkage_takes_away_what_few_images_add() -> None:
    generator = np.random.default_rng(4)
    few = generator.normal(size=(8, 32)), generator.normal(size=(8, 32))
    assert frechet_distance(*few, shrinkage=1.0) < 0.6 * frechet_distance(*few)
    with pytest.raises(ValueError, match=r"shrinkage=2.*\[0, 1\]"):
        frechet_distance(*few, shrinkage=2.0)
    with pytest.raises(ValueError, match="sets of 1 and 8"):
        frechet_distance(few[0][:1], few[1])


def test_cross_seed_fid_halves_the_seeds() -> None:
    features = np.random.default_rng(5).normal(size=(5, 6, 3))
    expected = frechet_distance(features[:2].reshape(12, 3), features[2:4].reshape(12, 3), 0.1)
    assert cross_seed_fid(features) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least two"):
        cross_seed_fid(features[:1])


def test_volume_distance() -> None:
    occupied = np.zeros((3, 4, 4, 4), bool)
    occupied[0, :2] = True
    occupied[1, 1:3] = True
    distances = [1 - 16 / 48, 1.0, 1.0]
    assert volume_distance(occupied) == pytest.approx((sum(distances) / 3, 1 - 16 / 48))
    assert volume_distance(occupied[[2, 2]]) == (0, 0)


def test_a_hollow_box_is_seen_and_one_with_a_hole_is_not_hollow() -> None:
    box = np.zeros((9, 9, 9), bool)
    box[:5, :5, :5] = True
    box[1:4, 1:4, 1:4] = False
    assert enclosed_share(box) == pytest.approx(27 / 125)
    box[2, 2, 0] = False
    assert enclosed_share(box) == 0
    assert enclosed_share(np.zeros((3, 3, 3), bool)) == 0


def test_floaters() -> None:
    grid = np.zeros((9, 9, 9), bool)
    grid[:3, :3, :3] = True
    grid[3, 3, 3] = True  # touches at a corner
    assert floaters(grid) == (0, 0.0)
    grid[6:8, 6:8, 6:8] = True
    grid[8, 0, 0] = True  # a speck
    assert floaters(grid) == (1, pytest.approx(9 / 37))
    assert floaters(np.zeros((3, 3, 3), bool)) == (0, 0.0)


def test_the_inception_score_over_seeds_is_at_one_view() -> None:
    p = np.random.default_rng(6).dirichlet(np.ones(5), size=(4, 3))
    assert seed_inception_score(p) == pytest.approx(sum(inception_score(p[:, view]) for view in range(3)) / 3)
    # Two seeds that are something else from every side, in the same way.
    assert seed_inception_score(np.stack([np.eye(3)] * 2)) == pytest.approx(1)


def test_frechet_distance_of_many_features_is_the_same_number() -> None:
    generator = np.random.default_rng(7)
    a, b = generator.normal(size=(9, 40)), generator.normal(1, 2, size=(7, 40))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a, b, shrinkage=1e-12), rel=1e-4)
