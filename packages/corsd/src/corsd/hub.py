"""A distilled net as a folder, here or on the Hugging Face Hub: weights, how images are prepared, what it came to.

    net = DistilledNet.from_run("runs/digits")
    net.save_pretrained("digits-net/")            # config.json model.safetensors result.json README.md
    net.push_to_hub("me/digits-net")
    net = DistilledNet.from_pretrained("me/digits-net")
    logits = net(net.preprocess(images))          # images: uint8 (batch, channels, size, size)

A net whose code is in a file of yours (``file.py:function``) is built by you: pass it as ``net`` when it is loaded.
No file that is loaded can hold code.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelHubMixin
from jaxtyping import Float
from shared_core import hub
from shared_core.data.preprocess import Preprocess
from shared_core.run.atomic import read_json, write_json
from shared_core.run.command import short_name
from shared_core.run.weights import read_weights, save_weights
from torch import Tensor, nn

from corsd import __version__
from corsd.exits import EarlyExit, Exits
from corsd.frame import run_net
from corsd.nets import open_net
from corsd.relation import Norm
from corsd.stages import find_stages
from corsd.trained import Which, cell_folders, open_exits, open_trained

WEIGHTS = "model.safetensors"
KIND = "corsd.DistilledNet"
ARGUMENTS = ("model", "class_names", "preprocess", "width", "exits", "norm")


class DistilledNet(nn.Module, ModelHubMixin):
    """The plain net, with its early exits if it has any; in eval mode, on the CPU.

    Args:
        model: the net's name, as in ``corsd train --model``.
        class_names: what the outputs mean, in their order.
        preprocess: how bytes become the net's input.
        width: first stage's channels of ``small:*`` nets.
        exits: names of the submodules behind which an early exit hangs, shallow to deep, and last the deepest stage,
            which the net itself answers for; () for none.
        norm: of the exits.
        net: the module itself, for a ``model`` whose code is in a file.
        result: what the net came to, for its card; see :func:`result_of`.

    Raises:
        ValueError: a name that is not known, or a net from a file without ``net``.
    """

    def __init__(
        self,
        model: str,
        class_names: Sequence[str],
        preprocess: Preprocess,
        width: int | None = None,
        exits: Sequence[str] = (),
        norm: Norm = "batch",
        net: nn.Module | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.class_names, self.preprocess = model, list(class_names), preprocess
        self.width, self.norm, self.result = width, norm, dict(result or {})
        if net is None:
            if model.rpartition(":")[0].endswith(".py"):
                raise ValueError(f"the net is built by {model}: build it yourself and pass it as net=")
            net = open_net(model, len(self.class_names), preprocess.channels, width)
        self.net = net
        self.exits: Exits | None = None
        self.stages = []
        if exits:
            example = torch.zeros(2, preprocess.channels, preprocess.size, preprocess.size)
            self.stages = find_stages(net.eval(), example, list(exits))
            channels = [stage.channels for stage in self.stages]
            self.exits = Exits(channels[:-1], channels[-1], len(self.class_names), norm)
        self.eval()

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of the net."""
        return run_net(self.net, images)

    def early_exit(self, threshold: float = 0.9) -> EarlyExit:
        """The net that stops at the first exit at which it is sure.  Raises ValueError for a net without exits."""
        if self.exits is None:
            raise ValueError("this net was trained without exits (relations.exits is off)")
        return EarlyExit(self.net, self.stages[:-1], self.exits, threshold)

    @classmethod
    def from_run(cls, run: str | os.PathLike[str], which: Which = "last") -> "DistilledNet":
        """The net of a run of ``corsd train``; of several trainings the first, as ``corsd export`` takes it.

        Raises:
            ValueError: the folder holds no finished training.
        """
        folder = Path(run)
        trained = open_trained(cell_folders(folder)[0], which)
        found = open_exits(trained)
        config, stages = trained.config, ()
        if found is not None:
            p = trained.preprocess
            example = torch.zeros(2, p.channels, p.size, p.size)
            stages = tuple(s.name for s in find_stages(trained.net, example, config.relations.stages))
        made = cls(
            config.model,
            trained.class_names,
            trained.preprocess,
            config.width,
            stages,
            config.relations.norm,
            trained.net,
            result_of(folder, trained.folder, which),
        )
        if found is not None and made.exits is not None:
            made.exits.load_state_dict(found[1].state_dict())
        return made

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        net: nn.Module | None = None,
        **download: Any,
    ) -> "DistilledNet":
        """A folder of :meth:`save_pretrained`, or a repository on the hub.

        ``net`` takes the weights where the net's code is in a file; ``download`` as in :func:`shared_core.hub.fetch`.

        Raises:
            ValueError: nothing there, another class, a newer format, unknown keys, or weights that do not fit.
        """
        folder = hub.fetch(pretrained_model_name_or_path, [hub.CONFIG, WEIGHTS, hub.RESULT], **download)
        config = hub.read_config(folder, KIND, "corsd", ARGUMENTS)
        try:
            record = config.pop("preprocess")
            preprocess = Preprocess(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])})
            made = cls(**config, preprocess=preprocess, net=net, result=hub.read_result(folder))
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{folder / hub.CONFIG} describes no net: {error}") from error
        read_weights(made, folder / WEIGHTS)
        return made.eval()

    def settings(self) -> dict[str, Any]:
        """Every constructor argument but the net itself and the result, as plain values."""
        found = {name: getattr(self, name) for name in ARGUMENTS if name not in ("preprocess", "exits")}
        return found | {
            "preprocess": self.preprocess.record(),
            "exits": [stage.name for stage in self.stages],
        }

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card, filled from the result."""
        return ModelCard(_card(self))

    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(self, save_directory / WEIGHTS)
        if self.result:
            write_json(save_directory / hub.RESULT, self.result)
        about = {"class": KIND, "format": 1, "corsd": __version__}
        write_json(save_directory / hub.CONFIG, about | self.settings())


def result_of(run: Path, cell: Path, which: Which = "last") -> dict[str, Any]:
    """What of a run's result.json a card needs: the comparison of the run, and this training's own accuracy."""
    whole, own = (read_json(folder / "result.json") for folder in (run, cell))
    wanted = (
        "method",
        "dataset",
        "net",
        "seeds",
        "accuracy_mean",
        "accuracy_sd",
        "baseline_mean",
        "baseline_sd",
    )
    wanted += ("gain", "gain_interval", "images_seen")
    accuracy = own["accuracy" if which == "last" else "accuracy_best_on_validation"]
    found = {name: whole.get(name) for name in wanted} | {"accuracy": accuracy, "seed": own["seed"]}
    # A card is for others: where the data lay on this machine is not.
    return found | {"dataset": short_name(whole["dataset"])}


def _card(net: DistilledNet) -> str:
    r = net.result
    metadata: dict[str, Any] = {
        "license": "mit", "library_name": "corsd", "pipeline_tag": "image-classification",
        "tags": ["corsd", "self-distillation", "pytorch"],
    }  # fmt: skip
    sentences = [
        f"A classifier ({net.model}) of {len(net.class_names)} classes: {_first(net.class_names)}.",
        "Trained with class-oriented relational self-distillation (arXiv 2305.00918). The net is plain: nothing of the "
        "training is left in it.",
    ]
    p = net.preprocess
    figures: dict[str, Any] = {"input": f"{p.channels} x {p.size} x {p.size}"}
    if {"dataset", "method", "accuracy"} <= r.keys():
        measured = EvalResult(
            task_type="image-classification", dataset_type=r["dataset"], dataset_name=r["dataset"],
            metric_type="accuracy", metric_value=r["accuracy"],
        )  # fmt: skip
        metadata |= {"model_name": f"{r['method']} on {r['dataset']}", "eval_results": [measured]}
        low_high = r.get("gain_interval")
        figures |= {
            "data set": r["dataset"],
            "method": r["method"],
            "test accuracy of these weights, %": r["accuracy"],
            "seed": r.get("seed"),
            "mean over the run's seeds, %": r.get("accuracy_mean"),
            "standard deviation over seeds": r.get("accuracy_sd"),
            "cross-entropy on as many images, %": r.get("baseline_mean"),
            "gain over cross-entropy, points": r.get("gain"),
            "its 95 % interval": low_high and f"{low_high[0]:+.2f} to {low_high[1]:+.2f}",
            "images seen in training": r.get("images_seen"),
        }
    code = """
from corsd import DistilledNet
net = DistilledNet.from_pretrained("OWNER/NAME")
logits = net(net.preprocess(images))  # uint8 (batch, channels, size, size); net.preprocess.fit takes other sizes
"""
    return hub.card(metadata.get("model_name", net.model), sentences, code, figures, metadata)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (" and so on" if len(names) > 20 else "")
