import pytest
import torch
from shared_core.run.device import choose_device


def test_auto_is_a_gpu_if_there_is_one(monkeypatch):
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_devices_that_are_not_here_are_refused(name):
    with pytest.raises(ValueError, match=rf"device '{name}' is not here \(.*\); choose auto or cpu"):
        choose_device(name)
