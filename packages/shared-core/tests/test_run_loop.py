"""The loop: a training that is stopped, killed or broken anywhere ends as if nothing had happened."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_core.run import checkpoint, metrics
from shared_core.run.folder import RunFolder
from shared_core.run.loop import Loop
from shared_core.run.stop import StopFlag
from shared_core.testing import assert_same_state, run_ranks
from torch import nn

STEPS = 10


class Killed(BaseException):
    """What no handler expects."""


def train(path: Path | None, before: Any = lambda step: None, **options: Any) -> tuple[dict[str, Any], Loop]:
    """Ten steps with dropout and momentum, checkpoints every four; `before` is called in each step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    saved = {"net": net, "optimizer": optimizer}
    folder = None if path is None else RunFolder(path)
    with Loop(folder, STEPS, saved, checkpoint_every=4, **options) as loop:
        if loop.done == 0:
            loop.log(start=1.0)
        for step in loop:
            before(step)
            loss = net(torch.randn(3, 4)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if loop.due(3):
                loop.log({"seconds": loop.seconds}, loss=loss)
    return {"net": net.state_dict(), "optimizer": optimizer.state_dict()}, loop


def lines(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "time"} for line in metrics.read(path / "metrics.jsonl")]


def at(step: int, act: Any) -> Any:
    def before(now: int) -> None:
        if now == step:
            act()

    return before


def kill() -> None:
    raise Killed


def tell(number: int) -> Any:
    return lambda: os.kill(os.getpid(), number)


def test_lines_and_checkpoints_are_where_they_are_due(tmp_path):
    _, loop = train(tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 3, 6, 9, 10]
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == ["step-000008", "step-000010"]
    assert loop.done == STEPS
    assert loop.core_seconds > 0
    assert loop.seconds > 0


@pytest.mark.parametrize("step", range(STEPS))
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, step):
    expected, _ = train(tmp_path / "straight")
    with pytest.raises(Killed):
        train(tmp_path / "killed", at(step, kill))
    seen: list[int] = []
    resumed, _ = train(tmp_path / "killed", seen.append)
    assert seen[0] == step // 4 * 4
    assert_same_state(resumed, expected)
    assert lines(tmp_path / "killed") == lines(tmp_path / "straight")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [0, 5, 8])
def test_a_stopped_training_saves_its_step_and_goes_on_bit_for_bit(tmp_path, number, code, step):
    expected, _ = train(tmp_path / "straight")
    with pytest.raises(SystemExit) as left:
        train(tmp_path / "stopped", at(step, tell(number)))
    assert left.value.code == code
    found = checkpoint.load_latest(tmp_path / "stopped" / "checkpoints")
    assert found is not None
    assert found.step == step + 1
    resumed, _ = train(tmp_path / "stopped")
    assert_same_state(resumed, expected)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")


def test_a_signal_in_the_last_step_is_no_reason_to_end_early(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    _, loop = train(tmp_path, at(STEPS - 1, tell(signal.SIGTERM)))
    assert loop.done == STEPS
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_flag_that_loops_share_stops_the_first_and_is_the_callers(tmp_path):
    with StopFlag() as stop:
        with pytest.raises(SystemExit):
            train(tmp_path, at(2, tell(signal.SIGTERM)), stop=stop)
        assert stop.stopped


def test_a_finished_training_does_nothing_more(tmp_path):
    expected, _ = train(tmp_path)
    again, loop = train(tmp_path, kill)
    assert_same_state(again, expected)
    assert loop.done == STEPS
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 3, 6, 9, 10]


def test_without_resume_it_begins_anew(tmp_path):
    expected, _ = train(tmp_path / "one")
    with pytest.raises(Killed):
        train(tmp_path / "two", at(7, kill))
    seen: list[int] = []
    again, _ = train(tmp_path / "two", seen.append, resume=False)
    assert seen == list(range(STEPS))
    assert_same_state(again, expected)
    assert lines(tmp_path / "one") == lines(tmp_path / "two")


def test_without_a_folder_nothing_is_written_and_the_numbers_are_the_same(tmp_path):
    expected, _ = train(tmp_path / "kept")
    found, _ = train(None)
    assert_same_state(found, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_seconds_count_all_lives(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.process_time", lambda: float(next(clock)))
    with pytest.raises(SystemExit):
        train(tmp_path, at(3, tell(signal.SIGTERM)))
    first = checkpoint.load_latest(tmp_path / "checkpoints")
    assert first is not None
    train(tmp_path)
    second = checkpoint.load_latest(tmp_path / "checkpoints")
    assert second is not None
    assert second.state["core_seconds"] > first.state["core_seconds"] > 0


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    train(tmp_path)
    with (
        pytest.raises(checkpoint.CheckpointError, match="holds no other"),
        Loop(RunFolder(tmp_path), STEPS, {"other": nn.Linear(1, 1)}),
    ):
        pass


def test_a_loop_that_is_not_open_says_so(tmp_path):
    loop = Loop(RunFolder(tmp_path), STEPS, {})
    with pytest.raises(RuntimeError, match="with Loop"):
        next(iter(loop))


def two(folder: str) -> tuple[int, int, list[int]]:
    """Rank 1 alone is told to stop in step 2."""
    from shared_core.ops.gather import rank

    def before(step: int) -> None:
        if rank() == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(Path(folder), before)
    except SystemExit as left:
        code = int(str(left.code))
    seen: list[int] = []
    _, loop = train(Path(folder), seen.append)
    return code, loop.done, seen


def test_processes_stop_and_go_on_together(tmp_path):
    for code, done, seen in run_ranks(two, 2, str(tmp_path)):
        assert (code, done, seen) == (143, STEPS, list(range(3, STEPS)))
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 3, 6, 9, 10]
