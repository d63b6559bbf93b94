"""ONE-like: a gated ensemble of the stages teaches each of them (Lan et al., NeurIPS 2018).

    z_e = sum_i gate_i z_i,    gate = softmax(W GAP(F_1))
    L = sum_i CE(z_i, y) + CE(z_e, y) + w(t) sum_i T^2 KL(softmax(z_e / T) || softmax(z_i / T))

The paper's branches are copies of the net's last block; here they are the stages, z_S the deployed net's logits, so
nothing is left in it.  The gate reads the shallowest stage.  z_e is detached where it teaches; T = 3, and w rises
linearly to 1 over ``warmup_steps``.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.autocast import without_autocast
from shared_core.ops.inputs import check_tensor
from shared_core.ops.outputs import Which
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.ensemble import check_stages, ensemble_distillation, ramp
from corsd.exits import Exits
from corsd.frame import HostCount, labels_for, maps_of, own_type, tapped, widened
from corsd.relation import Norm


def gated_ensemble(
    logits: Sequence[Float[Tensor, "batch classes"]], gate_logits: Float[Tensor, "batch stages"]
) -> Float[Tensor, "batch classes"]:
    """Return z_e = sum_i softmax(gate_logits)_i z_i of each image.

    Raises:
        TypeError, ValueError: other shapes, or another number of stages than of gates.
    """
    check_stages(logits)
    batch, stages = len(logits[0]), len(logits)
    hint = "one gate per image and stage"
    check_tensor("gate_logits", gate_logits, "batch stages", hint, batch=batch, stages=stages)
    with without_autocast(gate_logits):
        gates = widened(gate_logits).softmax(1)
        return torch.stack([gates[:, i, None] * widened(z) for i, z in enumerate(logits)]).sum(0)


class ONE(nn.Module):
    """A gated ensemble of stages as teacher, around a net, with an exit per shallow stage.

    ``stages`` and ``example`` are those of :func:`corsd.stages.find_stages`, ``norm`` is of the exits.
    """

    steps: Int[Tensor, ""]

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        stages: Sequence[str] | Literal["auto"] = "auto",
        example: Float[Tensor, "batch ..."] | None = None,
        weight: float = 1.0,
        temperature: float = 3.0,
        warmup_steps: int = 0,
        norm: Norm = "batch",
        output: Which = None,
    ):
        super().__init__()
        self.net, self.num_classes, self.output = net, num_classes, output
        self.weight, self.temperature, self.warmup_steps = weight, temperature, warmup_steps
        self.stages, self.capture = tapped(net, "ONE", num_classes, stages, example, output)
        channels = [stage.channels for stage in self.stages]
        self.exits = Exits(channels[:-1], channels[-1], num_classes, norm).to(**own_type(net))
        self.gate = nn.Linear(channels[0], len(channels)).to(**own_type(net))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=own_type(net)["device"]))
        self._done = HostCount()
        # Every process counts alike.
        self._ddp_params_and_buffers_to_ignore = ["steps"]

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        """Logits of the net, and the losses of a batch; ``index`` is ignored."""
        logits, maps = maps_of(self.net, images, self.output, self.stages, self.capture, self.gate)
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        of_stages = [*self.exits(maps[:-1]), logits]
        teacher = gated_ensemble(of_stages, self.gate(maps[0].mean((2, 3))))
        ce = [F.cross_entropy(widened(z), labels) for z in of_stages]
        rising = ramp(self._done.value(self.steps), self.warmup_steps)
        taught = ensemble_distillation(of_stages, teacher, self.temperature)
        parts = {
            "ce": ce[-1],
            "exit_ce": sum(ce[:-1], torch.zeros_like(ce[-1])),
            "ensemble_ce": F.cross_entropy(teacher, labels),
            "ensemble": rising * self.weight * taught,
        }
        if self.training:
            self._done.add(self.steps, 1)
        return summed(logits, parts)
