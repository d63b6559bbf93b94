import pytest
import torch
from shared_core.run import checkpoint
from shared_core.run.weights import read_weights, save_weights
from shared_core.testing import assert_same_state
from torch import nn


def tied():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[1].weight = net[0].weight
    return net


def test_weights_come_back_bit_for_bit_also_shared_ones(tmp_path):
    net, other = tied(), tied()
    net(torch.rand(4, 2))
    save_weights(net, tmp_path / "net.safetensors")
    read_weights(other, tmp_path / "net.safetensors")
    assert_same_state(net.state_dict(), other.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_weights_are_as_readable_as_any_new_file(tmp_path):
    save_weights(tied(), tmp_path / "net.safetensors")
    checkpoint.save(tmp_path / "checkpoints", 1, {"net": nn.Linear(2, 2)})
    (tmp_path / "plain").write_text("")
    for path in tmp_path.rglob("*.safetensors"):
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "net.safetensors"
    save_weights(tied(), path)
    before = path.read_bytes()
    with pytest.raises(NotImplementedError):
        save_weights(nn.Linear(2, 2, device="meta"), path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["net.safetensors"]


def test_missing_broken_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(ValueError, match=r"there is no weights file .*net.safetensors"):
        read_weights(tied(), path)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"net.safetensors does not hold the weights of this net"):
        read_weights(tied(), path)
    save_weights(nn.Linear(3, 3), path)
    with pytest.raises(ValueError, match=r"net.safetensors does not hold the weights of this net"):
        read_weights(tied(), path)
