"""DKS: all exits and the deployed net teach each other (Sun et al., CVPR 2019).

    L = CE(z_S, y) + sum_{i<S} CE(z_i, y) + weight sum_i sum_{j != i} T^2 KL(softmax(z_j / T) || softmax(z_i / T))

Every target z_j is detached; T = 1 and weight = 1.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.autocast import without_autocast
from shared_core.ops.outputs import Which
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.ensemble import check_stages
from corsd.exits import Exits
from corsd.frame import labels_for, maps_of, own_type, tapped, widened
from corsd.relation import Norm


def pairwise_distillation(
    logits: Sequence[Float[Tensor, "batch classes"]], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Return sum_i sum_{j != i} T^2 mean KL(softmax(z_j / T) || softmax(z_i / T)); z_j gets no gradient.

    Raises:
        ValueError: no logits, or the temperature is not above 0.
    """
    check_stages(logits)
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}; it must be above 0")
    with without_autocast(logits[0]):
        students = [(widened(z) / temperature).log_softmax(1) for z in logits]
        teachers = [z.detach() for z in students]
        pairs = [(s, t) for i, s in enumerate(students) for j, t in enumerate(teachers) if i != j]
        total = sum(((t.exp() * (t - s)).sum() for s, t in pairs), students[0].new_zeros(()))
        return temperature**2 * total / max(len(logits[0]), 1)


class DKS(nn.Module):
    """Deeply-supervised knowledge synergy around a net, with an exit per shallow stage.

    ``stages`` and ``example`` are those of :func:`corsd.stages.find_stages`, ``norm`` is of the exits.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        stages: Sequence[str] | Literal["auto"] = "auto",
        example: Float[Tensor, "batch ..."] | None = None,
        weight: float = 1.0,
        temperature: float = 1.0,
        norm: Norm = "batch",
        output: Which = None,
    ):
        super().__init__()
        self.net, self.num_classes, self.output = net, num_classes, output
        self.weight, self.temperature = weight, temperature
        self.stages, self.capture = tapped(net, "DKS", num_classes, stages, example, output)
        channels = [stage.channels for stage in self.stages]
        self.exits = Exits(channels[:-1], channels[-1], num_classes, norm).to(**own_type(net))

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        """Logits of the net, and the losses of a batch; ``index`` is ignored."""
        logits, maps = maps_of(self.net, images, self.output, self.stages, self.capture, self.exits)
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        of_stages = [*self.exits(maps[:-1]), logits]
        ce = [F.cross_entropy(widened(z), labels) for z in of_stages]
        parts = {
            "ce": ce[-1],
            "exit_ce": sum(ce[:-1], torch.zeros_like(ce[-1])),
            "exit_kl": self.weight * pairwise_distillation(of_stages, self.temperature),
        }
        return summed(logits, parts)
