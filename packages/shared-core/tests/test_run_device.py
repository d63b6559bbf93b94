import pytest
import torch
from shared_core.run.device import choose_device, means_cpu


def test_auto_is_a_gpu_if_there_is_one(monkeypatch):
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_devices_that_are_not_here_are_refused(name):
    with pytest.raises(ValueError, match=rf"device '{name}' is not here \(.*\); choose auto or cpu"):
        choose_device(name)


def test_accelerate_is_told_of_the_cpu_where_auto_comes_to_it(monkeypatch):
    for cuda, mps in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert means_cpu("auto") == (not cuda and not mps)
        assert means_cpu("cpu")
        assert not means_cpu("cuda:0")
