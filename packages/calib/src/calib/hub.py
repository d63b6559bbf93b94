"""A calibrator as a folder with a card, here or on the Hugging Face Hub.

    calibrator = HubCalibrator.from_run("runs/digits")
    calibrator.save_pretrained("night/")           # config.json calibrator.safetensors result.json README.md
    calibrator.push_to_hub("me/night")
    calibrator = calib.Calibrator.from_pretrained("me/night")
    model = calib.attach(classifier, calibrator)

The classifier stays with whoever deployed it: a calibrator of some hundred kilobytes is what changes hands.  The
card names the digest of the classifier that it was trained in front of.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin
from shared_core import hub
from shared_core.run.atomic import read_json, write_json
from shared_core.run.seal import check_seal

from calib.calibrator import Calibrator
from calib.pretrained import ARGUMENTS, CONFIG, WEIGHTS, load_calibrator, save_calibrator, settings
from calib.summary import cautions, domain_name, figure_words, sentence
from calib.trained import cell_folders

FIGURES = (
    *("source", "target", "classifier", "classifier_digest", "measure"),
    *("source_before", "source_after", "target_before", "target_after"),
    *("source_before_sd", "source_after_sd", "target_before_sd", "target_after_sd", "parameter_ratio"),
    *("latency_ratio", "classifier_unchanged", "selection", "oracle", "compat", "chosen_step", "note"),
)
"""What of a run's result.json goes into the folder."""


class HubCalibrator(ModelHubMixin, Calibrator):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A :class:`calib.Calibrator` that knows what it came to; made from the same arguments, or from another one."""

    result: dict[str, Any]

    @classmethod
    def of(cls, calibrator: Calibrator, result: Mapping[str, Any] | None = None) -> "HubCalibrator":
        """A copy of a calibrator; `result` as in a run's result.json."""
        about = settings(calibrator)
        made = cls(**{name: about[name] for name in ARGUMENTS})
        made.load_state_dict(calibrator.state_dict())
        made.result = {name: (result or {})[name] for name in FIGURES if name in (result or {})}
        made.result |= {n: domain_name(made.result[n]) for n in ("source", "target") if n in made.result}
        if "classifier" in made.result:
            made.result["classifier"] = _without_folders(made.result["classifier"])
        return made.train(calibrator.training)

    @classmethod
    def from_run(cls, run: str | os.PathLike[str]) -> "HubCalibrator":
        """The calibrator of a run of ``calib adapt``; of several seeds the first.

        Raises:
            ValueError: the folder holds no finished adaptation.
        """
        cell = cell_folders(Path(run))[0]
        if not (cell / "result.json").is_file():
            raise ValueError(
                f"{run} holds no finished adaptation: start one with calib adapt, or --resume it"
            )
        check_seal(cell)
        return cls.of(load_calibrator(cell / "calibrator"), read_json(cell / "result.json"))

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **download: Any
    ) -> "HubCalibrator":
        """A folder of `save_pretrained`, or a repository on the hub; in eval mode.

        `download` as in :func:`shared_core.hub.fetch`.

        Raises:
            ValueError: nothing there, a file of another kind, another format, or parts that do not belong together.
        """
        folder = hub.fetch(pretrained_model_name_or_path, [CONFIG, WEIGHTS, hub.RESULT], **download)
        return cls.of(load_calibrator(folder), hub.read_result(folder))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card, filled from the result."""
        return ModelCard(_card(self))

    def _save_pretrained(self, save_directory: Path) -> None:
        save_calibrator(self, save_directory)
        if getattr(self, "result", None):
            write_json(save_directory / hub.RESULT, self.result)


def _card(calibrator: HubCalibrator) -> str:
    r: dict[str, Any] = getattr(calibrator, "result", {})
    about = settings(calibrator)
    complete = {
        "source",
        "target",
        "measure",
        "target_before",
        "target_after",
        "source_before",
        "source_after",
    }
    measured = complete <= r.keys()
    title = f"Calibrator from {r['source']} to {r['target']}" if measured else "Calibrator"
    sentences = [
        "A light-weight correction of images in front of a frozen classifier (arXiv 1911.12796): no pixel moves by "
        f"more than {about['epsilon']:.4g} of the value range.",
    ]
    if measured:
        sentences.append(sentence(r))
    figures: dict[str, Any] = {
        "images": f"{about['channels']} channels in {about['value_range'][0]} to {about['value_range'][1]}",
        "body": about["body"],
        "parameters": sum(p.numel() for p in calibrator.parameters()),
    }
    if measured:
        for domain in ("source", "target"):
            for when, words in (("before", "without the calibrator"), ("after", "with it")):
                name, spread = f"{domain}_{when}", r.get(f"{domain}_{when}_sd")
                value = figure_words(r[name]) + ("" if spread is None else f" ± {spread:.2f}")
                figures[f"{r['measure']} on {r[domain]}, the {domain}, {words}, %"] = value
    figures |= {
        "classifier": r.get("classifier"),
        "classifier's digest": r.get("classifier_digest"),
        "chosen by": r.get("selection"),
        "time of classifying, with over without": r.get("latency_ratio"),
    }
    code = """
import calib
calibrator = calib.Calibrator.from_pretrained("OWNER/NAME")
model = calib.attach(classifier, calibrator)   # the classifier it was trained in front of
"""
    metadata: dict[str, Any] = {
        "license": "mit", "library_name": "calib-uda", "pipeline_tag": "image-to-image",
        "tags": ["calib", "domain-adaptation", "pytorch"],
    }  # fmt: skip
    caution = (
        cautions(r)
        if measured and {"oracle", "compat", "classifier_unchanged", "chosen_step"} <= r.keys()
        else []
    )
    return hub.card(title, sentences, code, figures, metadata, caution)


def _without_folders(spec: str) -> str:
    """A classifier's name without the folders of the machine it was adapted on."""
    return spec if spec.partition(":")[0] in ("small", "torchvision", "timm") else Path(spec).name
