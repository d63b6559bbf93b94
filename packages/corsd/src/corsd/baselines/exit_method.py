"""Controls that hang exits on the shallow stages: deep supervision, BYOT, and handcrafted relations."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.autocast import without_autocast
from shared_core.ops.divergence import kl_divergence, soft_cross_entropy
from shared_core.ops.gather import all_gather, world_size
from shared_core.ops.outputs import Which
from torch import Tensor, nn

from corsd.baselines.handcrafted import probabilistic_transfer, rkd, similarity_preserving
from corsd.distiller import Output, check_labels, summed
from corsd.exits import Exits
from corsd.frame import labels_for, maps_of, own_type, tapped, widened
from corsd.relation import Norm


class ExitMethod(nn.Module):
    """Methods that hang exits on the shallow stages.

    - "deep_supervision": every exit learns the labels (Lee et al. 2015).
    - "byot": Be Your Own Teacher in the form of ICCV 2019; per shallow exit
      (1 - 0.1) CE + 0.1 T^2 KL(z_S || z_i) + 1e-6 |f_i - f_S|^2, T = 3.
    - "byot_tpami": the TPAMI 2022 form; 0.7 CE + 0.3 SCE_T(z_i, z_S) + 0.03 |A_i f_i - f_S|, T = 3, with the
      norm not squared and taken over the whole batch.
    - "rkd" (Park et al. 2019), "sp" (Tung and Mori 2019), "pkt" (Passalis and Tefas 2018): the exits learn
      the labels and the handcrafted relations of the deepest features.  ``relation_weight`` scales the
      relation; the weights published for two models harm a net that teaches itself.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        method: Literal["deep_supervision", "byot", "byot_tpami", "rkd", "sp", "pkt"],
        stages: Sequence[str] | Literal["auto"] = "auto",
        example: Float[Tensor, "batch ..."] | None = None,
        relation_weight: float = 1.0,
        norm: Norm = "batch",
        output: Which = None,
    ):
        super().__init__()
        if method not in EXIT_LOSSES:
            raise ValueError(f"method={method!r}; choose one of {', '.join(EXIT_LOSSES)}")
        self.net, self.num_classes, self.method, self.output = net, num_classes, method, output
        self.relation_weight = relation_weight
        self.stages, self.capture = tapped(net, "ExitMethod", num_classes, stages, example, output)
        channels = [stage.channels for stage in self.stages]
        self.exits = Exits(channels[:-1], channels[-1], num_classes, norm)
        adapters = channels[:-1] if method == "byot_tpami" else []
        self.adapters = nn.ModuleList(nn.Linear(channels[-1], channels[-1]) for _ in adapters)
        # Only what is ours: the net keeps its types.
        self.exits.to(**own_type(net))
        self.adapters.to(**own_type(net))

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        logits, maps = maps_of(self.net, images, self.output, self.stages, self.capture, self.exits)
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        features = self.exits.features(maps[:-1])
        exit_logits = [head(f) for head, f in zip(self.exits.classifiers, features, strict=True)]
        parts = {"ce": F.cross_entropy(widened(logits), labels)}
        deepest = maps[-1].mean((2, 3)).detach()
        logits_of_exits = [widened(z) for z in exit_logits]
        parts |= EXIT_LOSSES[self.method](
            self, features, deepest, logits_of_exits, widened(logits.detach()), labels
        )
        return summed(logits, parts)


def _exit_ce(exit_logits: list[Tensor], labels: Tensor, weight: float = 1.0) -> Tensor:
    return sum(weight * F.cross_entropy(z, labels) for z in exit_logits)


def _deep_supervision(method, features, deepest, exit_logits, logits, labels) -> dict[str, Tensor]:
    return {"exit_ce": _exit_ce(exit_logits, labels)}


def _byot(method, features, deepest, exit_logits, logits, labels) -> dict[str, Tensor]:
    t, alpha, beta = 3.0, 0.1, 1e-6
    return {
        "exit_ce": _exit_ce(exit_logits, labels, 1 - alpha),
        "exit_kl": sum(alpha * t * t * kl_divergence(z, logits, t).mean() for z in exit_logits),
        # A sum over the batch is one over the batches of all processes.
        "hint": sum(beta * (f - deepest).square().sum() * world_size() for f in features),
    }


def _byot_tpami(method, features, deepest, exit_logits, logits, labels) -> dict[str, Tensor]:
    target = (logits / 3.0).softmax(1)
    adapted = [adapter(f) for adapter, f in zip(method.adapters, features, strict=True)]
    return {
        "exit_ce": _exit_ce(exit_logits, labels, 0.7),
        "exit_kl": sum(0.3 * soft_cross_entropy(z / 3.0, target).mean() for z in exit_logits),
        "hint": sum(0.03 * torch.linalg.vector_norm(all_gather(f - deepest)) for f in adapted),
    }


def _handcrafted(relation):
    def losses(method, features, deepest, exit_logits, logits, labels) -> dict[str, Tensor]:
        # Relations range over the images of all processes, like over those of one larger batch.
        teacher = widened(all_gather(deepest))
        with without_autocast(deepest):
            total = sum(relation(widened(all_gather(f)), teacher) for f in features)
        return {"exit_ce": _exit_ce(exit_logits, labels), "relation": method.relation_weight * total}

    return losses


EXIT_LOSSES = {
    "deep_supervision": _deep_supervision,
    "byot": _byot,
    "byot_tpami": _byot_tpami,
    "rkd": _handcrafted(rkd),
    "sp": _handcrafted(similarity_preserving),
    "pkt": _handcrafted(probabilistic_transfer),
}
