"""The recipe: interrupted runs equal straight ones bit for bit, two processes equal one, nothing is lost."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from corsd import Distiller, Weights, train
from corsd.config import LossVariant, LossWeights, Method, Optim, Relations, TrainConfig
from corsd.data import open_data
from corsd.layout import layout
from corsd.methods import batch_plan, build_method
from corsd.pairs import triplet_plan
from corsd.schedule import rate_schedule
from corsd.train import train_cell
from corsd.training_step import gradient_shares
from safetensors.torch import load_file
from shared_core.run import checkpoint
from shared_core.run.guard import NonFiniteError
from shared_core.testing import assert_same_state, run_ranks, scale_losses
from torch import nn

TINY = TrainConfig(
    data="digits",
    model="small:resnet10",
    width=8,
    images_per_class=12,
    augment="crop",
    epochs=1.5,
    batch_size=24,
    log_every=1,
    checkpoint_every=2,
    threads=1,
    device="cpu",
)


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def assert_equal_runs(a: Path, b: Path) -> None:
    assert_same_state(load_file(a / "net.safetensors"), load_file(b / "net.safetensors"))
    assert metrics(a) == metrics(b)
    results = [json.loads((folder / "result.json").read_text()) for folder in (a, b)]
    assert results[0].pop("core_seconds") > 0
    assert results[0].pop("seconds") > 0
    assert results[0] == {key: value for key, value in results[1].items() if "seconds" not in key}


METHODS = {
    "corsd": {"relations": Relations(exits="detached")},
    "corsd_triplets": {"method": "corsd", "pairs": "triplets", "workers": 1},
    "ps_kd": {},
    "dlb": {},
    "byot": {"accumulate": 2, "validation": 0.25},
    "corsd_v2": {"accumulate": 2},
    "balanced views": {"method": "corsd_v2", "views": 2, "images_per_class_in_batch": 3},
    "cutmix": {},
    "mixskd": {},
    "ols": {},
}


@pytest.mark.parametrize("name", METHODS)
def test_stopped_and_resumed_equals_straight(name, tmp_path, monkeypatch):
    config = TINY.model_copy(update={"method": name, **METHODS[name]})
    train_cell(config, seed=3, out=tmp_path / "straight")

    # The signal arrives in the third step, between two checkpoints of the schedule.
    build, calls = train.build_method, []

    def stop_in_third_step(*arguments):
        method = build(*arguments)

        def count(*_):
            calls.append(1)
            if len(calls) == 3 * config.accumulate:
                os.kill(os.getpid(), signal.SIGTERM)

        method.register_forward_pre_hook(count)
        return method

    monkeypatch.setattr(train, "build_method", stop_in_third_step)
    with pytest.raises(SystemExit) as stopped:
        train_cell(config, seed=3, out=tmp_path / "resumed")
    assert stopped.value.code == 143
    assert not (tmp_path / "resumed" / "result.json").exists()

    monkeypatch.setattr(train, "build_method", build)
    train_cell(config, seed=3, out=tmp_path / "resumed", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


def _start(config_file: Path, out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "corsd", "train", "--config", str(config_file), "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_without_warning_and_resumed_equals_straight(tmp_path):
    config_file = tmp_path / "config.yaml"
    config = TINY.model_copy(update={"images_per_class": 60, "seeds": [3]})
    config_file.write_text(json.dumps(config.model_dump(mode="json")))
    killed = tmp_path / "killed"
    process = _start(config_file, killed)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "result.json").exists()
    train_cell(config, seed=3, out=killed, resume=True)
    train_cell(config, seed=3, out=tmp_path / "straight")
    assert_equal_runs(killed, tmp_path / "straight")


def test_finished_cell_is_not_trained_again(tmp_path, monkeypatch):
    first = train_cell(TINY, seed=0, out=tmp_path / "a")
    monkeypatch.setattr(train, "open_data", lambda _: pytest.fail("a finished cell was opened again"))
    assert train_cell(TINY, seed=0, out=tmp_path / "a", resume=True) == first


def test_workers_and_seed_decide_what_they_should(tmp_path):
    train_cell(TINY, 0, tmp_path / "a")
    train_cell(TINY.model_copy(update={"workers": 2}), 0, tmp_path / "b")
    train_cell(TINY, 1, tmp_path / "c")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


def test_every_method_sees_the_same_number_of_images(tmp_path):
    seen = set()
    for method in ("ce", "ce_triplets", "corsd", "cs_kd", "dlb", "label_smoothing"):
        config = TINY.model_copy(update={"method": method})
        seen.add(train_cell(config, 0, tmp_path / method)["images_seen"])
    assert seen == {round(1.5 * 120 / 24) * 24}


@pytest.mark.parametrize("method", get_args(Method))
def test_a_step_shows_the_net_as_many_images_as_the_budget_counts(method):
    """Rotated, mixed and repeated images count: batch_size is what passes through the net."""
    config, seen = TINY.model_copy(update={"method": method}), []
    data = open_data(config)
    rows = batch_plan(config, data.labels, 0)[0](0)[0, :, 0]
    net = train.build_net(config, data)
    made = build_method(config, net, data, 0, 10)
    net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    made(torch.rand(len(rows), 1, 8, 8), data.labels[rows], rows)
    assert sum(seen) == config.batch_size


def test_batch_that_does_not_divide(tmp_path):
    config = TINY.model_copy(update={"pairs": "triplets", "batch_size": 32})
    with pytest.raises(ValueError, match=r"batch_size=32 does not divide.*groups of 3; choose 30 or 33"):
        train_cell(config, 0, tmp_path / "a")


def test_nan_images_stop_the_run_with_the_part_that_broke(tmp_path, monkeypatch):
    from corsd import data

    broken = lambda self, images: torch.full((len(images), 1, 8, 8), float("nan"))  # noqa: E731
    monkeypatch.setattr(data.Preprocess, "__call__", broken)
    with pytest.raises(NonFiniteError, match=r"loss part 'ce' is nan at step 1"):
        train_cell(TINY, 0, tmp_path / "a")


SKIPPED = {
    **{method: {} for method in get_args(Method)},
    "corsd triplets": {"method": "corsd", "pairs": "triplets"},
    "corsd ema": {"method": "corsd", "relations": Relations(variant=LossVariant(prototype="ema"))},
    "corsd exits": {"method": "corsd", "relations": Relations(exits="joint")},
    "corsd in two parts": {"method": "corsd", "accumulate": 2},
    "dlb in two parts": {"method": "dlb", "accumulate": 2},
    "ps_kd in two parts": {"method": "ps_kd", "accumulate": 2},
}


def poison(monkeypatch, number: int) -> None:
    """One pixel of the training batch of this number, from 1 on, is NaN; a look at the relations is none."""
    from corsd import data

    usual, calls = data.Preprocess.__call__, []

    def broken(self, images):
        images = usual(self, images)
        if not torch.is_grad_enabled():
            return images
        calls.append(1)
        if len(calls) == number:
            images[0, 0, 0, 0] = float("nan")
        return images

    monkeypatch.setattr(data.Preprocess, "__call__", broken)


@pytest.mark.parametrize("name", SKIPPED)
def test_a_skipped_step_changes_nothing_but_the_counter(name, tmp_path, monkeypatch):
    options = {"method": name, **SKIPPED[name], "on_nonfinite": "skip", "checkpoint_every": 1}
    config = TINY.model_copy(update=options)
    # the third step's first micro-batch is broken, and with it the whole step
    poison(monkeypatch, 2 * config.accumulate + 1)
    with monkeypatch.context() as three_steps:
        three_steps.setattr(train, "evaluate", lambda *_: {})
        result = train_cell(config.model_copy(update={"epochs": 0.6}), 0, tmp_path / "a")
    assert result["skipped_steps"] == 1
    before, after = (checkpoint.load(tmp_path / "a" / "checkpoints" / f"step-00000{n}") for n in (2, 3))
    assert (before.tensors.pop("guard")["skipped"], after.tensors.pop("guard")["skipped"]) == (0, 1)
    assert_same_state(before.tensors, after.tensors)
    assert torch.equal(before.state["rng"]["torch"], after.state["rng"]["torch"])


def scaled(monkeypatch, overflows) -> None:
    """Training under a loss scaler, on the CPU."""
    usual = train.join

    def join(*given):
        accelerator = usual(*given)
        scale_losses(accelerator, overflows)
        return accelerator

    monkeypatch.setattr(train, "join", join)


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_that_the_loss_scaler_leaves_out_is_a_skipped_one(policy, clip, tmp_path, monkeypatch):
    scaled(monkeypatch, lambda scale: scale > 2**14)
    options = {"on_nonfinite": policy, "clip_grad_norm": clip, "epochs": 0.8, "checkpoint_every": 1}
    states = []

    def save(folder, number, saved, state):
        states.append(copy.deepcopy({name: part.state_dict() for name, part in saved.items()}))

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(train, "evaluate", lambda *_: {})
    result = train_cell(TINY.model_copy(update=options), 0, tmp_path / "a")
    assert result["skipped_steps"] == 2
    assert [state.pop("guard")["skipped"] for state in states] == [1, 2, 2, 2]
    assert [state.pop("scaler")["scale"] for state in states] == [2**15, 2**14, 2**14, 2**14]
    if policy == "error":  # the statistics of a forward pass are kept back where steps may be skipped
        for state in states:
            state.pop("method")
    assert_same_state(states[1], states[0])
    assert [state["schedule"]["last_epoch"] for state in states] == [0, 0, 1, 2]
    rates = [line["lr"] for line in metrics(tmp_path / "a") if "lr" in line]
    assert rates[0] == rates[1] != rates[2]


def test_gradients_that_overflow_at_every_scale_end_the_run(tmp_path, monkeypatch):
    scaled(monkeypatch, lambda _scale: True)
    with pytest.raises(NonFiniteError, match=r"left out 40 steps in a row up to step 40: .*bf16"):
        train_cell(TINY.model_copy(update={"method": "ce", "epochs": 20.0}), 0, tmp_path / "a")


@pytest.mark.parametrize("name", ["corsd", "dlb", "ps_kd", "byot"])
def test_a_run_goes_on_after_a_skipped_step(name, tmp_path, monkeypatch):
    poison(monkeypatch, 2)
    config = TINY.model_copy(update={"method": name, "on_nonfinite": "skip"})
    result = train_cell(config, 0, tmp_path / "a")
    assert result["skipped_steps"] == 1
    assert all(v.isfinite().all() for v in load_file(tmp_path / "a" / "net.safetensors").values())
    losses = [line["loss"] for line in metrics(tmp_path / "a") if "loss" in line]
    assert [math.isfinite(float(loss)) for loss in losses] == [True, False] + [True] * (len(losses) - 2)


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is(tmp_path, monkeypatch):
    usual = train.build_net

    def net_with_infinite_slope(*arguments):
        net = usual(*arguments)
        # 0 at 0, with an infinite slope there
        net.register_forward_hook(lambda _m, _i, logits: logits + (0 * logits).sqrt())
        return net

    monkeypatch.setattr(train, "build_net", net_with_infinite_slope)
    with pytest.raises(NonFiniteError, match=r"'gradient' is .* at step 1"):
        train_cell(TINY.model_copy(update={"method": "ce"}), 0, tmp_path / "a")


@pytest.mark.parametrize(
    ("channels", "kernel", "device", "expected"),
    [
        (8, 1, "cpu", torch.contiguous_format),
        (16, 1, "cpu", torch.channels_last),
        (8, 3, "cpu", torch.channels_last),
        (8, 1, "cuda", torch.channels_last),
    ],
)
def test_a_narrow_shortcut_is_not_trained_channels_last_on_a_cpu(channels, kernel, device, expected):
    net = torch.nn.Sequential(torch.nn.Conv2d(channels, 16, kernel, stride=2))
    assert layout(TINY.model_copy(update={"channels_last": True}), net, torch.device(device)) == expected
    plain = TINY.model_copy(update={"channels_last": False})
    assert layout(plain, net, torch.device(device)) == torch.contiguous_format


def test_full_disk_while_saving_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    write, calls = checkpoint._write, []

    def second_fails(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(checkpoint, "_write", second_fails)
    with pytest.raises(OSError, match=r"older ones are intact: No space left"):
        train_cell(TINY, 0, tmp_path / "a")
    monkeypatch.setattr(checkpoint, "_write", write)
    assert checkpoint.load(tmp_path / "a" / "checkpoints").step == 2
    train_cell(TINY, 0, tmp_path / "a", resume=True)
    train_cell(TINY, 0, tmp_path / "straight")
    assert_equal_runs(tmp_path / "a", tmp_path / "straight")


def test_gradient_shares_are_of_the_parts():
    net = nn.Linear(2, 1, bias=False)
    x = torch.ones(1, 2)
    shares = gradient_shares({"a": net(x).sum(), "b": 3 * net(x).sum(), "c": torch.zeros(())}, net)
    assert shares == pytest.approx({"a": 0.25, "b": 0.75})


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_schedules_of_any_length_stay_between_0_and_the_peak(schedule, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    rates = rate_schedule(TINY.model_copy(update={"optim": Optim(schedule=schedule)}), optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rates.step()
    assert all(0 < rate <= 0.1 + 1e-12 for rate in seen)


def test_loss_falls_and_digits_are_learnt(tmp_path):
    config = TINY.model_copy(update={"images_per_class": None, "epochs": 3.0, "optim": Optim(lr=0.05)})
    result = train_cell(config, 0, tmp_path / "a")
    assert result["accuracy"] > 85
    assert result["noise"]["0.05"] > 75
    assert 0 <= result["calibration_error"] < 40
    assert len(result["per_class"]) == 10


# two processes


def group_norm_net() -> nn.Module:
    torch.manual_seed(0)

    def stage(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(4, b), nn.ReLU())

    return nn.Sequential(stage(1, 8), stage(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def _twenty_steps(pairs: str) -> dict[str, torch.Tensor]:
    """Twenty steps in float64 on this process's slice of the global batch."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    distiller = Distiller(
        group_norm_net().double(),
        ["0", "1"],
        10,
        torch.zeros(2, 1, 8, 8),
        pairs=pairs,
        gather=True,
        norm="group",
        weights=Weights(**LossWeights(triplet=0.5, relation=0.5, logit_relation=0.5).model_dump()),
    ).double()
    model = nn.parallel.DistributedDataParallel(distiller) if world > 1 else distiller
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(60, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.arange(60) % 10
    plan = triplet_plan(labels, 8, seed=0)
    for step in range(20):
        rows = plan(step)[0, :, 0].view(world, -1)[rank]
        model(images[rows], labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {key: value.clone() for key, value in distiller.state_dict().items()}


@pytest.mark.parametrize("pairs", ["triplets", "in_batch"])
def test_two_processes_equal_one(pairs):
    alone = _twenty_steps(pairs)
    for state in run_ranks(_twenty_steps, 2, pairs):
        for key, value in alone.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


def test_two_processes_train_one_run(tmp_path):
    """The whole recipe under torchrun: both ranks end well, one of them writes, every image is seen."""
    config_file = tmp_path / "config.yaml"
    config_file.write_text(json.dumps(TINY.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "corsd", "train"]
    ended = subprocess.run(
        [*command, "--config", str(config_file), "--out", str(tmp_path / "a")],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["images_seen"] == round(1.5 * 120 / 24) * 24
    assert [line["step"] for line in metrics(tmp_path / "a")] == list(range(1, 9))


@pytest.mark.gpu
def test_gpu_trains_in_half_precision(tmp_path):
    config = TINY.model_copy(update={"device": "auto", "precision": "fp16"})
    assert train_cell(config, 0, tmp_path / "a")["accuracy"] > 10
