"""A scene as a folder with a card, here or on the Hugging Face Hub.

scene = HubScene.from_run("runs/objects", 0)   # the first finished object of a run of fsd generate
scene.save_pretrained("mug/")                  # config.json model.safetensors result.json README.md, and a picture
scene.push_to_hub("me/mug")
scene = HubScene.from_pretrained("me/mug")     # a fsd.Scene like any other
scene.export_mesh("mug.glb")
"""

import inspect
import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from shared_core import hub
from shared_core.run.atomic import write_bytes, write_json

from fsd import __version__
from fsd.objects import finished
from fsd.scene import BUILDERS, Scene, load_scene

WEIGHTS = "model.safetensors"
VIEWS = "views.png"
KIND = "fsd.hub.HubScene"
FIGURES = (
    *("prompt", "guidance", "noise", "prior", "seed", "steps", "label", "view_consistency", "quality"),
    *("network_calls", "seconds"),
)
"""What of an object.json goes into the folder."""


class HubScene(ModelHubMixin, Scene):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A :class:`fsd.Scene` that knows how it came about.

    Args:
        builder: "grid" or "hash", the builder functions `fsd.grid_scene` and `fsd.hash_scene`.
        arguments: theirs.

    Raises:
        ValueError: another builder, or an argument that the builder does not know.
    """

    def __init__(self, builder: str = "grid", **arguments: Any) -> None:
        if builder not in BUILDERS:
            raise ValueError(f"builder={builder!r}; it is one of {', '.join(BUILDERS)}")
        unknown = sorted(set(arguments) - set(arguments_of(builder)))
        if unknown:
            raise ValueError(
                f"a {builder} scene has no {', '.join(unknown)}; it has {', '.join(arguments_of(builder))}"
            )
        made = BUILDERS[builder](**arguments)
        super().__init__(
            made.field, made.background, **{n: arguments[n] for n in RENDERING if n in arguments}
        )
        self.arguments = made.arguments
        self.result: dict[str, Any] = {}
        self.views: bytes | None = None

    @classmethod
    def of(cls, scene: Scene, result: dict[str, Any] | None = None, views: bytes | None = None) -> "HubScene":
        """A copy of a scene that a builder function made.

        `result` as in an object.json; `views`, a PNG, goes onto the card.  Raises ValueError for a scene that was put
        together by hand.
        """
        if not scene.arguments:
            raise ValueError(
                "this scene was put together by hand; make it with fsd.grid_scene or fsd.hash_scene"
            )
        made = cls(**scene.arguments)
        made.load_state_dict(scene.state_dict())
        made.result = {name: (result or {})[name] for name in FIGURES if name in (result or {})}
        if "prior" in made.result:
            # A card is for others: where the model lay on this machine is not.
            made.result["prior"] = _without_folders(made.result["prior"])
        made.views = views
        return made.train(scene.training)

    @classmethod
    def from_run(cls, run: str | os.PathLike[str], number: int = 0) -> "HubScene":
        """The `number`-th finished object of a run of `fsd generate`, in the order of `fsd.objects.finished`.

        Raises ValueError where there is no such object.
        """
        objects = finished(run)
        if not -len(objects) <= number < len(objects):
            raise ValueError(f"{run} has {len(objects)} finished objects; number is {number}, counted from 0")
        item = objects[number]
        views = item.path / VIEWS
        return cls.of(
            load_scene(item.path / "scene.safetensors"),
            item.about,
            views.read_bytes() if views.is_file() else None,
        )

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **download: Any
    ) -> "HubScene":
        """A folder of `save_pretrained`, or a repository on the hub; `download` as in `shared_core.hub.fetch`.

        Raises ValueError: nothing there, another class, a newer format, unknown keys, or weights that do not fit.
        """
        folder = hub.fetch(
            pretrained_model_name_or_path, [hub.CONFIG, WEIGHTS, hub.RESULT, VIEWS], **download
        )
        known = {name for builder in BUILDERS for name in arguments_of(builder)}
        config = hub.read_config(folder, KIND, "fsd", ["builder", *known])
        try:
            arguments: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in config.items()}
            made = cls(**arguments)
            made.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, AttributeError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder} does not hold together: {' '.join(str(error).split())}") from error
        made.result = hub.read_result(folder)
        made.views = (folder / VIEWS).read_bytes() if (folder / VIEWS).is_file() else None
        return made

    def settings(self) -> dict[str, Any]:
        """The builder and every argument of it, also the defaults, as plain values."""
        builder = self.arguments["builder"]
        found = {**arguments_of(builder), **self.arguments}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card, filled from the result."""
        return ModelCard(_card(self))

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_bytes(save_directory / WEIGHTS, save(state))
        if self.result:
            write_json(save_directory / hub.RESULT, self.result)
        if self.views is not None:
            write_bytes(save_directory / VIEWS, self.views)
        write_json(
            save_directory / hub.CONFIG, {"class": KIND, "format": 1, "fsd": __version__} | self.settings()
        )


def arguments_of(builder: str) -> dict[str, Any]:
    """Every argument of a builder function with its default."""
    own = inspect.signature(BUILDERS[builder]).parameters.values()
    return {p.name: p.default for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD} | RENDERING


# What the builder functions hand on to a Scene: all its arguments behind the field and the background.
RENDERING: dict[str, Any] = {
    p.name: p.default
    for p in inspect.signature(Scene.__init__).parameters.values()
    if p.default is not inspect.Parameter.empty
}


def _card(scene: HubScene) -> str:
    r = scene.result
    title = f"{r['prompt']}, in 3D" if "prompt" in r else "A scene"
    sentences = [
        f"A 3D object ({scene.arguments['builder']} field) made from words with flow score distillation "
        "(arXiv 2405.10988) or a method beside it."
    ]
    if scene.views is not None:
        sentences.append(f"![the object from all sides]({VIEWS})")
    figures = {
        "prompt": r.get("prompt"),
        "method": r.get("guidance"),
        "noise": r.get("noise"),
        "prior": r.get("prior"),
        "seed": r.get("seed"),
        "steps": r.get("steps"),
        "calls of the prior's network": r.get("network_calls"),
        "what the prior calls it": r.get("label"),
        "share of views that it calls so": r.get("view_consistency"),
        "distance from the nearest picture of the prior": r.get("quality"),
    }
    code = """
from fsd.hub import HubScene
scene = HubScene.from_pretrained("OWNER/NAME")
scene.export_mesh("object.glb")
"""
    metadata: dict[str, Any] = {
        "license": "mit", "library_name": "fsd", "pipeline_tag": "text-to-3d",
        "tags": ["fsd", "flow-score-distillation", "pytorch"],
    }  # fmt: skip
    return hub.card(title, sentences, code, figures, metadata)


def _without_folders(prior: str) -> str:
    """A prior's name, or the last part of the folder that holds it."""
    return Path(prior).name if Path(prior).is_absolute() or prior.startswith((".", "~")) else prior
