"""SLA-style rotation heads: stages learn class and rotation jointly, and their average teaches the net.

Lee et al. (ICML 2020) predict M K joint labels (class, rotation); Yang et al. (HSAKD, IJCAI 2021) do so at every
stage.  t_j turns an image by j 360 / M degrees, q_i are the joint logits of stage i, z the deployed net's logits:

    L = CE(z(x), y) + 1/M sum_j sum_i CE(q_i(t_j x), (y, j)) + T^2 KL(softmax(a / T) || softmax(z(x) / T)),
    a_k = 1/M sum_j q_S(t_j x)_(k, j), detached;    M = 4, T = 1

A batch of n images costs M n forwards, and M n images of a budget: ``corsd train`` reads batch_size / M images a step.
The net sees all turns in one pass, so its batch statistics are those of upright and turned images.  Not for classes
that depend on the orientation, such as digits.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.divergence import kl_divergence
from shared_core.ops.inputs import check_tensor
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.exits import Exits
from corsd.frame import labels_for, maps_of, own_type, tapped, widened
from corsd.relation import Norm


def turned(
    images: Float[Tensor, "batch channels height width"], turns: int = 4
) -> Float[Tensor, "turned channels height width"]:
    """Return all images upright, then all turned by 360 / turns degrees, and so on; ``turned`` = turns * batch.

    Raises:
        ValueError: another number of turns than 2 or 4, or images that cannot be turned so.
    """
    _check_turns(turns)
    check_tensor("images", images, "batch ...")
    if images.dim() != 4 or (turns == 4 and images.shape[2] != images.shape[3]):
        raise ValueError(
            f"turns={turns} needs images (batch, channels, height, width)"
            f"{', square' if turns == 4 else ''}; got shape {tuple(images.shape)}"
            + (": give square images, or turns=2" if images.dim() == 4 else "")
        )
    return torch.cat([torch.rot90(images, j * (4 // turns), (2, 3)) for j in range(turns)])


def joint_cross_entropy(
    joint: Float[Tensor, "turned joint"], labels: Int[Tensor, " batch"], turns: int = 4
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of joint logits of :func:`turned` images; (class y, turn j) is y * turns + j."""
    check_tensor("joint", joint, "turned joint")
    _check_joint(joint, turns)
    labels = class_numbers(labels, len(joint) // turns).to(joint.device)
    turn = torch.arange(turns, device=labels.device)[:, None]
    target = (labels * turns + turn).flatten()
    return F.cross_entropy(widened(joint), target, reduction="sum") / max(len(target), 1)


def aggregated(joint: Float[Tensor, "turned joint"], turns: int = 4) -> Float[Tensor, "batch classes"]:
    """Return the class logits a_k = 1/M sum_j q(t_j x)_(k, j) of each upright image."""
    check_tensor("joint", joint, "turned joint")
    _check_joint(joint, turns)
    by_turn = widened(joint).view(turns, len(joint) // turns, joint.shape[1] // turns, turns)
    return torch.stack([by_turn[j, ..., j] for j in range(turns)]).mean(0)


class SLA(nn.Module):
    """Rotation-and-class heads at every stage of a net; the deepest head's average over turns teaches the net.

    ``stages`` and ``example`` are those of :func:`corsd.stages.find_stages`, ``norm`` is of the heads.  ``turns=2``
    (upright and upside down) halves the cost and takes images that are not square.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        stages: Sequence[str] | Literal["auto"] = "auto",
        example: Float[Tensor, "batch ..."] | None = None,
        turns: int = 4,
        weight: float = 1.0,
        temperature: float = 1.0,
        norm: Norm = "batch",
        output: Which = None,
    ):
        super().__init__()
        _check_turns(turns)
        self.net, self.num_classes, self.output = net, num_classes, output
        self.turns, self.weight, self.temperature = turns, weight, temperature
        self.stages, self.capture = tapped(net, "SLA", num_classes, stages, example, output)
        *shallow, deepest = [stage.channels for stage in self.stages]
        self.joint_exits = Exits(shallow, deepest, turns * num_classes, norm).to(**own_type(net))
        self.joint = nn.Linear(deepest, turns * num_classes).to(**own_type(net))

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        """Logits of the net for the upright images, and the losses of a batch; ``index`` is ignored."""
        count = len(images)
        every, maps = maps_of(
            self.net, turned(images, self.turns), self.output, self.stages, self.capture, self.joint
        )
        logits = every[:count]
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        joint = [*self.joint_exits(maps[:-1]), self.joint(maps[-1].mean((2, 3)))]
        teacher = aggregated(joint[-1].detach(), self.turns)
        taught = kl_divergence(logits, teacher, self.temperature).mean()
        parts = {
            "ce": F.cross_entropy(widened(logits), labels),
            "joint_ce": torch.stack([joint_cross_entropy(q, labels, self.turns) for q in joint]).sum(),
            "joint_kl": self.weight * self.temperature**2 * taught,
        }
        return summed(logits, parts)


def _check_joint(joint: Tensor, turns: int) -> None:
    _check_turns(turns)
    if len(joint) % turns or joint.shape[1] % turns:
        raise ValueError(
            f"joint has shape {tuple(joint.shape)}; with turns={turns} it must be (turns * batch, turns * classes)"
        )


def _check_turns(turns: int) -> None:
    if turns not in (2, 4):
        raise ValueError(f"turns={turns}; choose 4 (every 90 degrees) or 2 (upright and upside down)")
