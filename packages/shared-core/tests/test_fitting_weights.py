"""Weights from a file: all of them, or all but the last layer on request, and names of what does not fit."""

from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file, save_model
from shared_core.fitting_weights import load_weights
from torch import nn


def net(classes=5, width=4, extra=False):
    layers = OrderedDict(a=nn.Linear(3, width), norm=nn.BatchNorm1d(width), fc=nn.Linear(width, classes))
    if extra:
        layers["fc"] = nn.Sequential(nn.Dropout(), nn.Linear(width, classes))
    return nn.Sequential(layers)


def saved(tmp_path, state):
    path = tmp_path / "net.safetensors"
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    return path


def same(a, b, names=None):
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items() if names is None or k in names)


BODY = ["a.weight", "a.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]


def test_all_of_a_fitting_file(tmp_path):
    given, mine = net(), net()
    assert load_weights(mine, saved(tmp_path, given.state_dict())) == []
    assert same(mine, given)


def test_other_widths_are_refused_by_name_and_nothing_is_loaded(tmp_path):
    mine = net()
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    path = saved(tmp_path, net(width=6).state_dict())
    for new_head in (False, True):
        with pytest.raises(
            ValueError, match=r"[67] of another shape or kind \(a.weight \(6, 3\) for \(4, 3\), a.bias"
        ):
            load_weights(mine, path, new_head)
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())


def test_other_classes_are_refused_unless_asked_for(tmp_path):
    given, mine = net(9), net()
    path = saved(tmp_path, given.state_dict())
    with pytest.raises(ValueError, match=r"is of 9 classes and the net of 5: fc.weight, fc.bias .* new_head"):
        load_weights(mine, path)
    head = mine[2].weight.clone()
    assert load_weights(mine, path, new_head=True) == ["fc.weight", "fc.bias"]
    assert same(mine, given, BODY)
    assert torch.equal(mine[2].weight, head)


@pytest.mark.parametrize("kind", ["as many", "none", "deeper"])
def test_a_new_head_does_not_read_the_files(tmp_path, kind):
    given = net(extra=kind == "deeper")
    state = given.state_dict()
    if kind == "none":
        state = {key: value for key, value in state.items() if not key.startswith("fc")}
    mine = net()
    head = mine[2].weight.clone()
    assert load_weights(mine, saved(tmp_path, state), new_head=True) == ["fc.weight", "fc.bias"]
    assert torch.equal(mine[2].weight, head)
    assert same(mine, given, BODY)


def test_two_heads_and_a_head_that_is_made_first(tmp_path):
    def heads(classes):
        return nn.ModuleDict(
            {"fc": nn.Linear(4, classes), "aux": nn.Linear(6, classes), "a": nn.Linear(3, 4)}
        )

    mine = heads(5)
    left = load_weights(mine, saved(tmp_path, heads(9).state_dict()), new_head=True)
    assert left == ["fc.weight", "fc.bias", "aux.weight", "aux.bias"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_wrappers_come_off(tmp_path, prefix):
    given, mine = net(), net()
    path = saved(tmp_path, {prefix + key: value for key, value in given.state_dict().items()})
    assert load_weights(mine, path) == []
    assert same(mine, given)


def test_averaged_compiled_and_tied_weights(tmp_path):
    given, mine = net(), net()
    averaged = torch.optim.swa_utils.AveragedModel(given)
    load_weights(mine, saved(tmp_path, averaged.state_dict()))
    assert same(mine, given)
    # A net whose part is compiled has the word in its own names.
    mine = nn.Sequential(OrderedDict(inner=net()))
    mine.inner = torch.compile(mine.inner)
    load_weights(mine, saved(tmp_path, {f"inner.{key}": value for key, value in given.state_dict().items()}))
    assert torch.equal(mine.inner._orig_mod.a.weight, given.a.weight)

    def tied():
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.weight = first.weight
        return nn.Sequential(first, second)

    given, mine, path = tied(), tied(), tmp_path / "tied.safetensors"
    save_model(given, str(path))
    load_weights(mine, path)
    assert same(mine, given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("a.bias"), r"1 weights that the file lacks \(a.bias\); nothing was loaded"),
        (lambda s: s.update(b=torch.zeros(1)), r"1 that the net does not know \(b\)"),
        (lambda s: s.update({"a.bias": torch.zeros(4, dtype=torch.int8)}), r"of another shape or kind"),
        (lambda s: s.update({f"module.{k}": s.pop(k) for k in list(s)[:2]}), r"a.weight.*module.a.weight"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    state = dict(net().state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        load_weights(net(), saved(tmp_path, state))


def test_counters_and_half_precision(tmp_path):
    given, mine = net(), net()
    state = {key: value.half() for key, value in given.state_dict().items() if "num_batches" not in key}
    load_weights(mine, saved(tmp_path, state))
    assert torch.equal(mine.a.weight, given.a.weight.half().float())


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path, net().state_dict())
    load_weights(net(), "~/net.safetensors")
