"""CORSD, second version: relations are learned as rows over the batch (recipes 1, 2 and 5 of the notes on the method).

Version 1, :class:`corsd.Distiller`, stays the faithful reading of the released code.  Here every shallow stage has a
trunk with a class head, every stage an embedding, and images may be mixed:

    L = CE(z, y) + w_ds sum_i CE(z_i, y) + w_rows sum_i rows(r_i) + w_rd sum_{i<S} KL(r_S || r_i) + w_e ensemble

distiller = corsd.RelationalDistiller(net, num_classes=100)
for images, labels in loader:                   # any labelled batch
    out = distiller(images, labels)
    out.loss.backward(); optimizer.step(); optimizer.zero_grad()
net(images)                                     # nothing of ours is left in it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from shared_core.ops.features import FeatureCapture
from shared_core.ops.gather import all_gather
from shared_core.ops.outputs import Which
from torch import Tensor, nn

from corsd.distiller import Output, check_labels
from corsd.ensemble import ensemble_distillation, ramp, stage_ensemble
from corsd.exits import Exits
from corsd.frame import (
    HostCount,
    check_first_step,
    check_wrappers,
    example_for,
    for_module,
    own_type,
    run_net,
)
from corsd.maps import Layout
from corsd.mixing import Mixing, TwoHot, check_mixing, mix, mixing_draws, two_hot_cross_entropy
from corsd.relation import Norm
from corsd.rows import cosine_relations, relation_rows, row_distillation, row_targets
from corsd.stages import find_stages


@dataclass(frozen=True)
class RelationalWeights:
    """What each term counts beside the deployed net's cross-entropy of weight 1.

    ``tau`` is the temperature of rows, ``temperature`` and ``beta`` are those of the ensemble; ``warmup_steps`` raises
    both distillations linearly from 0.  Which values gain most has not been measured yet.
    """

    deep_supervision: float = 1.0
    rows: float = 0.1
    row_distillation: float = 0.0
    ensemble: float = 0.0
    tau: float = 0.1
    temperature: float = 3.0
    beta: float = 1.6
    warmup_steps: int = 0

    def __post_init__(self):
        for name, value in vars(self).items():
            above = name in ("tau", "temperature", "beta")
            if not 0 <= value < float("inf") or (above and value == 0):
                allowed = "above 0" if above else "from 0 up"
                raise ValueError(f"weights.{name} is {value}; it must be a finite number {allowed}")
        if self.row_distillation and not self.rows:
            raise ValueError(
                f"weights.row_distillation is {self.row_distillation} and weights.rows 0: the deepest relations would "
                "teach without being learned; give rows above 0"
            )


class RelationalDistiller(nn.Module):
    """Deep supervision, learned relation rows and mixed images around any classifier.

    Args:
        net, stages, num_classes, example, norm, output, layout, prefix_tokens: as for :class:`corsd.Distiller`.
        weights: see :class:`RelationalWeights`.
        mixing: "mixup", "cutmix" or "off"; only in training mode, see :mod:`corsd.mixing`.
        alpha: of the Beta(alpha, alpha) that mixing draws from.
        embedding: width of the embeddings that relations compare.
        seed: of mixing, which is a pure function of (seed, number of steps done).

    Relations range over the images of all processes.

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
        norm: Norm = "batch",
        weights: RelationalWeights | None = None,
        mixing: Mixing = "mixup",
        alpha: float = 1.0,
        embedding: int = 128,
        seed: int = 0,
        output: Which = None,
        layout: Layout | Mapping[str, Layout] | None = None,
        prefix_tokens: int | None = None,
    ):
        super().__init__()
        if embedding < 1:
            raise ValueError(f"embedding={embedding}; give the width of the embeddings, at least 1")
        check_wrappers(net, "RelationalDistiller")
        example = example_for(net, example)
        check_mixing(mixing, example.dim())
        mixing_draws(seed, 0, 0, alpha)
        self.net, self.output, self.num_classes = net, output, num_classes
        self.weights = weights or RelationalWeights()
        self.mixing, self.alpha, self.seed = mixing, alpha, seed
        self.stages = find_stages(net, example, stages, layout, prefix_tokens)
        check_first_step(net, example, output, num_classes)
        channels = [stage.channels for stage in self.stages]
        self.exits = Exits(channels[:-1], channels[-1], num_classes, norm)
        learned = channels if self.weights.rows else []
        self.projections = nn.ModuleList(nn.Linear(channels[-1], embedding) for _ in learned)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=own_type(net)["device"]))
        self.capture = FeatureCapture(net, [stage.name for stage in self.stages])
        # Only what is ours: the net keeps its types.
        self.exits.to(**own_type(net))
        self.projections.to(**own_type(net))
        self._done = HostCount()
        # Every process counts alike.
        self._ddp_params_and_buffers_to_ignore = ["steps"]

    def forward(self, images: Tensor, labels: Tensor | Sequence[int], index: Tensor | None = None) -> Output:
        """Logits of the net for the images as mixed, and all losses of one batch; ``index`` is ignored.

        Raises:
            TypeError: labels are not integers.
            ValueError: labels out of range, or logits of another width.
        """
        w, done = self.weights, self._done.value(self.steps)
        mixed, two_hot = mix(
            images, labels, self.mixing if self.training else "off", self.alpha, self.seed, done
        )
        logits, features = self._features(mixed)
        check_labels(labels, logits, self.num_classes)
        heads = zip(self.exits.classifiers, features[:-1], strict=True)
        stage_logits = [*(head(f) for head, f in heads), logits]
        ce = two_hot_cross_entropy(logits, two_hot)
        zero = ce.new_zeros(())
        exit_ce = sum((two_hot_cross_entropy(z, two_hot) for z in stage_logits[:-1]), zero)
        parts = {"ce": ce, "exit_ce": w.deep_supervision * exit_ce}
        rising = ramp(done, w.warmup_steps)
        if w.ensemble:
            teacher = stage_ensemble(stage_logits, w.beta)
            distilled = ensemble_distillation(stage_logits, teacher, w.temperature)
            parts["ensemble"] = rising * w.ensemble * distilled
        if w.rows:
            parts |= self._relation_parts(features, two_hot, rising)
        if self.training:
            self._done.add(self.steps, 1)
        return Output(logits, torch.stack(list(parts.values())).sum(), parts, [])

    @torch.no_grad()
    def embeddings(self, images: Tensor) -> list[Float[Tensor, "batch width"]]:
        """The embeddings of unmixed images, shallow to deep, for :func:`corsd.rows.relation_auc`.

        Raises:
            ValueError: no relations are learned, because weights.rows is 0.
        """
        if not self.weights.rows:
            raise ValueError("weights.rows is 0: no relations are learned; give rows above 0")
        return self._embed(self._features(images)[1])

    def _features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and one pooled vector per stage, all as wide as the deepest."""
        with self.capture:
            logits = run_net(self.net, images, self.output)
        captured = self.capture.pop()
        maps = [for_module(stage.map(captured[stage.name]), self.exits) for stage in self.stages]
        return logits, [*self.exits.features(maps[:-1]), maps[-1].mean((2, 3))]

    def _embed(self, features: list[Tensor]) -> list[Tensor]:
        return [project(f) for project, f in zip(self.projections, features, strict=True)]

    def _relation_parts(self, features: list[Tensor], labels: TwoHot, rising: float) -> dict[str, Tensor]:
        w = self.weights
        # Rows range over the images of all processes, like over those of one larger batch.
        relations = [cosine_relations(all_gather(g)) for g in self._embed(features)]
        targets = row_targets(*(all_gather(part) for part in labels))
        rows = torch.stack([relation_rows(r, targets, w.tau) for r in relations])
        parts = {"rows": w.rows * rows.sum()}
        if w.row_distillation:
            taught = sum(
                (row_distillation(r, relations[-1], w.tau) for r in relations[:-1]), rows.new_zeros(())
            )
            parts["row_distillation"] = rising * w.row_distillation * taught
        return parts
