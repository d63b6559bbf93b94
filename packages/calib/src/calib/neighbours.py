"""Neighbours agree: what is said of each image, smoothed over the images that look like it (ours, not the paper's).

A teacher is wrong about single images more often than about whole neighbourhoods: where the images around a seven are
called sevens, one that is called a nine is most likely a seven.  Labels are propagated along the nearest neighbours, as
in label spreading (Zhou et al., 2004), from the answers of a teacher instead of a few true labels.  And a class that is
hardly ever named is most likely overlooked: balance lets it grow, as class mass normalization does (Zhu et al., 2003).
Images that are also spoken of alike are more often of one class than those that only look alike; where answers weigh
much, however, their mistakes find each other.

    u(x)  the image, its centre of mass moved to the middle and its slant taken out, at 16 by 16 pixels
    neighbours: nearest in u(x), or in (u(x) / s_u, answers * sqrt(q) / s_q)        s: root of the total variance
    p <- (1 - restart) mean of p over the nearest neighbours + restart q
    p_c <- p_c (1 / (classes * mean of p_c over all images))^balance, rows summing to 1;   `rounds` times from p = q

>>> found = nearest(torch.cat([upright(part) for part in images.split(500)]), count=5)
>>> agreed = agree(answers, found, Neighbours())
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from shared_core.ops.host import read_back
from shared_core.ops.inputs import INTEGERS, check_images, check_tensor
from torch import Tensor
from torch.nn import functional

from calib.pose import poses, reposing_grid

SIDE = 16
"""Height and width of what is compared: coarse enough to forgive a stroke that lies a pixel aside."""


@dataclass(frozen=True)
class Neighbours:
    """How far neighbours are believed.

    Args:
        count: nearest neighbours of an image; 0: every image is taught what its own views say.
        answers: weight of what is said of images, beside how they look, in who is near; 0: looks alone.
        restart: weight of what is said of the image itself, in each round.
        balance: 1 draws towards classes that are equally frequent, which holds where they about are; 0 does not.
        rounds: how often answers are passed on.
        threshold: agreed answers below this probability teach nothing.
        images: of a larger target so many are drawn, once; the others are not looked at.
        every: steps from one survey of all these images to the next.
    """

    count: int = 0
    answers: float = 0.0
    restart: float = 0.2
    balance: float = 1.0
    rounds: int = 10
    threshold: float = 0.5
    images: int = 20_000
    every: int = 200

    def __post_init__(self) -> None:
        if self.count < 0 or min(self.rounds, self.images, self.every) < 1:
            raise ValueError(
                f"count={self.count}, rounds={self.rounds}, images={self.images}, every={self.every}; "
                "count must be 0 or more, the others at least 1"
            )
        if not 0 <= self.answers < float("inf"):
            raise ValueError(f"answers={self.answers}; it must be 0 or more, and 0.25 is usual")
        if not 0 < self.restart <= 1 or not 0 <= self.balance <= 1 or not 0 <= self.threshold < 1:
            raise ValueError(
                f"restart={self.restart}, balance={self.balance}, threshold={self.threshold}; restart must be in "
                "(0, 1], balance in [0, 1], threshold in [0, 1)"
            )


def upright(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
    """The images centred and upright, to compare: mean over channels, 16 by 16 pixels, flat.

    Centre and slant are those of :func:`calib.pose.poses`, in which a dark figure on white counts as a white one on
    black.  An image without a figure stays.
    """
    check_images("images", images)
    gray = images.mean(1, keepdim=True)
    have = poses(gray)
    zero = torch.zeros_like(have.x)
    grid = reposing_grid(have, have._replace(x=zero, y=zero, slant=zero), gray.shape)
    seen = functional.grid_sample(gray, grid, padding_mode="border", align_corners=False)
    return functional.adaptive_avg_pool2d(seen, SIDE).flatten(1)


def looks_and_answers(
    looks: Float[Tensor, "images features"], answers: Float[Tensor, "images classes"], weight: float
) -> Float[Tensor, "images both"]:
    """Both side by side, to compare: looks of total variance 1, square roots of probabilities of `weight` squared.

    Between square roots the Euclidean distance is Hellinger's, which tells a doubtful answer from a sure one.  Looks
    that are all alike, or answers, stay alike.
    """
    check_tensor("looks", looks, "images features")
    check_tensor("answers", answers, "images classes", images=len(looks))
    parts = [part - part.mean(0) for part in (looks, answers.sqrt())]
    looks, answers = (part / part.square().sum(1).mean().sqrt().clamp_min(1e-12) for part in parts)
    return torch.cat([looks, weight * answers], 1)


def check_enough(images: int, count: int) -> None:
    """Raises ValueError where so many images do not have `count` neighbours each."""
    if images <= count:
        raise ValueError(
            f"{images} images have no {count} neighbours each; give more images or a smaller count"
        )


def nearest(
    features: Float[Tensor, "images features"],
    count: int,
    seen_from: Float[Tensor, "others features"] | None = None,
) -> Int64[Tensor, "_ count"]:
    """The `count` nearest images of each, itself left out, or of each of `seen_from`; all with all, on the CPU.

    Distances are Euclidean.  Raises ValueError where there are not more than `count` images.
    """
    # Seconds to import, for this alone.
    from sklearn.neighbors import NearestNeighbors

    check_tensor("features", features, "images features")
    if seen_from is not None:
        check_tensor("seen_from", seen_from, "others features", features=features.shape[1])
    check_enough(len(features), count)
    found = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(
        read_back(features, "who is near?").numpy()
    )
    # Asked about none in particular it leaves out each image itself, even where others are the same.
    others = None if seen_from is None else read_back(seen_from, "who is near?").numpy()
    return torch.from_numpy(found.kneighbors(others, return_distance=False)).long()


def agree(
    answers: Float[Tensor, "images classes"], neighbours: Int64[Tensor, "images count"], how: Neighbours
) -> Float[Tensor, "images classes"]:
    """The answers after `how.rounds` rounds among neighbours; rows, which sum to 1, still do."""
    check_tensor("answers", answers, "images classes")
    check_tensor("neighbours", neighbours, "images count", "see nearest", INTEGERS, images=len(answers))
    agreed = answers
    for _ in range(how.rounds):
        agreed = (1 - how.restart) * agreed[neighbours].mean(1) + how.restart * answers
        shares = agreed.mean(0).clamp_min(1e-12) * answers.shape[1]
        agreed = agreed * shares**-how.balance
        agreed = agreed / agreed.sum(1, keepdim=True)
    return agreed
