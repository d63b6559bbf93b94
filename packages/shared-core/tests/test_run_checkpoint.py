import errno
import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from shared_core.run import checkpoint
from shared_core.run.checkpoint import CheckpointError, latest, load, rng_state, save, set_rng_state
from shared_core.testing import assert_same_state, run_ranks
from torch import nn


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    return {"model": model, "optimizer": optimizer, "schedule": schedule}


def test_everything_comes_back_bit_for_bit(tmp_path):
    modules = trained()
    state = {
        "epoch": 3,
        "best": float("nan"),
        "names": ["a"],
        "ema": torch.randn(3),
        "nested": {1: (2, None)},
    }
    path = save(tmp_path, 500, modules, state)
    assert path.name == "step-000500"
    assert sorted(p.name for p in path.iterdir()) == ["meta.json", "model.safetensors", "state.pt"]
    found = load(tmp_path)
    assert (found.path, found.step) == (path, 500)
    for name, module in modules.items():
        expected = dict(module.state_dict())
        assert_same_state(
            {key: expected[key] for key in sorted(expected)},
            {key: found.tensors[name][key] for key in sorted(found.tensors[name])},
        )
        module.load_state_dict(found.tensors[name])
    assert_same_state({**state, "best": 0}, {**found.state, "best": 0})
    assert (tmp_path / "latest").resolve() == path.resolve()
    assert load(path).step == 500


def test_generators_come_back(tmp_path):
    torch.manual_seed(3)
    random.seed(3)
    random.gauss(0, 1)
    # Unwrapped: the shape checker itself draws from Python's generator.
    state = inspect.unwrap(rng_state)()
    expected = torch.rand(3), random.random(), random.gauss(0, 1)
    save(tmp_path, 1, {}, {"rng": state})
    torch.manual_seed(9)
    random.seed(9)
    found = load(tmp_path).state["rng"]
    inspect.unwrap(set_rng_state)(found)
    drawn = torch.rand(3), random.random(), random.gauss(0, 1)
    assert_same_state(expected, drawn)


def test_tied_and_strided_weights(tmp_path):
    model = net()
    model[2].weight = nn.Parameter(torch.randn(4, 2).t())
    model.register_parameter("again", model[0].weight)
    save(tmp_path, 1, {"model": model})
    tensors = load(tmp_path).tensors["model"]
    assert torch.equal(tensors["again"], tensors["0.weight"])
    assert torch.equal(tensors["2.weight"], model[2].weight)


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 9):
        save(tmp_path, step, {"model": net(step)}, keep=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "latest",
        "step-000002",
        "step-000009",
        "step-000010",
    ]


def test_the_same_step_again_replaces(tmp_path):
    save(tmp_path, 1, {"model": net(0)})
    save(tmp_path, 1, {"model": net(1)})
    assert torch.equal(load(tmp_path).tensors["model"]["0.weight"], net(1)[0].weight)


def test_a_second_writing_of_a_step_that_fails_keeps_the_first(tmp_path, monkeypatch):
    save(tmp_path, 1, {"model": net(0)})
    monkeypatch.setattr(checkpoint, "save_file", fail_with(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="step 1 was not saved"):
        save(tmp_path, 1, {"model": net(1)})
    assert torch.equal(load(tmp_path).tensors["model"]["0.weight"], net(0)[0].weight)


@pytest.mark.parametrize("killed", [False, True])
def test_a_failure_between_the_two_renames_of_a_replacement(tmp_path, monkeypatch, killed):
    target = save(tmp_path, 1, {"model": net(0)}, keep=1)
    rename = os.rename

    def second_fails(source, destination):
        if Path(destination) == target and "replaced" not in str(source):
            raise KeyboardInterrupt
        rename(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "rename", second_fails)
        if killed:
            patch.setattr(checkpoint, "_give_up", lambda *paths: None)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 1, {"model": net(1)}, keep=1)
    if killed:
        assert not target.exists()
        save(tmp_path, 2, {"model": net(2)}, keep=2)
    assert torch.equal(load(target).tensors["model"]["0.weight"], net(0)[0].weight)
    assert not list(tmp_path.glob(".step-*"))


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("where", ["save_file", "_sha256", "sync_folder"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_place_leaves_the_older_ones(tmp_path, monkeypatch, where, error):
    save(tmp_path, 1, {"model": net(0)})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, where, fail_with(error))
        with pytest.raises(type(error)) as caught:
            save(tmp_path, 2, {"model": net(1)})
    if isinstance(error, OSError):
        assert "the checkpoint of step 2 was not saved, older ones are intact: No space left" in str(
            caught.value
        )
        assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.glob(".step-*"))
    assert load(tmp_path).step == 1
    save(tmp_path, 2, {"model": net(1)})
    assert load(tmp_path).step == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    save(tmp_path, 1, {"model": net(0)})

    def into_full(values, path):
        with open("/dev/full", "wb") as file:
            file.write(b"x" * 10_000)

    monkeypatch.setattr(checkpoint, "save_file", into_full)
    with pytest.raises(OSError, match="older ones are intact: No space left on device"):
        save(tmp_path, 2, {"model": net(1)})
    assert load(tmp_path).step == 1


WRITER = """
import sys, torch
from shared_core.run.checkpoint import save
step = 0
while True:
    step += 1
    save(sys.argv[1], step, {"model": torch.nn.Linear(300, 300)}, {"value": step})
    print(step, flush=True)
"""


def test_kill_9_while_writing(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        seen = int(process.stdout.readline())
        time.sleep(0.063)
        process.send_signal(signal.SIGKILL)
        seen = max([seen, *map(int, process.stdout.read().split())])
    found = load(tmp_path)
    assert found.step >= seen
    assert found.state["value"] == found.step
    save(tmp_path, found.step + 1, {"model": nn.Linear(300, 300)})
    assert not list(tmp_path.glob(".step-*"))


def broken(path: Path, how: str):
    file = path / "model.safetensors"
    if how == "torn":
        file.write_bytes(file.read_bytes()[:-5])
    elif how == "one bit":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "missing":
        file.unlink()
    elif how == "meta":
        (path / "meta.json").write_text('{"step": ')
    elif how == "meta keys":
        (path / "meta.json").write_text('{"files": {}}')


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("torn", r"model.safetensors has \d+ bytes instead of \d+"),
        ("one bit", "model.safetensors was changed after it was written"),
        ("missing", "model.safetensors is missing"),
        ("meta", "meta.json: JSONDecodeError"),
        ("meta keys", "meta.json: KeyError"),
    ],
)
def test_a_broken_one_is_passed_over_with_a_warning(tmp_path, how, reason):
    save(tmp_path, 1, {"model": net()})
    broken(save(tmp_path, 2, {"model": net()}), how)
    with pytest.warns(UserWarning, match=rf"passed over the broken checkpoint .*step-000002: {reason}"):
        assert load(tmp_path).step == 1
    with pytest.raises(CheckpointError, match=rf"step-000002 is broken: {reason}"):
        load(tmp_path / "step-000002")


def test_no_checkpoint(tmp_path):
    assert latest(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        load(tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/should-not-exist",)


def test_code_is_refused_and_named_when_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"system, which is more than plain values .* could run code"):
        save(tmp_path, 1, {"model": net()}, {"evil": Evil()})
    assert list(tmp_path.iterdir()) == []


def test_code_is_refused_and_named_when_loaded(tmp_path):
    path = save(tmp_path, 1, {"model": net()})
    torch.save({"modules": {}, "state": {"evil": Evil()}}, path / "state.pt")
    meta = json.loads((path / "meta.json").read_text())
    file = path / "state.pt"
    meta["files"]["state.pt"] = {"bytes": file.stat().st_size, "sha256": checkpoint._sha256(file)}
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="system, which is more than plain values"):
        load(tmp_path)
    assert not Path("/tmp/should-not-exist").exists()


def test_wrong_names_and_keep(tmp_path):
    with pytest.raises(ValueError, match=r"module name '../x': use letters, digits"):
        save(tmp_path, 1, {"../x": net()})
    with pytest.raises(ValueError, match="keep is 0"):
        save(tmp_path, 1, {"model": net()}, keep=0)


def test_a_meta_file_cannot_reach_outside(tmp_path):
    path = save(tmp_path / "a", 1, {"model": net()})
    save(tmp_path / "b", 1, {"model": net(1)})
    meta = json.loads((path / "meta.json").read_text())
    meta["modules"] = ["../../b/step-000001/model"]
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="modules"):
        load(path)


def save_on_both(folder):
    path = save(folder, 7, {"model": net()}, {"rank": torch.distributed.get_rank()})
    torch.distributed.barrier()
    return path, load(folder).state["rank"]


def test_only_rank_0_writes(tmp_path):
    assert run_ranks(save_on_both, 2, str(tmp_path)) == [(tmp_path / "step-000007", 0)] * 2


def test_resuming_hashes_every_file_once(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step, {"model": torch.nn.Linear(2, 2)}, {"a": 1})
    hashed = []
    kept = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: hashed.append(path.name) or kept(path))
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.step == 2
    assert sorted(hashed) == ["model.safetensors", "state.pt"]
    hashed.clear()
    assert load(tmp_path).step == 2
    assert sorted(hashed) == ["model.safetensors", "state.pt"]
    assert checkpoint.load_latest(tmp_path / "nowhere") is None
