"""BAKE: images of the batch that look alike agree on their labels (Ge et al., 2021: batch knowledge ensembling).

    A_ab = softmax over b != a of f_a . f_b / tau,    P = softmax(z / T)
    Q = (1 - omega) (I - omega A)^-1 P
    L = CE(z, y) + T^2 KL(Q || P),    Q detached, T = 4, omega = 0.5, tau = 1

f are the pooled features of the deepest stage, of unit length.  The paper adds three images of the class of each image
to a batch: ``images_per_class_in_batch: 4`` in ``corsd train``, or :func:`corsd.balanced_plan`; ordinary batches work.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.autocast import without_autocast
from shared_core.ops.gather import all_gather, rank
from shared_core.ops.inputs import check_tensor
from shared_core.ops.outputs import Which
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.frame import labels_for, maps_of, tapped, widened
from corsd.rows import cosine_relations


@torch.no_grad()
def propagated(
    features: Float[Tensor, "batch channels"],
    logits: Float[Tensor, "batch classes"],
    omega: float = 0.5,
    temperature: float = 4.0,
    tau: float = 1.0,
) -> Float[Tensor, "batch classes"]:
    """Return Q = (1 - omega) (I - omega A)^-1 softmax(logits / T), a distribution per image, without gradient.

    An image that is alone keeps its own prediction.

    Raises:
        ValueError: omega outside of [0, 1), or a temperature or tau that is not above 0.
    """
    _check(omega, temperature, tau)
    check_tensor("features", features, "batch channels")
    check_tensor("logits", logits, "batch classes", "of the same images", batch=len(features))
    with without_autocast(logits):
        relations = cosine_relations(features) / tau
        one = torch.eye(len(logits), dtype=relations.dtype, device=logits.device)
        # A finite number: the row of an image that is alone becomes A = I and not NaN.
        hidden = relations.masked_fill(one.bool(), torch.finfo(relations.dtype).min / 2)
        own = (widened(logits) / temperature).softmax(1).to(relations.dtype)
        # No look at the result, which would wait for the device: I - omega A has a dominant diagonal.
        spread = torch.linalg.solve_ex(one - omega * hidden.softmax(1), own, check_errors=False).result
        return ((1 - omega) * spread).clamp_min(0).to(widened(logits).dtype)


def propagation_distillation(
    logits: Float[Tensor, "batch classes"], target: Float[Tensor, "batch classes"], temperature: float = 4.0
) -> Float[Tensor, ""]:
    """Return T^2 mean KL(target || softmax(logits / T)); target holds probabilities and gets no gradient."""
    check_tensor("logits", logits, "batch classes")
    check_tensor("target", target, "batch classes", batch=len(logits), classes=logits.shape[1])
    with without_autocast(logits):
        student = (widened(logits) / temperature).log_softmax(1)
        total = F.kl_div(student, target.detach().to(student.dtype), reduction="sum")
        return temperature**2 * total / max(len(logits), 1)


class BAKE(nn.Module):
    """Label propagation over the images of a batch, of all processes, around a net.

    ``stages`` and ``example`` are those of :func:`corsd.stages.find_stages`, of which the last is read.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        stages: Sequence[str] | Literal["auto"] = "auto",
        example: Float[Tensor, "batch ..."] | None = None,
        weight: float = 1.0,
        omega: float = 0.5,
        temperature: float = 4.0,
        tau: float = 1.0,
        output: Which = None,
    ):
        super().__init__()
        _check(omega, temperature, tau)
        self.net, self.num_classes, self.output = net, num_classes, output
        self.weight, self.omega, self.temperature, self.tau = weight, omega, temperature, tau
        self.stages, self.capture = tapped(net, "BAKE", num_classes, stages, example, output)

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        """Logits of the net, and the losses of a batch; ``index`` is ignored."""
        logits, maps = maps_of(self.net, images, self.output, self.stages, self.capture)
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        # Labels spread over the images of all processes, like over those of one larger batch.
        features, every = all_gather(maps[-1].detach().mean((2, 3))), all_gather(logits.detach())
        mine = slice(rank() * len(logits), (rank() + 1) * len(logits))
        target = propagated(features, every, self.omega, self.temperature, self.tau)[mine]
        taught = propagation_distillation(logits, target, self.temperature)
        ce = F.cross_entropy(widened(logits), labels)
        return summed(logits, {"ce": ce, "propagation": self.weight * taught})


def _check(omega: float, temperature: float, tau: float) -> None:
    if not 0 <= omega < 1 or not temperature > 0 or not tau > 0:
        raise ValueError(
            f"omega={omega}, temperature={temperature}, tau={tau}; omega must be from 0 up to, not including, 1, "
            "temperature and tau above 0"
        )
