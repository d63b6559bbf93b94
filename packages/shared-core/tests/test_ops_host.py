"""Reading values back from the device, in one place and at once."""

import pytest
import torch
from shared_core.ops.host import at_once, read_back
from shared_core.run.guard import FiniteGuard, NonFiniteError
from shared_core.run.metrics import MetricsLog, read
from shared_core.testing import pretend_device

META = torch.device("meta")


def number(value=0.0, **options):
    return torch.full((), value, device=META, **options)


def test_all_numbers_of_a_record_are_read_in_one_transfer():
    parts = {
        "loss": number(),
        "parts": {"ce": number(), "steps": number(0, dtype=torch.int64)},
        "text": "a",
        "n": 3,
    }
    with pretend_device(lambda zeros: torch.arange(len(zeros)).to(zeros)) as reasons:
        assert at_once(parts) == {"loss": 0.0, "parts": {"ce": 1.0, "steps": 2}, "text": "a", "n": 3}
    assert reasons == ["numbers for the log"]


def test_what_is_on_the_cpu_stays_as_it_is():
    parts = {"loss": torch.tensor(0.1), "rows": torch.zeros(3)}
    assert at_once(parts) == parts
    assert read_back(torch.tensor([0.1]), "a test").item() == torch.tensor(0.1).item()


def test_a_line_of_the_log_waits_once(tmp_path):
    with pretend_device() as reasons, MetricsLog(tmp_path / "m.jsonl") as log:
        log.log(1, loss=number(), parts={"a": number(), "b": number()}, lr=0.5)
    assert reasons == ["numbers for the log"]
    assert read(tmp_path / "m.jsonl") == [{"step": 1, "loss": 0.0, "parts": {"a": 0.0, "b": 0.0}, "lr": 0.5}]


def test_the_guard_waits_once_for_all_parts():
    guard = FiniteGuard()
    parts = {"a": number(), "b": torch.zeros(4, device=META)}
    with pretend_device() as reasons:
        assert guard.accepts(parts, 1)
    assert reasons == ["is the step finite?"]


def test_the_guard_says_which_part_of_a_pretended_device_is_not_finite():
    parts = {"a": torch.tensor(1.0), "b": torch.tensor(float("nan"))}
    with pytest.raises(NonFiniteError, match="'b' is nan at step 7"):
        FiniteGuard().accepts(parts, 7)
