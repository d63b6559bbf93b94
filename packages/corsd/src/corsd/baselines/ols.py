"""OLS: labels smoothed by what the net predicted for their class in the last epoch (Zhang et al., TIP 2021).

    L = alpha CE(z, y) + (1 - alpha) sum_k -S_yk log softmax(z)_k,    alpha = 0.5

S_y, the soft label of class y, is the mean prediction of the last epoch's images of y that were predicted right.  It
is uniform at first; a class without a right prediction in an epoch keeps the label it had.  Two tables of classes x
classes are kept (0.5 GB at 8,000 classes); a step touches the rows of its classes only.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.divergence import soft_cross_entropy
from shared_core.ops.gather import all_gather, world_size
from shared_core.ops.inputs import check_tensor
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.frame import HostCount, labels_for, run_net, widened


def online_label_smoothing(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    soft_labels: Float[Tensor, "classes classes"],
    alpha: float = 0.5,
) -> Float[Tensor, ""]:
    """Return the mean of alpha CE(z, y) + (1 - alpha) CE(z, S_y), S_y row y of ``soft_labels``."""
    labels = _checked(logits, labels, soft_labels=soft_labels)
    hard = F.cross_entropy(widened(logits), labels, reduction="sum")
    soft = soft_cross_entropy(logits, soft_labels[labels]).sum()
    return (alpha * hard + (1 - alpha) * soft) / max(len(logits), 1)


@torch.no_grad()
def add_right_predictions(
    sums: Float[Tensor, "classes classes"],
    counts: Float[Tensor, " classes"],
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
) -> None:
    """Add softmax(z) to row y of ``sums`` and 1 to ``counts``, in place, for every image that is predicted right.

    Images whose logits are not finite add nothing.
    """
    labels = _checked(logits, labels, sums=sums)
    check_tensor("counts", counts, "classes", classes=len(sums))
    softmax = widened(logits).softmax(1).to(sums.dtype)
    right = (logits.argmax(1) == labels) & softmax.isfinite().all(1)
    sums.index_add_(0, labels, torch.where(right[:, None], softmax, 0.0))
    counts.index_add_(0, labels, right.to(sums.dtype))


@torch.no_grad()
def next_soft_labels(
    soft_labels: Float[Tensor, "classes classes"],
    sums: Float[Tensor, "classes classes"],
    counts: Float[Tensor, " classes"],
) -> Float[Tensor, "classes classes"]:
    """Return the means of ``sums``; rows that nothing was added to keep their soft label."""
    check_tensor("soft_labels", soft_labels, "classes classes", classes=len(soft_labels))
    check_tensor("sums", sums, "classes classes", classes=len(soft_labels))
    check_tensor("counts", counts, "classes", classes=len(soft_labels))
    return torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), soft_labels)


def _checked(logits: Tensor, labels: Tensor, **tables: Tensor) -> Tensor:
    """The labels as int64 beside the logits, once they and the tables fit them."""
    check_tensor("logits", logits, "batch classes")
    for name, table in tables.items():
        check_tensor(name, table, "classes classes", classes=logits.shape[1])
    return class_numbers(labels, len(logits)).to(logits.device)


class OLS(nn.Module):
    """Online label smoothing around a net; an epoch is ``num_images`` images over all processes."""

    soft_labels: Float[Tensor, "classes classes"]
    sums: Float[Tensor, "classes classes"]
    counts: Float[Tensor, " classes"]
    seen: Int[Tensor, ""]

    def __init__(
        self, net: nn.Module, num_classes: int, num_images: int, alpha: float = 0.5, output: Which = None
    ):
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}; it must be from 0 to 1")
        self.net, self.num_classes, self.output = net, num_classes, output
        self.num_images, self.alpha = num_images, alpha
        self.register_buffer("soft_labels", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._seen = HostCount()
        # Every process adds the predictions of all: DistributedDataParallel need not send the tables each step.
        self._ddp_params_and_buffers_to_ignore = ["soft_labels", "sums", "counts", "seen"]

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        """Logits of the net, and the loss of a batch; ``index`` is ignored."""
        logits = run_net(self.net, images, self.output)
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        # The loss is computed before tables move; autograd keeps the rows of them that it needs.
        loss = online_label_smoothing(logits, labels, self.soft_labels, self.alpha)
        if self.training:
            every = all_gather(labels)
            ends = self._ends_an_epoch(len(every))
            add_right_predictions(self.sums, self.counts, all_gather(logits.detach()), every)
            if ends:
                self.soft_labels.copy_(next_soft_labels(self.soft_labels, self.sums, self.counts))
                self.sums.zero_()
                self.counts.zero_()
            self._seen.add(self.seen, len(every))
        return summed(logits, {"soft_ce": loss})

    def written_rows(self, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> dict[str, Tensor]:
        """Of the large buffers, by name, the rows that a step on these labels writes; see ``Snapshot``."""
        rows = class_numbers(labels).to(self.sums.device)
        if self._ends_an_epoch(len(rows) * world_size()):
            return {}
        return {"sums": all_gather(rows), "soft_labels": rows[:0]}

    def _ends_an_epoch(self, images: int) -> bool:
        seen, epoch = self._seen.value(self.seen), max(self.num_images, 1)
        return (seen + images) // epoch > seen // epoch
