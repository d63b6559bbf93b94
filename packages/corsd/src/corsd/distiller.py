"""The distiller: trains a classifier of yours in place and leaves nothing in it (arXiv 2305.00918).

distiller = Distiller(net, stages="auto", num_classes=100)
optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
for images, labels in loader:
    out = distiller(images, labels)
    out.loss.backward(); optimizer.step(); optimizer.zero_grad()
net(images)                                     # the same net, only better
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.features import FeatureCapture
from shared_core.ops.gather import all_gather, rank, world_size
from shared_core.ops.host import read_back
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd import losses
from corsd.exits import Exits, exit_losses
from corsd.frame import (
    HostCount,
    check_first_step,
    check_logits,
    check_wrappers,
    example_for,
    for_module,
    labels_for,
    own_type,
    run_net,
    widened,
)
from corsd.losses import Variant, Weights
from corsd.maps import Layout
from corsd.pairs import in_batch_triplets, other_classes, triplet_rows
from corsd.relation import LogitRelation, Norm, Relation, Triplets, relation_networks
from corsd.stages import find_stages


class Output(NamedTuple):
    """``loss`` is the sum of ``parts``, each already weighted; ``relations`` is shallow to deep, detached."""

    logits: Float[Tensor, "batch classes"]
    loss: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    relations: list[Relation]


def summed(logits: Tensor, parts: dict[str, Tensor]) -> Output:
    """The output of a method without relations: its loss is the sum of the parts, which are weighted already."""
    return Output(logits, torch.stack([widened(part) for part in parts.values()]).sum(), parts, [])


class Distiller(nn.Module):
    """Class-oriented relational self-distillation around any classifier.

    Args:
        net: maps images to logits (batch, num_classes); trained in place.  Use it alone afterwards.
        stages: names of submodules, shallow to deep, or "auto"; see :func:`corsd.stages.find_stages`.
        num_classes: K, at least 2.
        example: images for the dry run that reads the shapes; default two of 3 x 64 x 64.
        pairs: "in_batch" finds pairs among the images of any labelled batch, "triplets" expects batches in
            the order anchor, positive, negative (see :mod:`corsd.pairs`).
        triplets_per_image: in-batch triplets as a share of the batch size.
        gather: let in-batch pairs range over the batches of all processes (differentiable all-gather).
        norm: normalisation of the relation networks; "group" makes them independent of the batch.
        exits: "off", or shallow classifiers for early exit: "detached" (they leave the net's training alone)
            or "joint" (their losses reach the net).
        weights, variant: see :class:`Weights` and :class:`Variant`.
        seed: of the random choice of pairs, which is a pure function of (seed, number of steps done).
        output: where the net returns more than logits: the name, place or function that picks them, see
            :func:`shared_core.ops.outputs.pick_logits`; parts called "logits" are found.
        layout, prefix_tokens: what the dry run cannot tell of stages, see :func:`corsd.stages.find_stages`.

    Nothing of the net changes by wrapping: not its types, modes, buffers, or the images that it is given.

    Raises:
        ValueError: a setting or stage that is not there, or (from a dry run) logits of another width.
        TypeError: the net is TorchScript, or inside of DistributedDataParallel already.
    """

    steps: Int[Tensor, ""]

    def __init__(
        self,
        net: nn.Module,
        stages: Sequence[str] | Literal["auto"] = "auto",
        num_classes: int = 1000,
        example: Float[Tensor, "batch ..."] | None = None,
        pairs: Literal["in_batch", "triplets"] = "in_batch",
        triplets_per_image: float = 1 / 3,
        gather: bool = False,
        norm: Norm = "batch",
        exits: Literal["off", "detached", "joint"] = "off",
        weights: Weights | None = None,
        variant: Variant | None = None,
        seed: int = 0,
        output: Which = None,
        layout: Layout | Mapping[str, Layout] | None = None,
        prefix_tokens: int | None = None,
    ):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: relations between classes need at least 2")
        if pairs not in ("in_batch", "triplets"):
            raise ValueError(f"pairs={pairs!r}; choose 'in_batch' or 'triplets'")
        if exits not in ("off", "detached", "joint"):
            raise ValueError(f"exits={exits!r}; choose 'off', 'detached' or 'joint'")
        check_wrappers(net, "Distiller")
        example = example_for(net, example)
        self.net, self.output = net, output
        self.weights, self.variant = weights or Weights(), variant or Variant()
        self.num_classes, self.pairs, self.gather, self.seed = num_classes, pairs, gather, seed
        self.triplets_per_image, self.exits_mode = triplets_per_image, exits
        self.stages = find_stages(net, example, stages, layout, prefix_tokens)
        check_first_step(net, example, output, num_classes)
        channels = [stage.channels for stage in self.stages]
        self.relations = relation_networks(channels, num_classes, norm, self.variant.attention)
        self.logit_relation = (
            LogitRelation(num_classes, self.variant.prototype, norm)
            if self.variant.logit_relation != "off"
            else None
        )
        self.exits = Exits(channels[:-1], channels[-1], num_classes, norm) if exits != "off" else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.capture = FeatureCapture(net, [stage.name for stage in self.stages])
        # Only what is ours: the net keeps its types, of which it may have several.
        for module in (self.relations, self.logit_relation, self.exits):
            if module is not None:
                module.to(**own_type(net))
        self.steps = self.steps.to(own_type(net)["device"])
        self._done = HostCount()
        # Every process computes the same prototypes and counts alike: DistributedDataParallel need not send them.
        self._ddp_params_and_buffers_to_ignore = ["logit_relation.prototypes", "steps"]

    def forward(self, images: Tensor, labels: Tensor | Sequence[int], index: Tensor | None = None) -> Output:
        """Logits of the net and all losses of one batch; ``index`` is ignored (some baselines need it).

        A batch in which no triplet can be found (no same-class pair, or one class only) gives relational
        parts of 0.  In training mode the prototypes and the step count move on.

        Raises:
            TypeError: labels are not integers.
            ValueError: labels out of range, logits of another width, or no triplets where they are expected.
        """
        with self.capture:
            logits = run_net(self.net, images, self.output)
        features = self.capture.pop()
        maps = [
            for_module(stage.map(features[stage.name]), relation)
            for stage, relation in zip(self.stages, self.relations, strict=True)
        ]
        # Labels that come on the CPU are known there without a wait for the device.
        known = check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        done = self._done.value(self.steps)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + done) % 2**63)
        ramp = min(1.0, (done + 1) / max(self.weights.warmup_steps, 1))

        # torch's norms and poolings keep autocast's dtype; the losses themselves go to float32.
        parts = {"ce": F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, labels)}
        if self.gather and self.pairs == "in_batch":
            maps_to_pair = [all_gather(m) for m in maps]
            known_to_pair = read_back(all_gather(labels), "which classes does the batch hold?")
        else:
            maps_to_pair, known_to_pair = maps, known
        triplets, share = self._triplets(known_to_pair, generator)
        relations = []
        if len(triplets.anchor):
            triplets = Triplets(*(rows.to(labels.device) for rows in triplets))
            relations = [net(m, triplets) for net, m in zip(self.relations, maps_to_pair, strict=True)]
            labels_to_pair = known_to_pair.to(labels.device, non_blocking=True)
            parts |= self._relational_parts(relations, triplets, labels_to_pair, share * ramp)
        else:
            parts |= _idle(self.relations, maps_to_pair)
        if self.logit_relation is not None:
            parts["logit_relation"] = ramp * self._logit_relation(logits, labels, generator)
        if self.exits is not None:
            heard = maps[:-1] if self.exits_mode == "joint" else [m.detach() for m in maps[:-1]]
            parts |= exit_losses(self.exits(heard), labels, logits.detach())
        if self.training:
            self._done.add(self.steps, 1)
        loss = torch.stack(list(parts.values())).sum()
        return Output(logits, loss, parts, [Relation(*(v.detach() for v in r)) for r in relations])

    def written_rows(self, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> dict[str, Tensor]:
        """Of the large buffers, by name, the rows that a step on these labels writes; see ``Snapshot``."""
        if self.logit_relation is None:
            return {}
        return {"logit_relation.prototypes": all_gather(class_numbers(labels).to(self.steps.device))}

    def _triplets(self, known: Int[Tensor, " batch"], generator: torch.Generator) -> tuple[Triplets, float]:
        """The triplets of this process, and the factor that makes its mean a part of the mean over all."""
        if self.pairs == "triplets":
            return triplet_rows(known), 1.0
        count = max(1, round(len(known) * self.triplets_per_image))
        found = in_batch_triplets(known, count, generator)
        if not self.gather:
            return found, 1.0
        mine = Triplets(*(rows[rank() :: world_size()] for rows in found))
        return mine, len(mine.anchor) * world_size() / max(len(found.anchor), 1)

    def _relational_parts(
        self, relations: list[Relation], triplets: Triplets, labels: Int[Tensor, " batch"], scale: float
    ) -> dict[str, Tensor]:
        w, v = self.weights, self.variant
        own, foreign = labels[triplets.anchor], labels[triplets.negative]
        deep = relations[-1]
        if v.detach_teacher:
            deep = Relation(*(value.detach() for value in deep))
        triplet = sum(losses.triplet_hinge(r.same, r.other, v.margin) for r in relations)
        relation = sum(
            losses.relation_distillation(r.same, deep.same)
            + losses.relation_distillation(r.other, deep.other)
            for r in relations[:-1]
        )
        aux_ce = aux_kl = 0.0
        for r in relations:
            whole = r is relations[-1] and v.deepest_ce == "full"
            aux_ce += (w.same_ce + w.same_kl * whole) * losses.pair_cross_entropy(r.same_logits, own, own)
            aux_ce += (w.other_ce + w.other_kl * whole) * self._other_ce(r.other_logits, own, foreign)
            if r is not relations[-1] or v.aux_kl == "raw_logits":
                aux_kl += w.same_kl * self._aux_kl(r.same_logits, deep.same_logits)
                aux_kl += w.other_kl * self._aux_kl(r.other_logits, deep.other_logits)
        weighted = {
            "triplet": w.triplet * triplet,
            "aux_ce": aux_ce,
            "aux_kl": aux_kl,
            "relation": w.relation * relation,
        }
        return {name: scale * torch.as_tensor(part, device=labels.device) for name, part in weighted.items()}

    def _aux_kl(self, shallow: Tensor, deep: Tensor) -> Tensor:
        if self.variant.aux_kl == "raw_logits":
            return losses.raw_logit_divergence(shallow, deep)
        return losses.auxiliary_distillation(shallow, deep, self.variant.temperature)

    def _other_ce(self, logits: Tensor, own: Tensor, foreign: Tensor) -> Tensor:
        if self.variant.soft_label == "softmaxed":
            return losses.softmaxed_pair_cross_entropy(logits, own, foreign, self.variant.temperature)
        return losses.pair_cross_entropy(logits, own, foreign)

    def _logit_relation(self, logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        # Classes and prototypes are those of the global batch, so the result is the same on any number of
        # processes.
        all_labels = all_gather(labels)
        others = other_classes(all_labels, self.num_classes, generator)
        mine = slice(rank() * len(labels), (rank() + 1) * len(labels))
        if self.training:
            self.logit_relation.update(all_gather(logits.detach()), all_labels)
        values = self.logit_relation(logits, labels, others[mine])
        # The mean over processes that gradients get would divide a sum.
        total = values.sum() * world_size() if self.variant.logit_relation == "sum" else values.mean()
        return self.weights.logit_relation * total


def check_labels(labels: Int[Tensor, " batch"], logits: Tensor, num_classes: int) -> Int[Tensor, " batch"]:
    """The labels on the CPU, once they are known to fit the logits; else what is wrong with them."""
    labels = class_numbers(labels)
    check_logits(logits, len(labels), num_classes)
    known = read_back(labels, "which classes does the batch hold?")
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < num_classes:
        raise ValueError(
            f"labels range from {int(known.min())} to {int(known.max())}; num_classes={num_classes} allows "
            f"0 to {num_classes - 1}"
        )
    return known


def _idle(networks: nn.ModuleList, maps: list[Tensor]) -> dict[str, Tensor]:
    """Relational parts of 0 that still reach every parameter and map: processes wait for each other's."""
    touched = sum(p.sum() for p in networks.parameters()) + sum(m.sum() for m in maps)
    return dict.fromkeys(("triplet", "aux_ce", "aux_kl", "relation"), 0.0 * touched)
