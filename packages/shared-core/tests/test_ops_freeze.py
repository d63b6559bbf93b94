import warnings

import pytest
import torch
from shared_core.ops.freeze import changed, checksums, digest, freeze
from torch import nn


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def holding(tensor, persistent=True):
    module = nn.Module()
    module.register_buffer("held", tensor, persistent=persistent)
    return module


def test_every_parameter_and_buffer_has_a_sum():
    net = small_net()
    sums = checksums(net)
    assert set(sums) == set(net.state_dict())
    assert all(len(value) == 64 for value in sums.values())
    assert sums == checksums(small_net())
    assert digest(sums) == digest(dict(reversed(sums.items())))


def test_a_single_bit_of_a_weight_is_found():
    net = small_net()
    before = checksums(net)
    net[4].weight.data.view(torch.int32)[1, 3] ^= 1
    assert changed(before, checksums(net)) == ["4.weight"]
    assert digest(before) != digest(checksums(net))


def test_the_drift_of_batch_norm_is_found():
    net = small_net()
    before = checksums(net)
    net(torch.rand(2, 1, 4, 4))
    assert changed(before, checksums(net)) == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]


def test_a_frozen_net_runs_without_a_change():
    net = small_net()
    before = checksums(net)
    freeze(net)
    assert not any(part.training for part in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    images = torch.rand(2, 1, 4, 4, requires_grad=True)
    net(images).sum().backward()
    assert images.grad is not None
    assert changed(before, checksums(net)) == []


def test_new_and_gone_names_are_changes():
    assert changed({"a": "1", "b": "2", "d": "4"}, {"b": "2", "c": "3", "d": "5"}) == ["a", "c", "d"]


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64],
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_every_type_and_shape(dtype, shape, persistent):
    tensor = torch.zeros(shape, dtype=dtype)
    before = checksums(holding(tensor, persistent))
    assert before == checksums(holding(tensor.clone(), persistent))
    after = checksums(holding(torch.ones(shape, dtype=dtype), persistent))
    assert changed(before, after) == ([] if shape == (0,) else ["held"])


def test_type_and_shape_enter_and_strides_do_not():
    square = torch.arange(4.0).reshape(2, 2)
    sums = checksums(holding(square))
    assert sums == checksums(holding(square.t().contiguous().t()))
    for other in (square.flatten(), square.view(torch.int32), square.t(), square.to_sparse()):
        assert changed(sums, checksums(holding(other))) == ["held"]


def test_minus_zero_and_nan_are_told_apart_by_their_bits():
    assert checksums(holding(torch.tensor(0.0))) != checksums(holding(torch.tensor(-0.0)))
    assert checksums(holding(torch.tensor(torch.nan))) == checksums(holding(torch.tensor(torch.nan)))


def test_sparse_conjugate_and_shared_tensors():
    assert checksums(holding(torch.eye(3).to_sparse())) != checksums(holding(2 * torch.eye(3).to_sparse()))
    number = torch.tensor([1 + 2j])
    assert checksums(holding(number.conj())) == checksums(holding(torch.tensor([1 - 2j])))
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    assert checksums(net)["0.weight"] == checksums(net)["1.weight"]


class Stateful(nn.Module):
    """A module with a state beyond tensors."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"scale": 1.0}, {"scale": 2.0}),
        (["ab", "c"], ["a", "bc"]),
        ([1, [2, 3]], [[1, 2], 3]),
        ((1,), (1.0,)),
        (b"ab", b"ac"),
        ({"w": torch.zeros(2)}, {"w": torch.ones(2)}),
        (torch.float32, torch.float16),
        (None, False),
        ({1, 2}, {1, 3}),
    ],
)
def test_extra_states_count(one, two):
    before = checksums(nn.Sequential(Stateful(one)))
    assert before == checksums(nn.Sequential(Stateful(one)))
    assert changed(before, checksums(nn.Sequential(Stateful(two)))) == ["0._extra_state"]


def test_a_state_that_cannot_be_read_is_named():
    with pytest.raises(TypeError, match=r"_extra_state has a state of type function that cannot be read"):
        checksums(Stateful(lambda: None))


def test_tensors_without_values_are_refused():
    with pytest.raises(ValueError, match=r"weight is on the meta device .* load its weights"):
        checksums(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"weight is not initialised yet: call the module once"):
        checksums(nn.LazyLinear(2))


def quantised(net):
    """Static int8 of torch.ao; its deprecation is announced, but nets made with it are in use."""
    engine = next(e for e in ("x86", "qnnpack") if e in torch.backends.quantized.supported_engines)
    torch.backends.quantized.engine = engine
    tools = torch.ao.quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = nn.Sequential(tools.QuantStub(), *net, tools.DeQuantStub()).eval()
        wrapped.qconfig = tools.get_default_qconfig(engine)
        prepared = tools.prepare(wrapped)
        prepared(torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
        return tools.convert(prepared)


@pytest.fixture(scope="module")
def int8_nets():
    """Two int8 nets whose only difference are the last layer's packed weights."""
    nets = []
    for offset in (0.0, 0.5):
        net = small_net()
        del net[1]
        # Not the largest weight, so that the scale stays.
        net[3].weight.data[0, 0] = 0.01 + 0.1 * offset
        net[3].weight.data[1, 1] = 1.0
        nets.append(quantised(net))
    return nets


def test_packed_weights_of_int8_count(int8_nets):
    one, two = map(checksums, int8_nets)
    assert changed(one, checksums(int8_nets[0])) == []
    assert "4._packed_params._packed_params" in changed(one, two)
    assert "1.weight" not in changed(one, two)


@pytest.mark.parametrize("inside", [False, True])
def test_packed_weights_in_torchscript_count(int8_nets, inside):
    found = []
    for net in int8_nets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(net, torch.rand(1, 1, 4, 4))
        module = nn.ModuleDict({"net": traced}) if inside else traced
        found.append(checksums(module))
        traced(torch.rand(1, 1, 4, 4))
        assert changed(found[-1], checksums(module)) == []
    assert changed(*found)
    assert all(name.startswith("net" if inside else ("torchscript:", "0.")) for name in found[0])


@pytest.mark.gpu
def test_gpu_and_cpu_have_the_same_sums():
    assert checksums(small_net().cuda()) == checksums(small_net())
