"""No setting is silently dead: each key changes something in a place named here, or is refused by name.

A new key fails `test_every_key_is_here` until it has a line in ACTS (the steps of a tiny object differ), in FILES (what
an object leaves differs) or in HANDED_ON (it reaches what it is for).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fsd.build import build_guidance, build_prior, build_scene, negative_of, optimizer_for, set_threads
from fsd.cli import main
from fsd.config import PRESETS, GenerateConfig
from fsd.generate import generate
from fsd.needs import NEEDS
from fsd.prior_config import PriorConfig, tiny
from fsd.priors.bank import RenderBank
from fsd.run import jobs
from fsd.step import take_step
from fsd.train_prior import train_prior
from shared_core.run.guard import FiniteGuard
from shared_core.run.idle import keys_of, refuse_idle

BASE = {
    "prompts": ["a red object"], "prior": "bank", "steps": 3, "size": 8, "batch_size": 4, "threads": 1, "device": "cpu",
    "log_every": 1, "picture_every": 2, "checkpoint_every": 3, "mesh_resolution": 12, "frames": 2,
    "field": {"resolution": 8, "samples": 4, "occupancy": 4},
}  # fmt: skip
HASH = {"field.kind": "hash", "field.log2_size": 8}

# key: the value it is changed to, and what has to stand beside it
ACTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "guidance": (["sds"], {}),
    "seeds": ([1], {}),
    "steps": (4, {}),
    "batch_size": (8, {}),
    "size": (12, {}),
    "guidance_scale": (9.0, {}),
    "noise": ("random", {}),
    "beta": (1.0, {}),
    "schedule": ("sqrt", {}),
    "t_max": (0.5, {}),
    "t_min": (0.3, {}),
    "weighting": ("one", {}),
    "map_degrees": (90.0, {}),
    "map_background": ("fresh", {}),
    "shared": (2, {}),
    "released_rows": (True, {}),
    "views": (2, {"prior": "bank-per-view"}),
    "field.kind": ("hash", {"field.resolution": 32}),
    "field.resolution": (9, {}),
    "field.log2_size": (9, HASH),
    "field.background": ("learned", {}),
    "field.samples": (5, {}),
    "field.fine_samples": (4, {}),
    "field.occupancy": (0, {}),
    "field.shading": (True, {"field.samples": 8}),
    "cameras.elevation_deg": ((10.0, 20.0), {}),
    "optim.learning_rate": (0.01, {}),
    "optim.network_rate": (0.01, HASH),
    "optim.background_rate": (0.1, {"field.background": "learned"}),
    "optim.betas": ((0.1, 0.5), {}),
    "optim.epsilon": (1.0, {}),
    "optim.clip_norm": (1e-3, {"optim.epsilon": 1.0}),
    "regularizers.sparsity": (9.0, {}),
    "regularizers.opaque": (9.0, {}),
    "later": ({"progress": 0.5, "size": 12, "batch_size": 4}, {}),
}
FILES: dict[str, Any] = {
    "log_every": 5,
    "picture_every": 1,
    "checkpoint_every": 1,
    "mesh_resolution": 16,
    "frames": 3,
}


def configured(values: dict[str, Any], **base: Any) -> GenerateConfig:
    nested: dict[str, Any] = json.loads(json.dumps({**BASE, **base}))
    for key, value in values.items():
        place = nested
        *records, name = key.split(".")
        for record in records:
            place = place.setdefault(record, {})
        place[name] = value
    if nested["field"].get("kind") == "hash":
        nested["field"].pop("resolution", None)
    return GenerateConfig.model_validate(nested)


@pytest.fixture(scope="module")
def banks() -> dict[str, RenderBank]:
    return {
        "bank": RenderBank(size=8, azimuths=12),
        "bank-per-view": RenderBank(size=8, azimuths=12, joint=False),
    }


_TRACES: dict[str, str] = {}


def traced(values: dict[str, Any], banks: dict[str, RenderBank]) -> str:
    """The scene, the levels of noise and the losses of a few steps."""
    known = json.dumps(values, sort_keys=True)
    if known not in _TRACES:
        config = configured(values)
        prior, seed, method = banks[config.prior], config.seeds[0], config.guidance[0]
        scene = build_scene(config, seed)
        guide = build_guidance(config, prior, method, seed)
        encoded = prior.encode_text(config.prompts[0], negative_of(config, method))
        optimizer = optimizer_for(config, scene)
        views, rays = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        found = hashlib.sha256()
        for step in range(config.steps):
            taken = take_step(config, step, scene, guide, optimizer, encoded, views, rays, FiniteGuard())
            assert taken is not None
            found.update(json.dumps([taken.guided.t, taken.loss.item()]).encode())
        for value in scene.state_dict().values():
            found.update(value.numpy().tobytes())
        _TRACES[known] = found.hexdigest()
    return _TRACES[known]


@pytest.mark.parametrize("key", ACTS)
def test_the_key_changes_an_object(key: str, banks: dict[str, RenderBank]) -> None:
    value, beside = ACTS[key]
    refuse_idle(configured({**beside, key: value}), NEEDS)
    assert traced({**beside, key: value}, banks) != traced(beside, banks)


def left(out: Path) -> str:
    """What an object's folder says: lines of the log, checkpoints, and the pictures' sizes."""
    lines = [{**json.loads(line), "time": 0} for line in (out / "metrics.jsonl").read_text().splitlines()]
    pictures = ["progress.png", "mesh.glb", "turntable.gif"]
    found = hashlib.sha256(json.dumps(lines).encode())
    for name in pictures:
        found.update((out / name).read_bytes() if (out / name).is_file() else b"")
    for path in sorted((out / "checkpoints").glob("step-*")):
        found.update(path.name.encode())
    return found.hexdigest()


@pytest.fixture(scope="module")
def plain(banks: dict[str, RenderBank], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("plain")
    generate(configured({}), "a red object", "fsd", 0, banks["bank"], out)
    return left(out)


@pytest.mark.parametrize("key", FILES)
def test_the_key_changes_what_is_left(
    key: str, banks: dict[str, RenderBank], plain: str, tmp_path: Path
) -> None:
    generate(configured({key: FILES[key]}), "a red object", "fsd", 0, banks["bank"], tmp_path)
    assert left(tmp_path) != plain


# tensorboard's own protobuf files warn, on some versions.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tracker_receives_the_parts_of_the_loss_and_the_rate(
    banks: dict[str, RenderBank], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    generate(configured({"tracker": "tensorboard"}), "a red object", "fsd", 0, banks["bank"], tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    wanted = {"loss", "parts/guidance", "parts/regularizers", "lr", "t", "opacity", "grad_norm"}
    assert set(events.Tags()["scalars"]) >= wanted


DIFFUSION = {
    "precision": "bf16", "offload": True, "slicing": True, "image_size": 16, "view_words": True, "perp_neg": True,
}  # fmt: skip


@pytest.mark.parametrize("key", [*DIFFUSION, "prior"])
def test_the_key_reaches_a_diffusion_model(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, Any] = {}

    def open_prior(path: str, **settings: Any) -> None:
        heard.update(settings, prior=path)
        raise InterruptedError

    monkeypatch.setattr("fsd.priors.multiview.open_prior", open_prior)
    value = DIFFUSION.get(key, "mine")
    with pytest.raises(InterruptedError):
        build_prior(configured({"prior": "mine", key: value}), torch.device("cpu"))
    assert heard[key] == value


def test_the_other_keys_reach_what_they_are_for(
    banks: dict[str, RenderBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = configured({"prompts": ["a", "b"], "jobs": 2})
    assert len(jobs(two, Path())) == 2
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    set_threads(configured({"threads": 2}))
    assert threads == [2]
    assert negative_of(configured({"negative_prompt": "blurry"}), "fsd") == "blurry"
    assert (
        configured({"field.marching": True}).field.marching
        is build_scene(configured({"field.marching": True}), 0).arguments["marching"]
    )
    near = configured({"cameras.distance": (2.0, 2.5), "cameras.fov_deg": (30.0, 35.0)}).cameras
    heard: dict[str, Any] = {}

    def orbit(*arguments: Any, **settings: Any) -> None:
        heard.update(settings)
        raise InterruptedError

    monkeypatch.setattr("fsd.step.orbit", orbit)
    config = GenerateConfig(cameras=near, views=1)
    scene, generator = build_scene(config, 0), torch.Generator()
    guide, optimizer = build_guidance(config, banks["bank"], "fsd", 0), optimizer_for(config, scene)
    with pytest.raises(InterruptedError):
        take_step(config, 0, scene, guide, optimizer, None, generator, generator, FiniteGuard())
    assert (heard["distance"], heard["fov_deg"]) == (near.distance, near.fov_deg)


ELSEWHERE = {
    *("prompts", "negative_prompt", "device", "threads", "jobs", "tracker"),
    "on_nonfinite",  # test_skipped_steps.py
    *("field.marching", "cameras.distance", "cameras.fov_deg"),
}


def test_every_key_is_here() -> None:
    assert sorted(keys_of(GenerateConfig)) == sorted({*ACTS, *FILES, *DIFFUSION, *ELSEWHERE, "prior"})


OFF: list[tuple[str, Any, dict[str, Any]]] = [
    ("beta", 0.9, {"noise": "random"}),
    ("beta", 0.9, {"guidance": ["sds"]}),
    ("map_degrees", 90.0, {"noise": "constant"}),
    ("map_background", "fresh", {"beta": 0.0}),
    ("shared", 2, {"guidance": ["cfd"]}),
    ("released_rows", True, {"noise": "surface"}),
    ("t_max", 0.5, {"guidance": ["sds", "vsd"]}),
    ("t_min", 0.3, {"guidance": ["ism"]}),
    ("weighting", "one", {"guidance": ["sds"]}),
    ("guidance_scale", 9.0, {"guidance": ["csd"]}),
    *((key, value, {}) for key, value in DIFFUSION.items()),
    ("field.resolution", 16, {"field": {"kind": "hash"}}),
    ("field.log2_size", 9, {}),
    ("optim.network_rate", 0.1, {}),
    ("optim.background_rate", 0.1, {}),
    ("field.fine_samples", 4, {"field": {"marching": True}}),
]


@pytest.mark.parametrize(("key", "value", "off"), OFF)
def test_what_would_do_nothing_is_refused_by_name(key: str, value: Any, off: dict[str, Any]) -> None:
    values: dict[str, Any] = {"prior": "bank", **json.loads(json.dumps(off))}
    *records, name = key.split(".")
    place = values
    for record in records:
        place = place.setdefault(record, {})
    place[name] = value
    with pytest.raises(ValueError, match=rf"{key}.* nothing here and must be left out; needed: "):
        refuse_idle(GenerateConfig.model_validate(values), NEEDS)


def test_the_command_refuses_before_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("field: {log2_size: 9}\nprior: bank\n")
    out = tmp_path / "run"
    assert main(["generate", "an object", "--config", str(file), "--out", str(out)]) == 2
    assert "field.log2_size does nothing here" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_none(name: str) -> None:
    refuse_idle(PRESETS[name](), NEEDS)


SMALL: dict[str, Any] = {
    **tiny().model_dump(), "variant": "camera-free", "steps": 2, "batch_size": 4, "chunk": 8, "chunks": 2, "size": 16,
    "sample_steps": 1, "prompts": ("an object",), "threads": 1, "device": "cpu", "warmup": 0, "decay": 0.0,
    "sample_every": 5, "checkpoint_every": 5,
}  # fmt: skip
PRIOR: dict[str, tuple[Any, dict[str, Any]]] = {
    "variant": ("multi-view", {}),
    "steps": (3, {}),
    "seed": (1, {}),
    "batch_size": (8, {}),
    "learning_rate": (0.1, {}),
    "sides": (9.0, {"chunk": 16}),
    "precision": ("bf16", {}),
    "size": (24, {}),
    "channels": ((8, 8), {}),
    "layers": (2, {}),
    "text_width": (16, {}),
    "chunk": (4, {}),
    "chunks": (1, {"chunk": 4}),
    "warmup": (5, {}),
    "decay": (1.0, {}),
    "ema": (0.01, {}),
    "clip_norm": (1e-3, {}),
    "log_every": (5, {"steps": 3}),
    "sample_every": (1, {}),
    "checkpoint_every": (1, {}),
    "sample_steps": (2, {}),
    "guidance_scale": (9.0, {}),
    "prompts": (("a red mushroom", "an object"), {}),
}
PRIOR_ELSEWHERE = {"start", "pictures", "device", "threads", "tracker", "on_nonfinite"}  # test_prior_step.py


def prior_trace(values: dict[str, Any], out: Path) -> str:
    known = "prior" + json.dumps(values, sort_keys=True)
    if known not in _TRACES:
        train_prior(PriorConfig.model_validate({**SMALL, **values}), out)
        lines = [{**json.loads(line), "time": 0} for line in (out / "metrics.jsonl").read_text().splitlines()]
        found = hashlib.sha256(json.dumps(lines).encode())
        for path in [
            *sorted(out.glob("samples/*")),
            *sorted(out.glob("checkpoints/step-*/averaged.safetensors")),
        ]:
            found.update(str(path.relative_to(out)).encode() + path.read_bytes())
        _TRACES[known] = found.hexdigest()
    return _TRACES[known]


@pytest.mark.slow
@pytest.mark.parametrize("key", PRIOR)
def test_the_key_changes_a_prior(key: str, tmp_path: Path) -> None:
    value, beside = PRIOR[key]
    assert prior_trace({**beside, key: value}, tmp_path / "a") != prior_trace(beside, tmp_path / "b")


def test_every_key_of_a_prior_is_here() -> None:
    assert sorted(keys_of(PriorConfig)) == sorted({*PRIOR, *PRIOR_ELSEWHERE})
