"""Logits out of whatever a network returns, and labels as losses want them."""

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from shared_core.ops import class_numbers, pick_logits
from torch import Tensor

Z = torch.rand(2, 3)


class Fields(NamedTuple):
    aux: Tensor | None
    logits: Tensor | None


@dataclass
class Record:
    hidden: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "output",
    [
        Z,
        OrderedDict(logits=Z),
        {"loss": None, "logits": Z, "out": -Z},
        {"aux": -Z, "out": Z},
        Fields(-Z, Z),
        Record(-Z, Z),
        SimpleNamespace(hidden=-Z, logits=Z),
        [Z],
        (Z, None),
        {"a": Z, "b": 1},
        {"loss": Z.sum(), "scores": Z},
        {"logits": None, "predictions": Z, "hidden": -Z},
    ],
    ids=str,
)
def test_found_by_name_or_because_it_is_the_only_one(output):
    assert pick_logits(output) is Z


@pytest.mark.parametrize(
    ("output", "which"),
    [
        ((-Z, Z), 1),
        ([-Z, Z], -1),
        ({"a": Z, "b": -Z}, "a"),
        (Record(Z, -Z), "hidden"),
        (Fields(Z, -Z), 0),
        (Z, 0),
        (Z, -1),
        *[(Z, name) for name in ("logits", "out", "output")],
        ({"a": None, "b": Z}, 1),
    ],
)
def test_picked_by_name_or_place(output, which):
    assert pick_logits(output, which) is Z


def test_picked_by_a_function():
    assert pick_logits({"heads": [Z]}, lambda out: out["heads"][0]) is Z


@pytest.mark.parametrize(
    ("output", "which", "error", "message"),
    [
        (
            (Z, Z),
            None,
            ValueError,
            r"returns a tuple of 0: a tensor of torch.float32 and shape \(2, 3\), 1: .*output=NUMBER",
        ),
        (
            {"a": Z, "b": -Z, "c": 1},
            None,
            ValueError,
            r"returns a dict of 'a': a tensor .*, 'c': a int: say which",
        ),
        ({"logits": None}, "logits", TypeError, r"output='logits' is a NoneType; logits are a tensor"),
        (3, None, ValueError, r"the net returns a int of no parts"),
        ({"a": Z, "b": Z}, "c", ValueError, r"output='c' is not in what the net returns, a dict of 'a'"),
        (Z, "scores", ValueError, r"output='scores', but the net returns one tensor: leave output out"),
        (
            {"logits": [Z]},
            None,
            TypeError,
            r"part 'logits' of the net's output is a list; logits are a tensor",
        ),
        (Z.long(), None, TypeError, r"the net returned a tensor of torch.int64"),
        (Z, lambda _: None, TypeError, r"the function output= returned a NoneType"),
        ((), None, ValueError, r"returns a tuple of no parts"),
        (None, None, ValueError, r"returns a NoneType of no parts"),
    ],
)
def test_what_cannot_be_found_is_listed(output, which, error, message):
    with pytest.raises(error, match=message):
        pick_logits(output, which)


def test_messages_say_who_returned_it_and_other_types_pass_on_request():
    with pytest.raises(ValueError, match=r"output='a' is not in what the student returns, a dict of 'b'"):
        pick_logits({"b": Z}, "a", who="the student")
    with pytest.raises(ValueError, match=r"output='a', but the student returns one tensor"):
        pick_logits(Z, "a", who="the student")
    assert pick_logits({"logits": Z.long()}, floats=False).dtype == torch.int64
    with pytest.raises(TypeError, match="'logits' of the net's output is a list"):
        pick_logits({"logits": [Z]}, floats=False)


WHOLE = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    "labels",
    [
        *[WHOLE.to(t) for t in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)],
        [0, 1, 1],
        (False, True, True),
        [torch.tensor(0), torch.tensor(1), torch.tensor(1)],
        np.array([0, 1, 1], dtype=np.int16),
        np.array([0, 1, 1], dtype=np.uint16),
    ],
    ids=repr,
)
def test_class_numbers_of_any_integer_type(labels):
    found = class_numbers(labels, 3)
    assert found.dtype == torch.int64
    assert torch.equal(found, WHOLE)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            torch.eye(3),
            TypeError,
            r"got torch.float32 of shape \(3, 3\), as of one-hot .* labels.argmax\(1\)",
        ),
        (torch.eye(3).long(), TypeError, r"labels.argmax\(1\)"),
        (WHOLE[:, None], TypeError, r"give labels.squeeze\(1\)"),
        (WHOLE.float(), TypeError, r"got torch.float32 of shape \(3,\): give labels.long\(\)"),
        (["cat", "dog", "cat"], TypeError, r"got a list"),
        (
            torch.zeros(3, 4, 4).long(),
            TypeError,
            r"one integer per image; got torch.int64 of shape \(3, 4, 4\)",
        ),
        (None, TypeError, r"labels must be class indices, one integer per image; got a NoneType"),
        (WHOLE[:2], ValueError, r"there are 2 labels for 3 images"),
    ],
)
def test_other_labels_are_refused_with_the_remedy(labels, error, message):
    with pytest.raises(error, match=message):
        class_numbers(labels, 3)
