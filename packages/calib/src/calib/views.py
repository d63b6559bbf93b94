"""A teacher without labels: the frozen classifier, asked about several views of a target image (ours, not the paper's).

Critics see which answers occur, not which image should get which: a seven may pass for a confident nine.  What a
classifier says of the same image larger, smaller or slanted tells them apart.

    w = softmax(I(zoom) / t_z)              I: information of the answers at that zoom, as in :mod:`calib.validators`
    q = sum_v softmax_v(-H(p_v) / t_v) p_v  p_v: answers to views of one image, zooms drawn by w, slants at random
    loss = mean of -log p(argmax q), 0 where max q <= threshold                 (:func:`calib.losses.agreement_loss`)

What is taught of an image may be learned from the image as it is, or from a view of it (`shake`): an answer that holds
however the image was held carries further than to the images seen.

>>> teacher = Teacher(lambda x: model(x).softmax(1), Views(count=4))
>>> teacher.weigh_zooms(sample)
>>> taught = teacher.teach(images, view_draws(seed=0, turn=0, places=range(len(images)), count=4))
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from shared_core.data.sampling import Key, keyed_uniform
from shared_core.ops.gather import in_turn
from shared_core.ops.host import read_back
from shared_core.ops.inputs import check_images, check_tensor
from torch import Tensor
from torch.nn import functional

from calib import validators

Answers = Callable[[Float[Tensor, "batch channels height width"]], Float[Tensor, "batch classes"]]
"""Images to class probabilities."""
TEACHER, STUDENT = 8, 9
"""Whose random numbers: the last part of a :class:`shared_core.data.sampling.Key`."""


@dataclass(frozen=True)
class Views:
    """Which views there are, and how far the teacher is believed.

    Args:
        count: views of an image whose answers are weighed against each other.
        zooms: magnifications to choose from; 1 is the image as it is.
        shear: slants are drawn from -shear to shear, in widths per height.
        zoom_temperature, temperature: of the weights of zooms and of views; small: the best alone.
        threshold: answers below this probability teach nothing.
        shake: what the calibrator is trained on is magnified by exp(-shake) to exp(shake) and slanted by -shake to
            shake, at random, step by step; 0: the images as they are.
    """

    count: int = 4
    zooms: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.65)
    shear: float = 0.4
    zoom_temperature: float = 0.03
    temperature: float = 0.1
    threshold: float = 0.9
    shake: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.shake < 1:
            raise ValueError(f"shake={self.shake}; it must be in [0, 1), and 0.15 is much")
        if self.count < 1 or not self.zooms or min(self.zooms) <= 0 or self.shear < 0:
            raise ValueError(
                f"count={self.count}, zooms={self.zooms}, shear={self.shear}; give at least one view and one zoom, "
                "zooms above 0, shear 0 or more"
            )
        if min(self.zoom_temperature, self.temperature) <= 0 or not 0 <= self.threshold < 1:
            raise ValueError(
                f"zoom_temperature={self.zoom_temperature}, temperature={self.temperature}, "
                f"threshold={self.threshold}; temperatures must be above 0, the threshold in [0, 1)"
            )


def look(
    images: Float[Tensor, "batch channels height width"],
    zoom: Float[Tensor, " batch"],
    shear: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channels height width"]:
    """The images magnified about their centre and slanted; values stay within those of each image.

    What lies beyond the border is as the border.  An image with zoom 1 and shear 0 comes back as it is.
    """
    check_images("images", images)
    for name, given in (("zoom", zoom), ("shear", shear)):
        check_tensor(name, given, "batch", "one number per image", batch=len(images))
    zero = torch.zeros_like(zoom)
    rows = [torch.stack([1 / zoom, shear / zoom, zero], 1), torch.stack([zero, 1 / zoom, zero], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1).to(images), list(images.shape), align_corners=False)
    seen = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    # Interpolation rounds; a hair outside of the value range would be refused.
    seen = seen.clamp(images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True))
    plain = (zoom == 1) & (shear == 0)
    return torch.where(plain[:, None, None, None], images, seen)


@torch.no_grad()
def zoom_weights(
    answers: Answers,
    images: Float[Tensor, "batch channels height width"],
    views: Views,
    batch_size: int = 200,
    shared: bool = False,
) -> Float[Tensor, " zooms"]:
    """How much each zoom of `views` is worth on these images, by the information of its answers; they sum to 1.

    With `shared` all processes must call it with the same images; each asks about zooms in turn.
    """
    check_images("images", images)

    @torch.no_grad()
    def information(number: int) -> Tensor:
        parts = []
        for part in images.split(batch_size):
            same = part.new_full((len(part),), views.zooms[number])
            parts.append(answers(look(part, same, torch.zeros_like(same))))
        found = validators.information(torch.cat(parts).float().clamp_min(1e-12).log())
        return read_back(found, "what are the zooms worth?")

    count = len(views.zooms)
    found = list(in_turn(count, information)) if shared else [information(n) for n in range(count)]
    return (torch.stack(found) / views.zoom_temperature).softmax(0)


def view_draws(
    seed: int, turn: int, places: Iterable[int], count: int, whose: int = TEACHER
) -> Float[Tensor, "batch 2 count"]:
    """Uniform numbers in [0, 1) for zoom and slant of `count` views of each image.

    A pure function of (seed, turn, the image's place in its data set): the same on every device, after a resume, and
    however the images are shared over processes.
    """
    keys = [Key(turn, place, whose) for place in places]
    return torch.from_numpy(keyed_uniform(seed, keys, 2 * count)).float().view(-1, 2, count)


def shaken(
    images: Float[Tensor, "batch channels height width"], shake: float, draws: Float[Tensor, "batch 2 1"]
) -> Float[Tensor, "batch channels height width"]:
    """A view of each image, its zoom and slant as far from none as `shake` allows; see :class:`Views`."""
    check_images("images", images)
    check_tensor("draws", draws, "batch 2 1", "see view_draws", batch=len(images))
    zoom, shear = (shake * (2 * draws[:, :, 0] - 1)).unbind(1)
    return look(images, zoom.exp().to(images), shear.to(images))


@torch.no_grad()
def surest_answers(
    answers: Answers,
    images: Float[Tensor, "batch channels height width"],
    zooms: Float[Tensor, " zooms"],
    views: Views,
    draws: Float[Tensor, "batch 2 count"],
) -> Float[Tensor, "batch classes"]:
    """What the answers to `views.count` views of each image come to; zooms are drawn with the weights `zooms`.

    `draws` come from :func:`view_draws`.  Zeros for an image of which no class is likelier than the threshold.
    """
    check_images("images", images)
    check_tensor("zooms", zooms, "zooms", "one weight per zoom of views", zooms=len(views.zooms))
    check_tensor("draws", draws, "batch 2 count", "see view_draws", batch=len(images), count=views.count)
    bounds = zooms.cumsum(0)[:-1].contiguous()
    zoom = torch.tensor(views.zooms)[torch.bucketize(draws[:, 0].contiguous(), bounds, right=True)].to(images)
    shear = ((2 * draws[:, 1] - 1) * views.shear).to(images)
    # View by view: one batch of them all would need `count` times the memory of a step.
    seen = [answers(look(images, zoom[:, v], shear[:, v])).float() for v in range(views.count)]
    taught = surest(torch.stack(seen), views.temperature)
    return taught * (taught.amax(1, keepdim=True) > views.threshold)


def surest(
    probabilities: Float[Tensor, "views batch classes"], temperature: float
) -> Float[Tensor, "batch classes"]:
    """Mean over the views of an image with weights softmax(-entropy / temperature): the surest views count most."""
    check_tensor("probabilities", probabilities, "views batch classes")
    entropy = torch.special.entr(probabilities).sum(2)
    return ((-entropy / temperature).softmax(0)[:, :, None] * probabilities).sum(0)


class Teacher:
    """The surest answers to views of target images; which zooms are worth most is weighed anew now and then.

    `answers` gives class probabilities of images: those of the calibrated classifier, which gets better while its
    calibrator is taught.
    """

    def __init__(self, answers: Answers, views: Views) -> None:
        if not callable(answers):
            raise TypeError(
                f"answers is a {type(answers).__name__}; give a function of images that returns probabilities"
            )
        self.answers, self.views = answers, views
        self.zooms = torch.full((len(views.zooms),), 1 / len(views.zooms))

    def weigh_zooms(self, images: Float[Tensor, "batch channels height width"], shared: bool = False) -> None:
        """Weigh the zooms on a sample of the target; `shared` as in :func:`zoom_weights`."""
        self.zooms = zoom_weights(self.answers, images, self.views, shared=shared)

    def teach(
        self, images: Float[Tensor, "batch channels height width"], draws: Float[Tensor, "batch 2 count"]
    ) -> Float[Tensor, "batch classes"]:
        """Probabilities, or zeros where the views leave too much doubt."""
        return surest_answers(self.answers, images, self.zooms, self.views, draws)

    def state_dict(self) -> dict[str, Any]:
        """The zooms' weights."""
        return {"zooms": self.zooms.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts them back.  Raises ValueError for those of other zooms."""
        if len(state["zooms"]) != len(self.views.zooms):
            raise ValueError(
                f"the state has {len(state['zooms'])} zooms, these views {len(self.views.zooms)}"
            )
        self.zooms = torch.tensor(state["zooms"])
