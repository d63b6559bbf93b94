"""Which calibrator is kept."""

import pytest
import torch
from calib.selection import Selection
from torch import nn


def net(value):
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, value)
    return module


def offered(selection, *rounds):
    return [
        selection.consider(step, {"source_kept": kept, "information": score}, net(step))
        for step, (kept, score) in enumerate(rounds)
    ]


def test_the_best_among_those_that_spare_the_source():
    selection = Selection("information", source_tolerance=1.0)
    assert offered(selection, (96.0, 1.0), (95.5, 1.5), (94.0, 2.0), (95.2, 1.4)) == [
        True,
        True,
        False,
        False,
    ]
    assert selection.step == 1
    assert float(selection.weights["weight"]) == 1.0
    assert selection.kept_before == 96.0


def test_the_identity_wins_where_nothing_improves():
    selection = Selection("information", 1.0)
    offered(selection, (96.0, 1.0), (96.0, 0.9), (99.0, 0.8))
    assert selection.step == 0


def test_last_takes_the_last():
    selection = Selection("last", 1.0)
    assert offered(selection, (96.0, 1.0), (10.0, 0.0), (5.0, 0.0)) == [True, True, True]


def test_a_validator_that_the_sample_was_too_small_for_is_named():
    with pytest.raises(ValueError, match="selection is 'neighbourhood', which needs three or more"):
        offered(Selection("neighbourhood", 1.0), (96.0, 1.0))


def test_weights_are_copies_and_the_state_comes_back():
    selection, module = Selection("information", 1.0), net(1.0)
    selection.consider(0, {"source_kept": 90.0, "information": 1.0}, module)
    nn.init.zeros_(module.weight)
    other = Selection("information", 1.0)
    other.load_state_dict(selection.state_dict())
    assert float(other.weights["weight"]) == 1.0
    assert not other.consider(1, {"source_kept": 90.0, "information": 0.5}, module)
    assert other.consider(2, {"source_kept": 90.0, "information": 1.5}, module)
    assert torch.equal(other.weights["weight"], torch.zeros(1, 1))
