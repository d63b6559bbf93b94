"""A step of a small prior that is left out, by the guard or by a loss scaler, changes nothing but the counter."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from fsd.prior_config import PriorConfig, tiny
from fsd.prior_step import Learner, noised, rate, take_step
from fsd.priors.multiview import join_views
from fsd.priors.pixel_pipeline import build_pipeline
from fsd.train_prior import train_prior
from fsd.world.captions import vocabulary
from shared_core.run.checkpoint import load
from shared_core.run.guard import OVERFLOWS, FiniteGuard, NonFiniteError
from shared_core.run.metrics import read
from shared_core.run.processes import join
from shared_core.testing import assert_same_state
from torch import nn

CONFIG = PriorConfig.model_validate(
    {**tiny().model_dump(), "size": 16, "steps": 100, "threads": 1, "device": "cpu"}
)


class Halved:
    """An accelerator with a loss scaler, on the CPU; gradients overflow while its factor is above `limit`."""

    def __init__(self, limit: float, scale: float = 2.0**16) -> None:
        join("cpu")  # what accelerate's optimizers ask for
        self.scaler, self.limit = torch.amp.GradScaler("cpu", init_scale=scale), limit
        self.optimizer: Any = None

    def prepare(self, optimizer: torch.optim.Optimizer) -> AcceleratedOptimizer:
        self.optimizer = AcceleratedOptimizer(optimizer, device_placement=False, scaler=self.scaler)
        return self.optimizer

    def autocast(self) -> Any:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()
        if self.scaler.get_scale() > self.limit:
            for parameter in self.optimizer.param_groups[0]["params"]:
                parameter.grad.fill_(float("inf"))

    def unscale_gradients(self, optimizer: Any) -> None:
        self.scaler.unscale_(optimizer.optimizer)


class Plain(Halved):
    """Without one."""

    def __init__(self) -> None:
        join("cpu")
        self.scaler = None

    def prepare(self, optimizer: torch.optim.Optimizer) -> AcceleratedOptimizer:
        return AcceleratedOptimizer(optimizer, device_placement=False)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def learner(accelerator: Any, policy: str = "error") -> Learner:
    torch.manual_seed(0)
    pipeline = build_pipeline([*vocabulary(), ","], True, CONFIG.channels, 1, 8, 16)
    join_views(pipeline.unet, CONFIG.views)
    nets = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    averaged = copy.deepcopy(nets).requires_grad_(False)
    optimizer = accelerator.prepare(torch.optim.AdamW(nets.parameters(), CONFIG.learning_rate))
    return Learner(nets, averaged, optimizer, accelerator, FiniteGuard(policy))


def step(who: Learner, number: int, spoil: str = "") -> Any:
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(8, 3, 16, 16, generator=generator)
    if spoil == "loss":
        images[0, 0, 0, 0] = float("nan")
    kept = torch.linspace(0.999, 0.01, 100)
    batch = noised(images, torch.randn(8, 16, generator=generator), kept, CONFIG.views, generator)
    if spoil == "gradient":
        who.nets["unet"].conv_out.weight.register_hook(lambda gradient: gradient * float("inf"))
    return take_step(who, batch, torch.ones(8, 5, dtype=torch.long), number, CONFIG)


def state(who: Learner) -> dict[str, Any]:
    parts = {"nets": who.nets, "averaged": who.averaged, "optimizer": who.optimizer}
    return copy.deepcopy(
        {name: part.state_dict() for name, part in parts.items()} | {"rng": torch.get_rng_state()}
    )


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_skipped_step_leaves_every_bit(spoil: str) -> None:
    who = learner(Plain(), "skip")
    assert step(who, 0) is not None
    before = state(who)
    assert step(who, 1, spoil) is None
    assert_same_state(state(who), before)
    assert who.guard.skipped == 1


def test_rate_and_average_go_on_as_if_the_step_had_not_been() -> None:
    who, other = learner(Plain(), "skip"), learner(Plain(), "skip")
    step(who, 0)
    step(who, 1, "loss")
    taken = step(who, 2)
    step(other, 0)
    other.guard.skipped = 1
    assert taken.learning_rate == step(other, 2).learning_rate == CONFIG.learning_rate * rate(1, CONFIG)
    assert_same_state(state(who), state(other))


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_under_error_such_a_step_ends_the_run_before_it_moves_anything(spoil: str) -> None:
    who = learner(Plain())
    step(who, 0)
    before = state(who)
    with pytest.raises(NonFiniteError, match=f"loss part '{spoil}' is .* at step 2: "):
        step(who, 1, spoil)
    assert_same_state(state(who), before)


def test_ten_in_a_row_are_the_limit() -> None:
    who = learner(Plain(), "skip")
    for number in range(10):
        assert step(who, number, "loss") is None
    with pytest.raises(NonFiniteError, match=r"at step 11: .*\(10 steps before it were skipped in a row\)$"):
        step(who, 10, "loss")


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_what_a_loss_scaler_leaves_out_moves_neither_rate_nor_average_and_is_counted(policy: str) -> None:
    who = learner(Halved(2.0**14), policy)
    before = state(who)
    assert [step(who, number) is None for number in range(2)] == [True, True]
    assert_same_state(state(who), before)
    assert who.guard.skipped == 2
    taken = step(who, 2)
    assert taken.learning_rate == CONFIG.learning_rate * rate(0, CONFIG)
    # The average after one step: nine tenths of the way.
    weight = "unet.conv_in.weight"
    kept, new, old = who.averaged.state_dict()[weight], who.nets.state_dict()[weight], before["nets"][weight]
    torch.testing.assert_close(kept, old.lerp(new, 0.9))
    assert not torch.equal(new, old)


def test_gradients_are_clipped_and_shown_without_the_scalers_factor() -> None:
    plain, scaled = (step(learner(one), 0) for one in (Plain(), Halved(2.0**20)))
    torch.testing.assert_close(scaled.gradient_norm, plain.gradient_norm, rtol=1e-4, atol=0)


def test_gradients_that_no_factor_helps_end_the_run() -> None:
    who = learner(Halved(0.0))
    for number in range(OVERFLOWS - 1):
        assert step(who, number) is None
    with pytest.raises(NonFiniteError, match=f"the loss scaler left out {OVERFLOWS} steps in a row"):
        step(who, OVERFLOWS)


def test_a_run_counts_what_it_left_out_and_goes_on_from_there(tmp_path: Path, monkeypatch: Any) -> None:
    settings = {
        "steps": 8,
        "sample_every": 8,
        "checkpoint_every": 5,
        "sample_steps": 2,
        "on_nonfinite": "skip",
    }
    config, real = CONFIG.model_copy(update=settings), noised

    def run(out: Path, until: int = 99) -> dict[str, Any]:
        made = iter(range(until))

        def spoiled(images: torch.Tensor, cameras: Any, kept: Any, views: int, generator: Any) -> Any:
            next(made)
            if generator.initial_seed() % 1_000_000_007 == 3:
                images[0, 0, 0, 0] = float("nan")
            return real(images, cameras, kept, views, generator)

        monkeypatch.setattr("fsd.train_prior.noised", spoiled)
        return train_prior(config, out, resume=out.exists())

    result = run(tmp_path / "straight")
    assert result["skipped_steps"] == 1
    assert json.loads((tmp_path / "straight" / "result.json").read_text())["skipped_steps"] == 1
    assert [line["step"] for line in read(tmp_path / "straight" / "metrics.jsonl")] == [1, 2, 3, 5, 6, 7, 8]
    with pytest.raises(StopIteration):
        run(tmp_path / "broken", until=6)
    assert run(tmp_path / "broken")["skipped_steps"] == 1
    assert_same_state(*(load(tmp_path / name / "checkpoints").tensors for name in ("straight", "broken")))


def test_fp16_wants_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fp16 needs a GPU; choose bf16 or fp32"):
        train_prior(CONFIG.model_copy(update={"precision": "fp16"}), tmp_path / "run")
