import pytest
import torch
from shared_core.ops.gather import rank
from shared_core.ops.gradients import average_gradients
from shared_core.testing import run_ranks
from torch import nn


def layer(*gradient):
    net = nn.Linear(2, 1)
    net.weight.grad = torch.tensor([gradient])
    return net


def test_one_process_keeps_its_gradients_and_gets_their_norm():
    net = layer(3.0, 4.0)
    assert float(average_gradients(net)) == 5.0
    assert net.weight.grad.tolist() == [[3.0, 4.0]]
    # no gradient, no message
    assert net.bias.grad is None


def averaged():
    net = layer(*((8.0, 2.0) if rank() else (-2.0, 6.0)))
    net.bias.grad = torch.tensor([1.0 + rank()])
    return float(average_gradients(net)), net.weight.grad.tolist(), net.bias.grad.tolist()


def test_two_processes_get_the_mean_and_its_norm():
    norm = (3.0**2 + 4.0**2 + 1.5**2) ** 0.5
    for found in run_ranks(averaged):
        assert found == (pytest.approx(norm), [[3.0, 4.0]], [1.5])
