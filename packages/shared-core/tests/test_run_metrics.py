import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_core.run.metrics import MetricsLog, cut_back, read


def test_a_line_per_step_with_times_apart(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(step=1, loss=torch.tensor(0.1, dtype=torch.float64), n=np.int64(3), time={"seconds": 0.5})
        log.log(step=2, parts={"a": [1, 2.5]}, name="über", flag=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines == [
        '{"step": 1, "loss": 0.1, "n": 3, "time": {"seconds": 0.5}}',
        '{"step": 2, "parts": {"a": [1, 2.5]}, "name": "über", "flag": true}',
    ]
    assert read(path) == [json.loads(line) for line in lines]


@given(st.lists(st.floats(allow_nan=True), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_floats_come_back_bit_for_bit(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(step=0, values=values)
    json.loads(path.read_text(), parse_constant=pytest.fail)
    found = read(path)[0]["values"]
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(found, values, strict=True))


def written(tmp_path, steps):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in steps:
            log.log(step=step, loss=step / 3)
    return path


def test_cut_back_gives_the_file_of_a_run_that_stopped_there(tmp_path):
    path = written(tmp_path, range(10))
    expected = written(tmp_path / "short", range(6)).read_bytes()
    cut_back(path, 5)
    assert path.read_bytes() == expected
    with MetricsLog(path) as log:
        log.log(step=6)
    assert [record["step"] for record in read(path)] == list(range(7))


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b"{", b'{"step": 3}'])
def test_a_torn_last_line(tmp_path, torn):
    path = written(tmp_path, range(3))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(read(path)) == 3
    cut_back(path, 100)
    assert path.read_bytes() == whole


def test_cut_back_of_nothing(tmp_path):
    cut_back(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = written(tmp_path, range(3))
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1, is not a line of metrics"):
        read(path)


def test_a_killed_process_loses_no_line(tmp_path):
    code = (
        "import os, sys\nfrom shared_core.run.metrics import MetricsLog\n"
        "log = MetricsLog(sys.argv[1])\nlog.log(step=1)\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.jsonl")], check=False)
    assert read(tmp_path / "m.jsonl") == [{"step": 1}]


# tensorboard's own protobuf files warn, on some versions.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    with MetricsLog(tmp_path / "metrics.jsonl", tracker="tensorboard") as log:
        log.log(step=4, loss=0.25, name="text", best=True, parts={"ce": 0.5, "deep": {"kl": 1}}, many=[1, 2])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(4, 0.25)]
    assert sorted(events.Tags()["scalars"]) == ["loss", "parts/ce", "parts/deep/kl"]


def test_wandb_gets_scalars(tmp_path, monkeypatch):
    calls = []
    run = type(
        "Run",
        (),
        {"log": lambda s, v, step: calls.append((step, v)), "finish": lambda s: calls.append("end")},
    )
    fake = type(sys)("wandb")
    fake.init = lambda project, name, dir: calls.append((project, name)) or run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricsLog(tmp_path / "metrics.jsonl", tracker="wandb", project="corsd") as log:
        log.log(step=1, loss=2)
    assert calls == [("corsd", tmp_path.name), (1, {"loss": 2.0}), "end"]


def test_tracker_error_texts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ImportError, match=r'tracker wandb needs its extra: pip install "shared-core\[wandb\]"'
    ):
        MetricsLog(tmp_path / "metrics.jsonl", tracker="wandb", project="corsd")
    with pytest.raises(ValueError, match="there is no tracker 'mlflow'; there are tensorboard, wandb"):
        MetricsLog(tmp_path / "metrics.jsonl", tracker="mlflow")
