"""MixSKD, simplified: what the net says of a mixed image and of its two parts agrees (Yang et al., ECCV 2022).

x~ = lam x_a + (1 - lam) x_b mixes image a with its neighbour b, lam ~ Beta(0.4, 0.4).  At each stage i, the deployed
net's logits included, u_i = lam z_i(x_a) + (1 - lam) z_i(x_b) interpolates logits, and U_i maps:

    L = sum_i [CE(z_i(x), y) + CE(z_i(x~), two-hot y~)]
      + sum_i T^2 [KL(softmax(u_i / T) || softmax(z_i(x~) / T)) + KL(softmax(z_i(x~) / T) || softmax(u_i / T))]
      + sum_i mean (F_i(x~) - U_i)^2,    T = 3, all weights 1

The first argument of each KL is detached, and so is U_i.  Left out of the paper: the discriminator and adapters of
maps, and the second net that fuses all stages as a teacher.

A batch of n images costs 2 n forwards, and 2 n images of a budget: ``corsd train`` reads batch_size / 2 images a step.
The net sees plain and mixed images in one pass, so its batch statistics are those of both.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.autocast import without_autocast
from shared_core.ops.divergence import kl_divergence
from shared_core.ops.inputs import check_tensor
from shared_core.ops.outputs import Which
from torch import Tensor, nn

from corsd.distiller import Output, check_labels, summed
from corsd.exits import Exits
from corsd.frame import HostCount, maps_of, own_type, tapped, widened
from corsd.mixing import mix, mixing_draws, partners, two_hot_cross_entropy
from corsd.relation import Norm


def interpolated(x: Float[Tensor, "batch ..."], lam: Float[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
    """Return lam_a x_a + (1 - lam_a) x_b, b the neighbour of a (:func:`corsd.mixing.partners`)."""
    check_tensor("x", x, "batch ...")
    check_tensor("lam", lam, "batch", "one share per image", batch=len(x))
    x = widened(x)
    share = lam.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    return share * x + (1 - share) * x[partners(len(x), x.device)]


def mixed_logit_consistency(
    mixed: Float[Tensor, "batch classes"],
    plain: Float[Tensor, "batch classes"],
    lam: Float[Tensor, " batch"],
    temperature: float = 3.0,
) -> Float[Tensor, ""]:
    """Return T^2 mean [KL(u || mixed) + KL(mixed || u)] at T, u the interpolated plain logits; targets are detached."""
    check_tensor("mixed", mixed, "batch classes")
    check_tensor("plain", plain, "batch classes", batch=len(mixed), classes=mixed.shape[1])
    mixed, between = widened(mixed), interpolated(plain, lam)
    taught = kl_divergence(mixed, between.detach(), temperature)
    teaching = kl_divergence(between, mixed.detach(), temperature)
    return temperature**2 * (taught + teaching).sum() / max(len(mixed), 1)


def mixed_map_consistency(
    mixed: Float[Tensor, "batch ..."], plain: Float[Tensor, "batch ..."], lam: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of the mixed images' maps from the interpolated plain ones, detached."""
    check_tensor("mixed", mixed, "batch ...")
    if plain.shape != mixed.shape:
        raise ValueError(
            f"plain has shape {tuple(plain.shape)}; it must be that of mixed, {tuple(mixed.shape)}"
        )
    with without_autocast(mixed):
        difference = widened(mixed) - interpolated(plain.detach(), lam)
        return difference.square().sum() / max(difference.numel(), 1)


class MixSKD(nn.Module):
    """Consistency of mixed and plain images at all stages of a net, with an exit per shallow stage.

    Nothing is mixed in evaluation mode.  What is drawn is a pure function of (seed, number of steps done).
    ``stages`` and ``example`` are those of :func:`corsd.stages.find_stages`, ``norm`` is of the exits.
    """

    steps: Int[Tensor, ""]

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        stages: Sequence[str] | Literal["auto"] = "auto",
        example: Float[Tensor, "batch ..."] | None = None,
        alpha: float = 0.4,
        temperature: float = 3.0,
        logit_weight: float = 1.0,
        map_weight: float = 1.0,
        norm: Norm = "batch",
        seed: int = 0,
        output: Which = None,
    ):
        super().__init__()
        mixing_draws(seed, 0, 0, alpha)
        self.net, self.num_classes, self.output = net, num_classes, output
        self.alpha, self.temperature, self.seed = alpha, temperature, seed
        self.logit_weight, self.map_weight = logit_weight, map_weight
        self.stages, self.capture = tapped(net, "MixSKD", num_classes, stages, example, output)
        channels = [stage.channels for stage in self.stages]
        self.exits = Exits(channels[:-1], channels[-1], num_classes, norm).to(**own_type(net))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=own_type(net)["device"]))
        self._done = HostCount()
        # Every process counts alike.
        self._ddp_params_and_buffers_to_ignore = ["steps"]

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        """Logits of the net for the images as they are, and the losses of a batch; ``index`` is ignored."""
        count, kind = len(images), "mixup" if self.training else "off"
        mixed, two_hot = mix(images, labels, kind, self.alpha, self.seed, self._done.value(self.steps))
        both, maps = maps_of(
            self.net, torch.cat([images, mixed]), self.output, self.stages, self.capture, self.exits
        )
        logits, lam = both[:count], two_hot.lam
        check_labels(labels, logits, self.num_classes)
        of_stages = [*self.exits(maps[:-1]), both]
        ce = [
            F.cross_entropy(widened(z[:count]), two_hot.first) + two_hot_cross_entropy(z[count:], two_hot)
            for z in of_stages
        ]
        agree = [mixed_logit_consistency(z[count:], z[:count], lam, self.temperature) for z in of_stages]
        alike = [mixed_map_consistency(m[count:], m[:count], lam) for m in maps]
        parts = {
            "ce": ce[-1],
            "exit_ce": sum(ce[:-1], torch.zeros_like(ce[-1])),
            "mixed_kl": self.logit_weight * torch.stack(agree).sum(),
            "mixed_maps": self.map_weight * torch.stack(alike).sum(),
        }
        if self.training:
            self._done.add(self.steps, 1)
        return summed(logits, parts)
