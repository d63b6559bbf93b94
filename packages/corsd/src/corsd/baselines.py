"""Controls that might win, in the distiller's frame: ``out = method(images, labels, index)``.

Every method trains the same net in place and returns the same :class:`~corsd.distiller.Output`, so that all of
them run in one loop on an equal number of images.  Formulas are cited at each; T is a temperature, z_i the
logits and f_i the pooled features of exit i, stage S the deepest; teachers are detached.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shared_core.ops.autocast import without_autocast
from shared_core.ops.divergence import kl_divergence, soft_cross_entropy
from shared_core.ops.features import FeatureCapture
from shared_core.ops.gather import all_gather, rank, world_size
from shared_core.ops.host import read_back
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.distiller import Output, check_labels
from corsd.exits import Exits
from corsd.frame import (
    HostCount,
    check_first_step,
    check_wrappers,
    example_for,
    for_module,
    labels_for,
    own_type,
    run_net,
    widened,
)
from corsd.relation import Norm
from corsd.stages import find_stages


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
        return _output(logits, {"ce": ce})


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
        if method not in _EXIT_LOSSES:
            raise ValueError(f"method={method!r}; choose one of {', '.join(_EXIT_LOSSES)}")
        check_wrappers(net, "ExitMethod")
        example = example_for(net, example)
        self.net, self.num_classes, self.method, self.output = net, num_classes, method, output
        self.relation_weight = relation_weight
        self.stages = find_stages(net, example, stages)
        check_first_step(net, example, output, num_classes)
        channels = [stage.channels for stage in self.stages]
        self.exits = Exits(channels[:-1], channels[-1], num_classes, norm)
        adapters = channels[:-1] if method == "byot_tpami" else []
        self.adapters = nn.ModuleList(nn.Linear(channels[-1], channels[-1]) for _ in adapters)
        self.capture = FeatureCapture(net, [stage.name for stage in self.stages])
        # Only what is ours: the net keeps its types.
        self.exits.to(**own_type(net))
        self.adapters.to(**own_type(net))

    def forward(self, images: Tensor, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> Output:
        with self.capture:
            logits = run_net(self.net, images, self.output)
        captured = self.capture.pop()
        check_labels(labels, logits, self.num_classes)
        labels = labels_for(labels, logits)
        maps = [for_module(stage.map(captured[stage.name]), self.exits) for stage in self.stages]
        features = self.exits.features(maps[:-1])
        exit_logits = [head(f) for head, f in zip(self.exits.classifiers, features, strict=True)]
        parts = {"ce": F.cross_entropy(widened(logits), labels)}
        deepest = maps[-1].mean((2, 3)).detach()
        logits_of_exits = [widened(z) for z in exit_logits]
        parts |= _EXIT_LOSSES[self.method](
            self, features, deepest, logits_of_exits, widened(logits.detach()), labels
        )
        return _output(logits, parts)


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


def rkd(
    student: Float[Tensor, "batch channels"], teacher: Float[Tensor, "batch channels"]
) -> Float[Tensor, ""]:
    """Relational knowledge distillation (CVPR 2019): 25 Huber of distances / their mean + 50 Huber of angles."""
    return 25 * F.smooth_l1_loss(_distances(student), _distances(teacher)) + 50 * F.smooth_l1_loss(
        _angles(student), _angles(teacher)
    )


def similarity_preserving(
    student: Float[Tensor, "batch channels"], teacher: Float[Tensor, "batch channels"]
) -> Float[Tensor, ""]:
    """SP (ICCV 2019): 3000 |G_t - G_s|_F^2 / b^2, G the row-normalised Gram matrix of the batch."""
    gram_s, gram_t = F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1)
    return 3000 * (gram_t - gram_s).square().mean()


def probabilistic_transfer(
    student: Float[Tensor, "batch channels"], teacher: Float[Tensor, "batch channels"]
) -> Float[Tensor, ""]:
    """PKT (ECCV 2018): 30000 mean of S_t log(S_t / S_s), S the row-normalised (cosine + 1) / 2 of the batch."""
    s, t = _affinity(student), _affinity(teacher)
    return 30000 * (t * ((t + 1e-7).log() - (s + 1e-7).log())).mean()


def _distances(x: Tensor) -> Tensor:
    # The square root's gradient is infinite at 0, where an image meets itself.
    distance = (x[:, None] - x[None]).square().sum(2).clamp_min(1e-12).sqrt()
    distance = distance * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return distance / distance.sum().clamp_min(1e-12) * (len(x) * (len(x) - 1))


def _angles(x: Tensor) -> Tensor:
    direction = F.normalize(x[None] - x[:, None], dim=2)
    return torch.einsum("aic,ajc->aij", direction, direction)


def _affinity(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    affinity = (unit @ unit.T + 1) / 2
    return affinity / affinity.sum(1, keepdim=True)


_EXIT_LOSSES = {
    "deep_supervision": _deep_supervision,
    "byot": _byot,
    "byot_tpami": _byot_tpami,
    "rkd": _handcrafted(rkd),
    "sp": _handcrafted(similarity_preserving),
    "pkt": _handcrafted(probabilistic_transfer),
}


class ClassWise(nn.Module):
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
        return _output(both, {"ce": ce, "class_wise": self.weight * self.temperature**2 * kl})


class ProgressiveSelf(nn.Module):
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
        return _output(logits, {"soft_ce": soft_cross_entropy(logits, target).mean()})

    def written_rows(self, labels: Int[Tensor, " batch"], index: Tensor | None = None) -> dict[str, Tensor]:
        """Of the large buffers, by name, the rows that a step on these images writes; see ``Snapshot``."""
        return {} if index is None else {"past": all_gather(class_numbers(index).to(self.past.device))}


class LastBatch(nn.Module):
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
        return _output(logits, parts)


def _output(logits: Tensor, parts: dict[str, Tensor]) -> Output:
    return Output(logits, torch.stack([widened(part) for part in parts.values()]).sum(), parts, [])
