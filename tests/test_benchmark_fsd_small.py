"""The benchmarks of fsd's embedded prior that need no more than its weights: plain diffusers, the draft, the pass."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def quick(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The record of a quick run, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", str(out)])
    assert not importlib.import_module(f"benchmarks.fsd.{name}").main()
    record = json.loads(out.read_text())
    assert {figure["met"] for figure in record["figures"]} == {None}
    return record


def test_plain_diffusers_draws_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = quick("plain_diffusers", tmp_path / "out.json", monkeypatch)
    assert record["figures"][0]["difference"]["median"] == 100
    assert record["largest_difference"] < 0.01
    for found in record["prompts"]:
        assert found["passes"] >= 100
        assert 0 <= found["diffusers"]["differ"] <= 1
        assert {"fsd-beta1", "sds"} <= found.keys()


def test_pairs_of_names_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    said = importlib.import_module("benchmarks.fsd.plain_diffusers").said
    assert said(["red mug", "red mug", "blue mug"], 1.0) == {
        "prompt_accuracy": 1.0,
        "differ": pytest.approx(2 / 3),
    }


def test_the_draft_is_judged_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = quick("draft", tmp_path / "out.json", monkeypatch)
    assert [figure["name"] for figure in record["figures"]] == ["core-seconds", "prompt accuracy"]
    assert record["figures"][0]["difference"]["median"] > 0
    assert list(record["prompts"]) == ["a red object"]


def test_the_plain_pass_is_not_channels_last() -> None:
    """The embedded prior is: against it every other form would be compared with channels-last."""
    from fsd.priors.embedded import EmbeddedPrior

    nets = importlib.import_module("benchmarks.fsd.forward").variants(EmbeddedPrior().net, compiled=False)
    (plain,) = {p.is_contiguous() for p in nets["eager"].parameters()}
    weights = nets["channels-last"].conv_in.weight
    assert plain
    assert weights.is_contiguous(memory_format=torch.channels_last)
    assert not weights.is_contiguous()
