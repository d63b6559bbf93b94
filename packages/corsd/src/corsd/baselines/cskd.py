"""CS-KD: an image learns from another image of its class (Yun et al., CVPR 2020)."""

import torch
import torch.nn.functional as F
from jaxtyping import Int
from shared_core.ops.divergence import kl_divergence
from shared_core.ops.host import read_back
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.frame import labels_for, run_net, widened


class CSKD(nn.Module):
    """CS-KD (CVPR 2020): CE(x) + weight T^2 KL(z(x') || z(x)), x' another image of the class, T = 4.

    Batches come from :func:`corsd.pairs.class_pair_plan`: image, partner, image, partner, ...
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        weight: float = 1.0,
        temperature: float = 4.0,
        output: Which = None,
    ):
        super().__init__()
        self.net, self.num_classes, self.weight, self.temperature = net, num_classes, weight, temperature
        self.output = output

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        labels = class_numbers(labels, len(images))
        known = read_back(labels, "which classes does the batch hold?")
        if len(labels) % 2 or bool((known[0::2] != known[1::2]).any()):
            raise ValueError(
                "CS-KD needs batches of (image, image of the same class), repeated; see class_pair_plan"
            )
        logits = run_net(self.net, images[0::2], self.output)
        with torch.no_grad():
            partner = run_net(self.net, images[1::2], self.output)
        check_labels(known[0::2], logits, self.num_classes)
        labels = labels_for(labels[0::2], logits)
        kl = kl_divergence(logits, partner, self.temperature).mean()
        ce = F.cross_entropy(widened(logits), labels)
        # The partners' logits complete the batch for the accuracy that the loop counts.
        both = torch.stack([logits, partner], 1).flatten(0, 1)
        return summed(both, {"ce": ce, "class_wise": self.weight * self.temperature**2 * kl})
