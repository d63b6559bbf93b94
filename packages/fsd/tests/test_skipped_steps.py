"""A step that is skipped changes nothing but the counter."""

import copy
import json

import pytest
import torch
from fsd.build import build_guidance, build_scene, negative_of, optimizer_for
from fsd.config import GenerateConfig
from fsd.generate import generate
from fsd.priors.bank import RenderBank
from fsd.priors.multiview import open_prior
from fsd.step import try_step
from shared_core.run.guard import FiniteGuard, NonFiniteError
from shared_core.run.metrics import read
from shared_core.testing import assert_same_state
from tiny_pipelines import tiny_stable_diffusion

SETTINGS = {
    "prompts": ["a red object"], "steps": 8, "size": 8, "batch_size": 4, "threads": 1, "device": "cpu", "frames": 2,
    "mesh_resolution": 12, "log_every": 1, "on_nonfinite": "skip",
    "field": {"resolution": 8, "samples": 4, "occupancy": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def bank():
    return RenderBank(size=8, azimuths=12)


@pytest.mark.parametrize("method", ["fsd", "cfd", "sds", "sdi", "vsd"])
@pytest.mark.parametrize("where", ["prior", "gradient"])
def test_a_skipped_step_leaves_every_bit(method, where, bank, monkeypatch, tmp_path):
    config = GenerateConfig.model_validate({**SETTINGS, "guidance": [method]})
    if method == "vsd":
        pytest.importorskip("peft", reason="needs the extra vsd")
        bank = open_prior(str(tiny_stable_diffusion(tmp_path)))
    scene, guide = build_scene(config, 0), build_guidance(config, bank, method, 0)
    optimizer, guard = optimizer_for(config, scene), FiniteGuard("skip")
    encoded = bank.encode_text("a red object", negative_of(config, method))
    views, rays = (torch.Generator().manual_seed(n) for n in (1, 2))

    def step(number):
        return try_step(config, number, scene, guide, optimizer, encoded, views, rays, guard)

    def state():
        parts = {"scene": scene, "guide": guide, "optimizer": optimizer}
        found = {name: part.state_dict() for name, part in parts.items()}
        drawn = [views.get_state(), rays.get_state(), torch.get_rng_state()]
        return copy.deepcopy({**found, "drawn": drawn})

    assert step(0) is not None
    before = state()
    with monkeypatch.context() as broken:
        if where == "prior":
            # After all else: VSD's network has learnt by then.
            real = guide.direction.forward if method == "vsd" else guide.direction
            target = guide.direction if method == "vsd" else guide
            broken.setattr(
                target, "forward" if method == "vsd" else "direction", lambda view: real(view) * float("nan")
            )
        else:
            broken.setattr("fsd.step.regularisers", lambda config, view: view.image.sum() * float("inf"))
        assert step(1) is None
    assert_same_state(state(), before)
    assert guard.skipped == 1
    assert step(2) is not None
    assert guard.in_a_row == 0


def test_an_object_says_how_many_steps_it_left_out(bank, tmp_path, monkeypatch):
    import fsd.step

    real, count = fsd.step.regularisers, iter(range(100))
    monkeypatch.setattr(
        "fsd.step.regularisers", lambda *a: real(*a) + (float("nan") if next(count) == 3 else 0.0)
    )
    generate(GenerateConfig.model_validate(SETTINGS), "a red object", "fsd", 0, bank, tmp_path)
    assert json.loads((tmp_path / "object.json").read_text())["skipped_steps"] == 1
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 5, 6, 7, 8]


def test_too_many_in_a_row_end_the_object(bank, tmp_path, monkeypatch):
    monkeypatch.setattr("fsd.step.regularisers", lambda *_: torch.tensor(float("nan")))
    config = GenerateConfig.model_validate({**SETTINGS, "steps": 20})
    with pytest.raises(NonFiniteError, match="10 steps before it were skipped in a row"):
        generate(config, "a red object", "fsd", 0, bank, tmp_path)
