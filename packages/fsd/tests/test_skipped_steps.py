"""A step that is skipped changes nothing but the counter."""

import copy
import json

import pytest
import torch
from fsd.build import build_guidance, build_scene, negative_of, optimizer_for
from fsd.cameras import place
from fsd.config import GenerateConfig
from fsd.generate import generate
from fsd.priors.bank import RenderBank
from fsd.priors.multiview import open_prior
from fsd.step import take_step
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


class Begun:
    """A scene with its guidance and all that a step changes."""

    def __init__(self, method, policy, prior):
        self.config = GenerateConfig.model_validate({**SETTINGS, "guidance": [method]})
        self.scene, self.guide = build_scene(self.config, 0), build_guidance(self.config, prior, method, 0)
        self.optimizer, self.guard = optimizer_for(self.config, self.scene), FiniteGuard(policy)
        self.encoded = prior.encode_text("a red object", negative_of(self.config, method))
        self.views, self.rays = (torch.Generator().manual_seed(n) for n in (1, 2))

    def step(self, number):
        return take_step(
            self.config, number, self.scene, self.guide, self.optimizer, self.encoded, self.views, self.rays, self.guard
        )  # fmt: skip

    def state(self):
        parts = {"scene": self.scene, "guide": self.guide, "optimizer": self.optimizer}
        found = {name: part.state_dict() for name, part in parts.items()}
        drawn = [self.views.get_state(), self.rays.get_state(), torch.get_rng_state()]
        return copy.deepcopy({**found, "drawn": drawn})

    def spoil(self, where, broken):
        """The last of what the guard judges that is still finite without this."""
        if where == "prior":
            # After all else: VSD's network has learnt by then.
            target, name = self.guide, "direction"
            if isinstance(self.guide.direction, torch.nn.Module):
                target, name = self.guide.direction, "forward"
            real = getattr(target, name)
            broken.setattr(target, name, lambda view: real(view) * float("nan"))
        elif where == "network":
            real = torch.optim.AdamW.step

            def step(optimizer, *arguments):
                optimizer.param_groups[0]["params"][0].grad.fill_(float("inf"))
                return real(optimizer, *arguments)

            broken.setattr(torch.optim.AdamW, "step", step)
        elif where == "loss":
            broken.setattr("fsd.step.regularisers", lambda config, view: torch.tensor(float("inf")))
        else:
            # Finite itself, with a gradient that is not.
            broken.setattr("fsd.step.regularisers", lambda config, view: (view.image.sum() * 0).abs().sqrt())


METHODS = ["fsd", "cfd", "sds", "sdi", "vsd"]
CASES = [(m, w) for m in METHODS for w in ("prior", "loss", "gradient")] + [("vsd", "network")]
NAMES = {"prior": "prior", "loss": "loss", "gradient": "gradient", "network": "VSD's network"}


def begun(method, policy, bank, tmp_path):
    if method == "vsd":
        pytest.importorskip("peft", reason="needs the extra vsd")
        bank = open_prior(str(tiny_stable_diffusion(tmp_path)))
    return Begun(method, policy, bank)


@pytest.mark.parametrize(("method", "where"), CASES)
def test_a_skipped_step_leaves_every_bit(method, where, bank, monkeypatch, tmp_path):
    it = begun(method, "skip", bank, tmp_path)
    assert it.step(0) is not None
    before = it.state()
    with monkeypatch.context() as broken:
        it.spoil(where, broken)
        assert it.step(1) is None
    assert_same_state(it.state(), before)
    assert it.guard.skipped == 1
    assert it.step(2) is not None
    assert it.guard.in_a_row == 0


@pytest.mark.parametrize(("method", "where"), CASES)
def test_such_a_step_ends_the_object_unless_it_may_be_skipped(method, where, bank, monkeypatch, tmp_path):
    it = begun(method, "error", bank, tmp_path)
    it.step(0)
    before = copy.deepcopy(it.scene.state_dict())
    it.spoil(where, monkeypatch)
    with pytest.raises(NonFiniteError, match=rf"{NAMES[where]}.* is .* at step 2"):
        it.step(1)
    assert_same_state(it.scene.state_dict(), before)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_prior_may_look_for_itself(policy, bank, monkeypatch, tmp_path):
    def refuses(*_):
        raise FloatingPointError("my weights are gone")

    it = begun("fsd", policy, bank, tmp_path)
    monkeypatch.setattr(it.guide, "direction", refuses)
    if policy == "skip":
        assert it.step(0) is None
    else:
        with pytest.raises(FloatingPointError, match="my weights are gone"):
            it.step(0)


def test_a_guidance_in_a_loop_of_ones_own_looks_at_all_that_it_gives(monkeypatch, tmp_path):
    it = begun("vsd", "error", None, tmp_path)
    it.spoil("network", monkeypatch)
    image = torch.rand(2, 3, 16, 16)
    with pytest.raises(FloatingPointError, match="VSD's network gave numbers that are not finite at t="):
        it.guide(image, it.encoded, place([0.0, 90.0]), 0.5)
    out = it.guide(image, it.encoded, place([0.0, 90.0]), 0.5, check=False)
    assert set(out.judged) == {"prior", "VSD's network"}


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
    with pytest.raises(
        NonFiniteError,
        match=r"at step 11: look at the rendered image.* \(10 steps before it were skipped in a row\)$",
    ):
        generate(config, "a red object", "fsd", 0, bank, tmp_path)
