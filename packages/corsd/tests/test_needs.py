"""No setting is silently dead: each of a run's keys changes something in a place named here, or is refused by name.

A new key fails `test_every_key_is_here` until it has a line in ACTS (a tiny run differs) or in HANDED_ON (it reaches
what it is for).
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from corsd import data, methods, run, train, training_step
from corsd.config import PRESETS, TrainConfig
from corsd.needs import NEEDS
from corsd.train import train_cell
from safetensors.torch import load_file, save_file
from shared_core.run import loop
from shared_core.run.config import ConfigError
from shared_core.run.idle import is_changed, keys_of, refuse_idle

BASE = {
    "model": "small:resnet10",
    "width": 4,
    "augment": "crop",
    "epochs": 1,
    "batch_size": 12,
    "log_every": 1,
    "checkpoint_every": 10,
    "threads": 1,
    "device": "cpu",
}
VARIANT, WEIGHTS = "relations.variant.", "relations.weights."
RKD = {"method": "rkd"}
V2, VERSION_2 = "relational.", {"method": "corsd_v2"}

# key: the value it is changed to, and what has to stand beside it
ACTS = {
    "data": ("DATA#b", {}),
    "model": ("small:wrn16-8", {"width": 16}),
    "weights": ("FILE", {}),
    "new_head": (True, {"weights": "FILE"}),
    "method": ("deep_supervision", {}),
    "seeds": ([1], {}),
    "epochs": (2, {}),
    "batch_size": (6, {}),
    "pairs": ("triplets", {}),
    "precision": ("bf16", {}),
    "width": (8, {}),
    "image_size": (16, {}),
    "augment": ("none", {}),
    "images_per_class": (4, {}),
    "validation": (0.25, {}),
    "views": (2, {"method": "corsd_v2"}),
    "images_per_class_in_batch": (4, {}),
    "accumulate": (2, {}),
    "clip_grad_norm": (1e-3, {}),
    "label_smoothing": (0.3, {"method": "label_smoothing"}),
    "log_every": (3, {"epochs": 2}),
    "evaluate_every": (1, {"validation": 0.25, "epochs": 2}),
    "checkpoint_every": (1, {}),
    "optim.lr": (0.01, {}),
    "optim.momentum": (0.5, {"optim.schedule": "cosine"}),
    "optim.nesterov": (True, {}),
    "optim.weight_decay": (0.1, {}),
    "optim.schedule": ("constant", {}),
    "optim.warmup": (0.9, {}),
    "relations.stages": (["layer1", "layer4"], {}),
    "relations.triplets_per_image": (1.0, {}),
    "relations.norm": ("group", {}),
    "relations.exits": ("joint", {}),
    "relations.relation_weight": (0.1, RKD),
    WEIGHTS + "triplet": (1.0, {}),
    WEIGHTS + "same_ce": (1.0, {}),
    WEIGHTS + "same_kl": (1.0, {}),
    WEIGHTS + "other_ce": (1.0, {}),
    WEIGHTS + "other_kl": (1.0, {}),
    WEIGHTS + "relation": (1.0, {}),
    WEIGHTS + "logit_relation": (1.0, {}),
    WEIGHTS + "warmup_steps": (3, {}),
    VARIANT + "detach_teacher": (False, {}),
    VARIANT + "aux_kl": ("raw_logits", {}),
    VARIANT + "soft_label": ("softmaxed", {}),
    VARIANT + "logit_relation": ("off", {}),
    VARIANT + "prototype": ("ema", {}),
    VARIANT + "deepest_ce": ("reduced", {}),
    VARIANT + "attention": (True, {}),
    VARIANT + "temperature": (1.0, {}),
    VARIANT + "margin": (0.5, {}),
    V2 + "mixing": ("cutmix", VERSION_2),
    V2 + "deep_supervision": (0.5, VERSION_2),
    V2 + "rows": (1.0, VERSION_2),
    V2 + "row_distillation": (1.0, VERSION_2),
    V2 + "ensemble": (1.0, VERSION_2),
    V2 + "tau": (0.5, VERSION_2),
    V2 + "temperature": (1.0, {**VERSION_2, V2 + "ensemble": 1.0}),
    V2 + "beta": (1.0, {**VERSION_2, V2 + "ensemble": 1.0}),
    V2 + "ramp": (1.0, {**VERSION_2, V2 + "row_distillation": 1.0}),
    V2 + "embedding": (16, VERSION_2),
    V2 + "alpha": (0.2, {"method": "mixup"}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two sets of three classes in one file, and weights of the net of BASE."""
    folder = tmp_path_factory.mktemp("files")
    generator, arrays = np.random.default_rng(0), {}
    for prefix in ("a", "b"):
        for split, count in (("train", 36), ("test", 12)):
            arrays[f"x_{prefix}_{split}"] = generator.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
            arrays[f"y_{prefix}_{split}"] = np.arange(count) % 3
    np.savez(folder / "data.npz", **arrays)
    torch.manual_seed(7)
    config = configured({}, folder)
    save_file(train.build_net(config, data.open_data(config)).state_dict(), folder / "net.safetensors")
    return folder


def configured(values, folder):
    values = {"data": "DATA#a", **BASE, **values}
    nested = {}
    for key, value in values.items():
        place = nested
        *records, name = key.split(".")
        for record in records:
            place = place.setdefault(record, {})
        if isinstance(value, str):
            value = value.replace("DATA", f"npz:{folder / 'data.npz'}")
            value = value.replace("FILE", str(folder / "net.safetensors"))
        place[name] = value
    return TrainConfig.model_validate(nested)


def trace(config, out) -> str:
    """What a run leaves: weights, numbers, names of files; times apart."""
    train_cell(config, config.seeds[0], out)
    found = hashlib.sha256()
    checkpoints = out / "checkpoints"
    for path in sorted([*out.glob("*.safetensors"), *checkpoints.glob("*/*.safetensors")]):
        found.update(str(path.relative_to(out)).encode())
        for name, value in load_file(path).items():
            found.update(name.encode() + value.numpy().tobytes())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((out / "result.json").read_text())
    for record in [*lines, {key: result[key] for key in ("accuracy", "steps", "images_seen")}]:
        found.update(json.dumps({key: value for key, value in record.items() if key != "time"}).encode())
    return found.hexdigest()


_TRACES: dict[str, str] = {}


def traced(values, folder, out) -> str:
    name = json.dumps(values, sort_keys=True)
    if name not in _TRACES:
        _TRACES[name] = trace(configured(values, folder), out)
    return _TRACES[name]


@pytest.mark.parametrize("key", ACTS)
def test_the_key_changes_a_run(key, files, tmp_path):
    value, beside = ACTS[key]
    changed = {**beside, key: value}
    refuse_idle(configured(changed, files), NEEDS)
    assert traced(changed, files, tmp_path / "changed") != traced(beside, files, tmp_path / "plain")


HANDED_ON = {
    "data_root": (Path("somewhere"), {}, (data, "open_dataset"), lambda a, s: s["root"]),
    "download": (True, {}, (data, "open_dataset"), lambda a, s: s["download"]),
    "on_bad": ("skip", {}, (data, "open_dataset"), lambda a, s: s["on_bad"]),
    "pretrained": (True, {}, (train, "open_net"), lambda a, s: a[4]),
    "device": ("auto", {}, (train, "join"), lambda a, s: a[0]),
    "on_nonfinite": ("skip", {}, (training_step, "FiniteGuard"), lambda a, s: a[0]),
    "workers": (1, {}, (train, "make_loader"), lambda a, s: s["workers"]),
    "threads": (2, {}, (torch, "set_num_threads"), lambda a, s: a[0]),
    "channels_last": (False, {}, (training_step, "layout"), lambda a, s: a[0].channels_last),
    "tracker": ("tensorboard", {}, (loop, "MetricsLog"), lambda a, s: a[1]),
    "compile": (True, {}, (torch.nn.Module, "compile"), lambda a, s: True),
    "relations.gather": (True, {}, (methods, "Distiller"), lambda a, s: a[6]),
    "controls": (["ce"], {}, (run, "cells_of"), lambda a, s: a[0].controls),
}


@pytest.mark.parametrize("key", HANDED_ON)
def test_the_key_reaches_what_it_is_for(key, files, tmp_path, monkeypatch):
    value, beside, (place, name), read = HANDED_ON[key]
    config = configured({**beside, key: value}, files)

    class Reached(Exception):
        pass

    def listening(*arguments, **settings):
        assert read(arguments, settings) == value
        raise Reached

    monkeypatch.setattr(place, name, listening)
    threads = torch.get_num_threads()
    with pytest.raises(Reached):
        run.cells_of(config, tmp_path) if key == "controls" else train_cell(config, 0, tmp_path)
    if name != "set_num_threads":
        torch.set_num_threads(threads)


def test_every_key_is_here():
    assert sorted(keys_of(TrainConfig)) == sorted({*ACTS, *HANDED_ON})


# need: settings that switch its keys off
OFF = {
    "new_head": [{}],
    "width": [{"model": "torchvision:resnet18"}],
    "pretrained": [{}, {"model": "timm:resnet10t", "weights": "FILE"}],
    "pairs": [{"method": "ce"}],
    "evaluate_every": [{"method": "ce"}, {**VERSION_2, V2 + "rows": 0}],
    "images_per_class_in_batch": [{"method": "ce"}, {"pairs": "triplets"}, {"method": "deep_supervision"}],
    "views": [{"method": "mixup"}, {"pairs": "triplets"}, {"augment": "none"}],
    "relations.stages": [{"method": "ps_kd"}],
    "relations.norm": [{"method": "bake"}],
    "relations.triplets_per_image": [{"pairs": "triplets"}],
    VARIANT + "prototype": [{VARIANT + "logit_relation": "off"}, {WEIGHTS + "logit_relation": 0}],
    VARIANT + "logit_relation": [{WEIGHTS + "logit_relation": 0}],
    WEIGHTS + "logit_relation": [{VARIANT + "logit_relation": "off"}],
    VARIANT + "detach_teacher": [{WEIGHTS + "relation": 0, WEIGHTS + "same_kl": 0, WEIGHTS + "other_kl": 0}],
    VARIANT + "aux_kl": [{WEIGHTS + "same_kl": 0, WEIGHTS + "other_kl": 0}],
    VARIANT + "soft_label": [{WEIGHTS + "other_ce": 0, WEIGHTS + "other_kl": 0}],
    VARIANT + "temperature": [{VARIANT + "aux_kl": "raw_logits"}],
    VARIANT + "margin": [{WEIGHTS + "triplet": 0}],
    "relations.exits": [{"method": "ce"}, {"method": "rkd", "controls": ["ce"]}],
    V2 + "mixing": [{}, {"method": "mixup"}],
    V2 + "row_distillation": [{}, {**VERSION_2, V2 + "rows": 0}],
    V2 + "temperature": [{}, VERSION_2],
    V2 + "ramp": [{}, VERSION_2],
    V2 + "alpha": [{}, {**VERSION_2, V2 + "mixing": "off"}],
}
OTHERWISE = {"label_smoothing", "relations.relation_weight", "optim.momentum"}
OTHERWISE |= {"data_root", "download", "on_bad"}


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.keys.split()[0])
def test_what_would_do_nothing_is_refused_by_name(need, files, tmp_path):
    key = need.keys.split()[0]
    assert key in OFF or key in OTHERWISE
    value = (ACTS.get(key) or HANDED_ON[key])[0]
    for off in OFF.get(key, [{}]):
        config = configured({**off, key: value}, files)
        assert is_changed(config, key)
        with pytest.raises(ConfigError, match=rf"{key}.* nothing here and must be left out; needed: "):
            run.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_another_key_switches_off_does_change_nothing(files, tmp_path):
    """The needs are true: a run with such a setting is the run without."""
    key = WEIGHTS + "logit_relation"
    for number, off in enumerate(({"method": "byot"}, {VARIANT + "logit_relation": "off"})):
        changed = traced({**off, key: 1.0}, files, tmp_path / f"changed{number}")
        assert changed == traced(off, files, tmp_path / f"plain{number}")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_none(name):
    refuse_idle(PRESETS[name](), NEEDS)
