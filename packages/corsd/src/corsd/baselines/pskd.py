"""PS-KD: an image learns from the last epoch's prediction for it (Kim et al., ICCV 2021)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.divergence import soft_cross_entropy
from shared_core.ops.gather import all_gather
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.frame import HostCount, labels_for, run_net, widened


class PSKD(nn.Module):
    """PS-KD (ICCV 2021): the target is (1 - a) label + a last epoch's prediction, a = 0.8 epoch / epochs.

    Needs ``index``, the images' places in the training set; keeps one row of probabilities per image.
    """

    past: Float[Tensor, "images classes"]
    seen: Int[Tensor, ""]

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        num_images: int,
        total_images: int,
        last_alpha: float = 0.8,
        output: Which = None,
    ):
        super().__init__()
        self.net, self.num_classes, self.output = net, num_classes, output
        self.num_images, self.total_images, self.last_alpha = num_images, total_images, last_alpha
        self.register_buffer("past", torch.full((num_images, num_classes), 1 / num_classes))
        # Every process writes the rows of all: DistributedDataParallel need not send the table each step.
        self._ddp_params_and_buffers_to_ignore = ["past", "seen"]
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._seen = HostCount()

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        if index is None:
            raise ValueError("PS-KD needs index, the place of every image in the training set")
        logits = run_net(self.net, images, self.output)
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        index = class_numbers(index, len(images), "index").to(self.past.device)
        epoch, epochs = (
            self._seen.value(self.seen) // self.num_images,
            max(self.total_images // self.num_images, 1),
        )
        alpha = self.last_alpha * min(epoch / epochs, 1.0)
        hard = F.one_hot(labels, self.num_classes).to(self.past)
        target = (1 - alpha) * hard + alpha * self.past[index]
        if self.training:
            every = all_gather(index)
            self.past[every] = all_gather(widened(logits.detach()).softmax(1).to(self.past))
            self._seen.add(self.seen, len(every))
        return summed(logits, {"soft_ce": soft_cross_entropy(logits, target).mean()})

    def written_rows(self, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> dict[str, Tensor]:
        """Of the large buffers, by name, the rows that a step on these images writes; see ``Snapshot``."""
        return {} if index is None else {"past": all_gather(class_numbers(index).to(self.past.device))}
