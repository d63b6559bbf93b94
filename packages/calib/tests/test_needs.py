"""No setting is silently dead: each of a run's keys changes something in a place named here, or is refused by name.

A new key fails `test_every_key_is_here` until it has a line in ACTS (a tiny run differs) or in HANDED_ON (it reaches
what it is for).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from calib import data, run, source_classifier, translate
from calib.config import PRESETS, AdaptConfig
from calib.data import open_domains
from calib.needs import needs
from calib.run import run_cell
from calib.translate import TranslateSettings
from safetensors.torch import load_file, save_file
from shared_core.run import checkpoint
from shared_core.run.atomic import read_json
from shared_core.run.config import ConfigError
from shared_core.run.idle import keys_of, refuse_idle

NET = """
from torch import nn
def net(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(16, num_classes))
def blocked(num_classes, in_channels):
    return Blocked(net(num_classes, in_channels))
def soft(num_classes, in_channels):
    return nn.Sequential(net(num_classes, in_channels), nn.Softmax(1))
def two(num_classes, in_channels):
    return Two(net(num_classes, in_channels))
class Two(nn.Sequential):
    def forward(self, x):
        answer = super().forward(x)
        return {"logits": answer, "others": -2 * answer}
class Blocked(nn.Sequential):
    def forward(self, x):
        return super().forward(x).detach()
"""
BASE = {
    "source": "DATA#day", "target": "DATA#dusk", "classifier": "NET:net", "image_size": 16, "width": 2, "blocks": 1,
    "steps": 2, "batch_size": 16, "validate_every": 1, "validation_images": 24, "log_every": 1, "threads": 1,
    "device": "cpu", "selection": "last", "epsilon": 0.2,
}  # fmt: skip
TRAINED = {"train_classifier": True, "training.epochs": 1}
# One that was trained, so that views of an image are not all of one class.
SEEING = {"train_classifier": True, "training.epochs": 8, "training.learning_rate": 0.05}
VIEWS = {**SEEING, "loss.views": 1.0, "views.threshold": 0.4}
NEAR = {**SEEING, "loss.views": 1.0, "neighbours.count": 3, "neighbours.threshold": 0.0}
BEST = {"selection": "information"}

# key: the value it is changed to, and what has to stand beside it
ACTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "source": ("DATA#dusk", {}),
    "target": ("DATA#day", {}),
    "translated": ("DATA#dusk", {}),
    "classifier": ("small:lenet", {"image_size": 32, "training.epochs": 1}),
    "weights": ("WEIGHTS", {}),
    "epsilon": (0.4, {}),
    "body": ("constant", {"width": 4, "blocks": 9}),
    "steps": (3, {}),
    "batch_size": (8, {}),
    "selection": ("information", {"source_tolerance": 0.0}),
    "seeds": ([1], {}),
    "precision": ("bf16", {}),
    "baselines": (["moment_matching"], {}),
    "train_classifier": (True, {"training.epochs": 1}),
    "image_size": (24, {}),
    "channels": (1, {}),
    "output": ("others", {"classifier": "NET:two"}),
    "outputs": ("logits", {"classifier": "NET:soft"}),
    "normalize": ("none", {}),
    "surrogate_steps": (2, {"classifier": "NET:blocked", "image_size": 32}),
    "compat": ("released", {"mode": "released"}),
    "width": (3, {}),
    "blocks": (2, {}),
    "mode": ("positive", {}),
    "feature": ("logits", {}),
    "patch": (8, {}),
    "patches": (3, {}),
    "ema": (None, {}),
    "accumulate": (2, {}),
    "source_tolerance": (100.0, {**BEST, "optim.learning_rate": 0.5}),
    "validate_every": (2, {}),
    "validation_images": (8, {}),
    "log_every": (2, {}),
    "checkpoint_every": (1, {}),
    "training.epochs": (2, TRAINED),
    "training.batch_size": (8, TRAINED),
    "training.learning_rate": (0.1, TRAINED),
    "training.weight_decay": (0.5, TRAINED),
    "loss.pixel": (2.0, {}),
    "loss.feature": (2.0, {}),
    "loss.source": (1.0, {}),
    "loss.views": (1.0, {"views.threshold": 0.0}),
    "loss.hold": (1.0, {}),
    "views.count": (2, VIEWS),
    "views.zooms": ((1.0, 2.0), VIEWS),
    "views.shear": (0.1, VIEWS),
    "views.zoom_temperature": (1e-5, VIEWS),
    "views.threshold": (0.0, {"loss.views": 1.0}),
    "views.shake": (0.5, VIEWS),
    "neighbours.balance": (0.0, NEAR),
    "neighbours.threshold": (0.999, {**NEAR, "neighbours.threshold": 0.0}),
    "neighbours.images": (20, NEAR),
    "neighbours.every": (1, NEAR),
    "optim.learning_rate": (0.1, {}),
    "optim.critic_learning_rate": (0.1, {}),
    "optim.betas": ((0.5, 0.9), {}),
    "optim.weight_decay": (0.5, {}),
    "optim.schedule": ("cosine", {}),
}


@pytest.fixture(scope="module")
def places(domains_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "net.py").write_text(NET)
    found = {
        "DATA": f"npz:{domains_npz}",
        "NET": str(folder / "net.py"),
        "WEIGHTS": str(folder / "w.safetensors"),
    }
    config = configured({}, found)
    torch.manual_seed(7)
    net = source_classifier.build_classifier(config, open_domains(config)).net
    save_file(net.state_dict(), found["WEIGHTS"])
    return found


def configured(values: dict[str, Any], places: dict[str, str], base: dict[str, Any] = BASE) -> AdaptConfig:
    nested: dict[str, Any] = {}
    for key, value in {**base, **values}.items():
        place = nested
        *records, name = key.split(".")
        for record in records:
            place = place.setdefault(record, {})
        for word, path in places.items():
            value = value.replace(word, path) if isinstance(value, str) else value
        place[name] = value
    return AdaptConfig.model_validate(nested)


_TRACES: dict[str, str] = {}


def traced(values: dict[str, Any], places: dict[str, str], out: Path) -> str:
    """What a run leaves: weights, numbers, names of files; times apart."""
    known = json.dumps(values, sort_keys=True)
    if known not in _TRACES:
        config = configured(values, places)
        run_cell(config, config.seeds[0], out, open_domains(config), torch.device("cpu"), resume=False)
        found = hashlib.sha256()
        for path in sorted([*out.glob("**/*.safetensors"), *out.glob("checkpoints/*/state.pt")]):
            found.update(str(path.relative_to(out)).encode())
            weights = load_file(path) if path.suffix == ".safetensors" else {}
            for name, value in weights.items():
                found.update(name.encode() + value.numpy().tobytes())
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        result, kept = read_json(out / "result.json"), read_json(out / "adaptation.json")
        teacher = checkpoint.load(out / "checkpoints").tensors.get("teacher")
        rows = [row["method"] for row in result["baselines"]]
        records = [
            *lines,
            rows,
            teacher,
            read_json(out / "evaluation.json")["source_after"],
            kept["validators"],
        ]
        for record in records:
            record = {k: v for k, v in record.items() if k != "time"} if isinstance(record, dict) else record
            found.update(json.dumps(record).encode())
        _TRACES[known] = found.hexdigest()
    return _TRACES[known]


@pytest.mark.parametrize("key", ACTS)
def test_the_key_changes_a_run(key: str, places: dict[str, str], tmp_path: Path) -> None:
    value, beside = ACTS[key]
    changed = {**beside, key: value}
    if key not in ("body", "classifier", "train_classifier"):
        # These two take settings of the run without them along.
        refuse_idle(configured(changed, places), needs(segmentation=False))
    assert traced(changed, places, tmp_path / "changed") != traced(beside, places, tmp_path / "plain")


HANDED_ON: dict[str, tuple[Any, Any, str, Any]] = {
    "data_root": ("somewhere", data, "open_dataset", lambda a, s: str(a[2])),
    "download": (True, data, "open_dataset", lambda a, s: a[3]),
    "on_bad": ("skip", data, "open_dataset", lambda a, s: a[4]),
    "scene_size": ((64, 128), data.streets, "open_scenes", lambda a, s: a[3]),
    "pretrained": (True, source_classifier, "open_classifier", lambda a, s: a[4]),
    "device": ("auto", run, "join", lambda a, s: a[0]),
    "tracker": ("tensorboard", run, "adapt", lambda a, s: s["tracker"]),
    "workers": (1, run, "adapt", lambda a, s: s["workers"]),
    "threads": (2, torch, "set_num_threads", lambda a, s: a[0]),
    "on_nonfinite": ("skip", run, "adapt", lambda a, s: s["on_nonfinite"]),
    "feature_stride": (2, run, "adapt", lambda a, s: s["feature_stride"]),
    "num_classes": (6, run, "the_classifier", lambda a, s: a[1].num_classes),
    # What these do to answers is in test_views.py and test_neighbours.py; a run this small has too few doubts.
    "views.temperature": (9.0, run, "adapt", lambda a, s: s["views"].temperature),
    "neighbours.count": (5, run, "adapt", lambda a, s: s["neighbours"].count),
    "neighbours.answers": (1.0, run, "adapt", lambda a, s: s["neighbours"].answers),
    "neighbours.restart": (0.9, run, "adapt", lambda a, s: s["neighbours"].restart),
    "neighbours.rounds": (1, run, "adapt", lambda a, s: s["neighbours"].rounds),
    "ignore": (3, run, "four_numbers", lambda a, s: a[5]),
}


@pytest.mark.filterwarnings("ignore:.*2 of 6 classes")  # more classes than have images is allowed
@pytest.mark.parametrize("key", HANDED_ON)
def test_the_key_reaches_what_it_is_for(
    key: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, place, name, read = HANDED_ON[key]
    base: dict[str, Any] = {"loss.views": 1.0, "neighbours.count": 3} if "." in key else {}
    base |= {"scene_size": {"source": "gta5"}, "pretrained": {"classifier": "timm:resnet10t"}}.get(key, {})
    config = configured({**base, key: value}, places)
    if key == "ignore":
        monkeypatch.setattr(run, "adapt_model", lambda *a: "")
        config = AdaptConfig(source="x", ignore=3)
        monkeypatch.setattr(run, "the_classifier", lambda *a: torch.nn.Conv2d(3, 3, 1))
        monkeypatch.setattr(run, "both_domains", lambda *a: {"source": {"confusion": [[1, 0], [0, 1]]}})

    class Reached(Exception):
        pass

    def listening(*arguments: Any, **settings: Any) -> None:
        assert read(arguments, settings) == value
        raise Reached

    threads = torch.get_num_threads()
    monkeypatch.setattr(place, name, listening)
    with pytest.raises(Reached):
        begin(key, config, tmp_path)
    if name != "set_num_threads":
        torch.set_num_threads(threads)


def begin(key: str, config: AdaptConfig, out: Path) -> None:
    nothing: Any = None
    domains = data.Domains(*[nothing] * 4, ["a", "b"], 3, key == "ignore", None)
    if key == "device":
        run.open_device(config)
    elif key == "pretrained":
        source_classifier.build_classifier(config, domains)
    else:
        domains = domains if key == "ignore" else open_domains(config)
        run_cell(config, 0, out, domains, torch.device("cpu"), resume=False)


def test_every_key_is_here() -> None:
    assert sorted(keys_of(AdaptConfig)) == sorted({*ACTS, *HANDED_ON})


# the first key of a need: a value, and settings that switch it off
OFF: list[tuple[str, Any, dict[str, Any]]] = [
    ("data_root", "somewhere", {}),
    ("download", True, {}),
    ("on_bad", "skip", {}),
    ("scene_size", (64, 64), {}),
    ("ignore", 3, {}),
    ("feature_stride", 2, {}),
    ("feature_stride", 2, {"feature": "layer:0", "loss.feature": 0}),
    ("pretrained", True, {}),
    ("pretrained", True, {"classifier": "timm:resnet10t", "weights": "WEIGHTS"}),
    ("train_classifier", True, {"classifier": "small:lenet"}),
    ("normalize", "none", {"classifier": "model.onnx"}),
    ("surrogate_steps", 5, {"classifier": "small:lenet"}),
    ("training.epochs", 3, {}),
    ("training.weight_decay", 0.1, {"classifier": "small:lenet", "weights": "WEIGHTS"}),
    ("width", 8, {"body": "constant"}),
    ("blocks", 2, {"body": "constant"}),
    ("feature", "logits", {"loss.feature": 0}),
    ("patch", 8, {"loss.pixel": 0}),
    ("patches", 2, {"loss.pixel": 0}),
    ("loss.source", 1.0, {"loss.pixel": 0, "loss.feature": 0, "loss.views": 1}),
    ("optim.critic_learning_rate", 1.0, {"loss.pixel": 0, "loss.feature": 0, "loss.views": 1}),
    ("source_tolerance", 2.0, {}),
    ("views.count", 2, {}),
    ("views.zooms", (1.0,), {}),
    ("views.shake", 0.2, {}),
    ("views.zoom_temperature", 1.0, {"loss.views": 1, "views.zooms": (1.0,)}),
    ("views.temperature", 1.0, {"loss.views": 1, "views.count": 1}),
    ("views.threshold", 0.5, {"loss.views": 1, "neighbours.count": 3}),
    ("neighbours.answers", 1.0, {"loss.views": 1}),
    ("neighbours.every", 5, {}),
]
SEGMENTATION = [
    ("image_size", 64),
    ("channels", 1),
    ("baselines", ["tent"]),
    ("training.learning_rate", 0.1),
    ("training.weight_decay", 0.1),
]


@pytest.mark.parametrize(("key", "value", "off"), OFF)
def test_what_would_do_nothing_is_refused_by_name(
    key: str, value: Any, off: dict[str, Any], places: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=rf"{key}.* nothing here and must be left out; needed: "):
        refuse_idle(configured({**off, key: value}, places), needs(segmentation=False))


@pytest.mark.parametrize(("key", "value"), SEGMENTATION)
def test_what_segmentation_does_not_use_is_refused(key: str, value: Any) -> None:
    config = configured({key: value}, {}, {"classifier": "small:segmenter"})
    with pytest.raises(ValueError, match=rf"{key}.* nothing here .* not of use in segmentation"):
        refuse_idle(config, needs(segmentation=True))


def test_the_command_refuses_before_it_writes(places: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"views\.shake does nothing here"):
        run.run(configured({"views.shake": 0.2}, places), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_none(name: str) -> None:
    config = PRESETS[name]()
    refuse_idle(config, needs(segmentation=name in ("camvid-day-dusk", "gta5-cityscapes")))


# the settings of a translation: all act, on the nets, their training or what is written on the way
TRANSLATED = {
    "size": 16, "channels": 1, "steps": 3, "batch_size": 2, "learning_rate": 0.1, "width": 4, "blocks": 1,
    "critic_width": 4, "critic_strided": 2, "cycle_weight": 9.0, "identity_weight": 9.0, "pool": 0, "pose": True,
    "log_every": 2, "checkpoint_every": 1, "workers": 1, "tracker": "tensorboard",
}  # fmt: skip


def translated(places: dict[str, str], out: Path, **changes: Any) -> str:
    config = configured({}, places)
    source, target = (data.open_domain(config, config.source, split) for split in ("train", "test"))
    small: dict[str, Any] = {
        "steps": 2,
        "batch_size": 4,
        "width": 2,
        "blocks": 0,
        "critic_width": 2,
        "log_every": 1,
    }
    settings = TranslateSettings(**{**small, **changes})
    translate.train_translation(source, target, settings, 0, out, device="cpu")
    found = hashlib.sha256((out / "generator.safetensors").read_bytes())
    for path in sorted(out.glob("checkpoints/*")):
        found.update(path.name.encode())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found.update(json.dumps([{k: v for k, v in line.items() if k != "time"} for line in lines]).encode())
    return found.hexdigest()


@pytest.mark.parametrize("name", sorted(set(TRANSLATED) - {"workers", "pool", "tracker"}))
def test_every_setting_of_a_translation_acts(name: str, places: dict[str, str], tmp_path: Path) -> None:
    if "plain" not in _TRACES:
        _TRACES["plain"] = translated(places, tmp_path / "plain")
    assert translated(places, tmp_path / "changed", **{name: TRANSLATED[name]}) != _TRACES["plain"]


def test_old_images_and_workers_of_a_translation(
    monkeypatch: pytest.MonkeyPatch, places: dict[str, str], tmp_path: Path
) -> None:
    """A pool acts once it is full, which takes more steps; workers change nothing but the time."""
    heard: list[int] = []
    pool, loader = translate.ImagePool, translate.make_loader

    def pool_of(size: int, seed: int) -> Any:
        heard.append(size)
        return pool(size, seed)

    def loader_of(data: Any, batches: Any, workers: int) -> Any:
        heard.append(workers)
        return loader(data, batches, 0)

    monkeypatch.setattr(translate, "ImagePool", pool_of)
    monkeypatch.setattr(translate, "make_loader", loader_of)
    translated(places, tmp_path / "run", pool=3, workers=5)
    assert heard == [3, 3, 5, 5]
    # A tracker gets the same numbers: test_tracker.py.
    assert set(TRANSLATED) == set(vars(TranslateSettings()))
