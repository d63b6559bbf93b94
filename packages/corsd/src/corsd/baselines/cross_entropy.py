"""Cross-entropy on the plain net, with or without label smoothing (Szegedy et al., CVPR 2016)."""

import torch.nn.functional as F
from jaxtyping import Int
from shared_core.ops.outputs import Which
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.frame import labels_for, run_net, widened


class CrossEntropy(nn.Module):
    """The plain net; ``smoothing`` is label smoothing's epsilon (Szegedy et al. 2016)."""

    def __init__(self, net: nn.Module, num_classes: int, smoothing: float = 0.0, output: Which = None):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing}; it must be from 0 up to, not including, 1")
        self.net, self.num_classes, self.smoothing, self.output = net, num_classes, smoothing, output

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        logits = run_net(self.net, images, self.output)
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        ce = F.cross_entropy(widened(logits), labels, label_smoothing=self.smoothing)
        return summed(logits, {"ce": ce})
