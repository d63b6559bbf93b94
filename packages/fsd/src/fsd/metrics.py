"""How different the objects of several seeds are, and how good each is, without any downloaded network.

Diversity alone says little: an object that is something else from every side scores as diverse.  So read
`pairwise_distance`, `vendi_score` and `volume_distance` beside `view_consistency`.

    >>> views = np.stack([views_of_seed_0, views_of_seed_1])       # (seeds, views, h, w, 3) in [0, 1]
    >>> pairwise_distance(views).mean
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fsd.inputs import check_array

# The smallest group of voxels that counts as a thing of its own.
SPECK = 4


class Pairwise(NamedTuple):
    """A distance over all pairs of seeds; a minimum near 0 means that two seeds gave the same object."""

    mean: float
    minimum: float


def pairwise_distance(views: Float[np.ndarray, "seeds views h w 3"]) -> Pairwise:
    """Root mean square difference between the views of two seeds, each view against the same view.

        d(i, j) = sqrt(mean over views, pixels and channels of (views_i - views_j)^2)

    With values in [0, 1] it lies in [0, 1].  Raises ValueError for fewer than two seeds.
    """
    check_array("views", views, "seeds views h w 3")
    _refuse_single(len(views))
    return _over_pairs(lambda i, j: math.sqrt(float(np.mean((views[i] - views[j]) ** 2))), len(views))


def vendi_score(features: Float[np.ndarray, "n d"]) -> float:
    """Effective number of different rows, from 1 (all alike) to n (all at right angles), arXiv 2210.02410.

        exp(-sum of l log l) over the eigenvalues l of K / n, with K(i, j) the cosine between rows i and j

    Rows of zeros count as alike.  Raises ValueError where there is no row.
    """
    check_array("features", features, "n d", "one object per row")
    if not len(features):
        raise ValueError("there are no rows; give the features of at least one object")
    # The further entry makes rows of zeros alike and is nothing beside any other row.
    rows = np.concatenate([features.astype(np.float64), np.full((len(features), 1), 1e-9)], 1)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    return float(np.exp(_entropy(eigenvalues.clip(0))))


def distinct(labels: Sequence[str | None]) -> int:
    """Number of different labels over the seeds; None, for an object that nobody could name, is none."""
    return len({label for label in labels if label is not None})


def label_entropy(labels: Sequence[str]) -> float:
    """Entropy in nats of how often each label occurs: 0 if all are one, log n if all differ."""
    counts = np.array(list(Counter(labels).values()), dtype=np.float64)
    return _entropy(counts / counts.sum())


def view_consistency(labels: Sequence[Sequence[str]]) -> float:
    """Share of an object's views that carry its main label, mean over the objects; 1 is an object all around.

    `labels` holds one list per object, one label per view.  Raises ValueError without objects or views.
    """
    if not labels or not all(labels):
        raise ValueError("there are no labels; give one per view for at least one object")
    shares = [Counter(views).most_common(1)[0][1] / len(views) for views in labels]
    return float(np.mean(shares))


def inception_score(probabilities: Float[np.ndarray, "n classes"]) -> float:
    """exp(mean over images of KL(p(class | image) || p(class))), arXiv 1606.03498; from 1 to the classes."""
    check_array("probabilities", probabilities, "n classes", "one image per row")
    marginal = probabilities.mean(0)
    return math.exp(_entropy(marginal) - float(np.mean([_entropy(row) for row in probabilities])))


def seed_inception_score(probabilities: Float[np.ndarray, "seeds views classes"]) -> float:
    """Inception score over the seeds at one view, mean over the views; from 1 (all alike) to the number of seeds.

    At one view, objects that are something else from every side bring nothing.
    """
    check_array("probabilities", probabilities, "seeds views classes")
    return float(np.mean([inception_score(probabilities[:, view]) for view in range(probabilities.shape[1])]))


def frechet_distance(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], shrinkage: float = 0.0
) -> float:
    """Fréchet distance between normal distributions fitted to two sets of features, arXiv 1706.08500.

        |m1 - m2|^2 + trace(S1 + S2 - 2 (S1^(1/2) S2 S1^(1/2))^(1/2))

    `shrinkage` in [0, 1] moves each covariance S towards (trace(S) / d) I: without it, fewer images than
    features make the distance large by themselves.  Compare only at equal counts.

    Raises ValueError for sets of fewer than two, or a shrinkage out of range.
    """
    check_array("first", first, "n d", "features of one image per row")
    check_array("second", second, "m d", "as many features as in first", d=first.shape[1])
    if min(len(first), len(second)) < 2:
        raise ValueError(f"sets of {len(first)} and {len(second)}; a covariance needs at least two of each")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage={shrinkage}; it must be in [0, 1]")
    apart = ((first.mean(0) - second.mean(0)) ** 2).sum()
    if not shrinkage:
        # The trace of the root is the sum of singular values of A^T B where S1 = A A^T and S2 = B B^T: with far more
        # features than images, as Inception's, that is a small matrix.
        a, b = ((x - x.mean(0)).astype(np.float64) / math.sqrt(len(x) - 1) for x in (first, second))
        shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
        return float(max(0.0, apart + (a**2).sum() + (b**2).sum() - 2 * shared))
    covariances = [_shrunk_covariance(features, shrinkage) for features in (first, second)]
    root = _root(covariances[0])
    cross = _root(root @ covariances[1] @ root)
    return float(max(0.0, apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(cross)))


def cross_seed_fid(features: Float[np.ndarray, "seeds views d"], shrinkage: float = 0.1) -> float:
    """Fréchet distance between the first and the second half of the seeds; higher is more diverse.

    The paper's CROSS-FID (arXiv 2405.10988, appendix A) has 4 seeds of 24 views and 2048 features of Inception;
    here the features are the caller's, as the judge's 64.  2 x 24 views span 47 directions at most, fewer than the
    features: without shrinkage the rest would have no variance at all, and how far the two sets' directions miss each
    other by chance would count as distance.  An odd last seed is left out.  Raises ValueError below two seeds.
    """
    check_array("features", features, "seeds views d")
    _refuse_single(len(features))
    half = len(features) // 2
    first, second = features[:half], features[half : 2 * half]
    width = features.shape[-1]
    return frechet_distance(first.reshape(-1, width), second.reshape(-1, width), shrinkage)


def volume_distance(occupied: Bool[np.ndarray, "seeds x y z"]) -> Pairwise:
    """1 - intersection over union of the space that two seeds fill; 0 for two that fill none.

    Raises ValueError for fewer than two seeds.
    """
    _check_occupied(occupied, "seeds x y z")
    _refuse_single(len(occupied))

    def apart(i: int, j: int) -> float:
        union = int((occupied[i] | occupied[j]).sum())
        return 1 - int((occupied[i] & occupied[j]).sum()) / union if union else 0.0

    return _over_pairs(apart, len(occupied))


def enclosed_share(occupied: Bool[np.ndarray, "x y z"]) -> float:
    """Share of the body that is hollow: empty voxels with no way out over faces, over filled and enclosed ones."""
    from skimage.measure import label

    _check_occupied(occupied, "x y z")
    empty = np.pad(~occupied, 1, constant_values=True)
    regions = np.asarray(label(empty, connectivity=1))
    enclosed = int((empty & (regions != regions[0, 0, 0])).sum())
    body = int(occupied.sum()) + enclosed
    return enclosed / body if body else 0.0


def floaters(occupied: Bool[np.ndarray, "x y z"], speck: int = SPECK) -> tuple[int, float]:
    """Pieces apart from the largest, in number and as a share of the filled voxels.

    Voxels that touch, be it at a corner, are one piece; those of fewer than `speck` voxels are not counted,
    but are in the share.
    """
    from skimage.measure import label

    _check_occupied(occupied, "x y z")
    pieces = np.asarray(label(occupied, connectivity=3))
    sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1]
    if not len(sizes):
        return 0, 0.0
    return int((sizes[1:] >= speck).sum()), float(sizes[1:].sum() / sizes.sum())


def _over_pairs(apart: Callable[[int, int], float], count: int) -> Pairwise:
    distances = [apart(i, j) for i in range(count) for j in range(i)]
    return Pairwise(float(np.mean(distances)), float(np.min(distances)))


def _check_occupied(occupied: np.ndarray, axes: str) -> None:
    check_array("occupied", occupied, axes)
    # `~` of an integer is no "not": with 0 and 1 everything would count as empty and filled at once.
    if occupied.dtype != bool:
        raise TypeError(
            f"occupied has the type {occupied.dtype}; give True and False, for instance density > limit"
        )


def _refuse_single(seeds: int) -> None:
    if seeds < 2:
        raise ValueError(f"{seeds} seed(s); a distance between seeds needs at least two")


def _entropy(probabilities: np.ndarray) -> float:
    p = probabilities[probabilities > 0]
    return float(0.0 - (p * np.log(p)).sum())


def _shrunk_covariance(features: np.ndarray, shrinkage: float) -> np.ndarray:
    covariance = np.atleast_2d(np.cov(features.astype(np.float64), rowvar=False))
    width = len(covariance)
    return (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / width * np.eye(width)


def _root(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
