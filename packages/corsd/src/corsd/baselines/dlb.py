"""DLB: an image learns from the last step's prediction for it (Shen et al., CVPR 2022)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.divergence import kl_divergence
from shared_core.ops.gather import all_gather, rank, world_size
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.frame import labels_for, run_net, widened


class DLB(nn.Module):
    """DLB (CVPR 2022): CE on new and repeated images + T^2 KL(last step's logits || now) on the repeated, T = 3.

    Batches come from :func:`corsd.pairs.last_batch_plan`: new image, image of the last step, repeated.
    ``fresh`` counts the new images of a step over all processes; each keeps the last step of all of them, so
    that buffers which DistributedDataParallel sends from the first process say the same everywhere.
    """

    last: Float[Tensor, "fresh classes"]
    last_index: Int[Tensor, " fresh"]

    def __init__(
        self, net: nn.Module, num_classes: int, fresh: int, weight: float = 1.0, output: Which = None
    ):
        super().__init__()
        self.net, self.num_classes, self.weight, self.output = net, num_classes, weight, output
        self.register_buffer("last", torch.zeros(fresh, num_classes))
        self.register_buffer("last_index", torch.full((fresh,), -1))

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        labels = class_numbers(labels, len(images))
        if index is None or len(labels) * world_size() != 2 * len(self.last):
            raise ValueError(
                "DLB needs index and batches made by corsd.pairs.last_batch_plan, of twice the fresh="
                f"{len(self.last)} images over all processes; got {len(labels)} on each of {world_size()}"
            )
        logits = run_net(self.net, images, self.output)
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        index = class_numbers(index, len(images), "index").to(self.last.device)
        new, again = index[0::2], index[1::2]
        parts = {"ce": F.cross_entropy(widened(logits), labels)}
        mine = slice(rank() * len(new), (rank() + 1) * len(new))
        # The first batch of an epoch repeats images that the last step did not see.
        known = (again == self.last_index[mine]).to(widened(logits).dtype)
        kl = kl_divergence(logits[1::2], self.last[mine].to(logits.dtype), 3.0)
        parts["last_batch"] = self.weight * 9.0 * (kl * known).mean()
        if self.training:
            self.last.copy_(all_gather(logits[0::2].detach().contiguous()))
            self.last_index.copy_(all_gather(new.contiguous()))
        return summed(logits, parts)
