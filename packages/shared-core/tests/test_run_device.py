import pytest
import torch
from shared_core.run.config import ConfigError
from shared_core.run.device import choose_device, one_process


def test_several_processes_are_refused_where_one_trains(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    one_process("prog train")
    monkeypatch.setenv("WORLD_SIZE", "1")
    one_process("prog train")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match=r"prog train trains in one process, and here are 2 \(WORLD_SIZE\): start it"
    ):
        one_process("prog train")


def test_auto_is_a_gpu_if_there_is_one(monkeypatch):
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_devices_that_are_not_here_are_refused(name):
    with pytest.raises(ValueError, match=rf"device '{name}' is not here \(.*\); choose auto or cpu"):
        choose_device(name)
