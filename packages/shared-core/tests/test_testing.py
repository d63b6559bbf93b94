import pytest
import shared_core
import torch
from shared_core.ops import host
from shared_core.ops.host import read_back
from shared_core.testing import assert_same_state, gradients_agree, pretend_device


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert shared_core.__version__ == version("shared-core")


def state():
    return {"model": {"w": torch.tensor([1.0, float("nan")]), "n": 3}, "list": [torch.zeros(2), "a"]}


def test_equal_states_pass_also_with_nan():
    assert_same_state(state(), state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["model"]["w"].__setitem__(0, 1.5), r"state\.model\.w: values differ, at most by"),
        (lambda s: s["model"].update(w=torch.zeros(3)), r"state\.model\.w: torch.float32 \(2,\) against"),
        (lambda s: s["model"].update(w=torch.zeros(2).double()), r"against torch.float64"),
        (lambda s: s["model"].update(n=4), r"state\.model\.n: 3 against 4"),
        (lambda s: s["model"].update(n=3.0), r"state\.model\.n: 3 against 3.0"),
        (lambda s: s["model"].pop("n"), r"state\.model: keys \['n'\] differ"),
        (lambda s: s["list"].append(1), r"state\.list: 2 entries against 3"),
        (lambda s: s["list"][0].neg_(), r"state\.list\[0\]: values differ"),
    ],
)
def test_differences_are_named(change, message):
    other = state()
    change(other)
    with pytest.raises(AssertionError, match=message):
        assert_same_state(state(), other)


class WrongSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] * grad


def test_a_wrong_gradient_is_found():
    gradients_agree(lambda x, n: x**2 * n, torch.randn(3), torch.tensor(2))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradients_agree(WrongSquare.apply, torch.randn(3))


META = torch.device("meta")
PLANTED = {
    "item": lambda a: a.sum().item(),
    "int": lambda a: int(a.sum()),
    "bool": lambda a: bool(a.sum() > 0),
    "if": lambda a: 1 if a.isnan().any() else 0,
    "cpu": lambda a: a.cpu(),
    "tolist": lambda a: a.tolist(),
    "numpy": lambda a: a.numpy(),
    "nonzero": lambda a: a.nonzero(),
    "boolean index": lambda a: a[a > 0],
    "boolean assignment of a tensor": lambda a: a.__setitem__(a[:, 0] > 0, torch.zeros(1, 3, device=META)),
    "masked select": lambda a: a.masked_select(a > 0),
    "unique": lambda a: a.unique(),
    "one hot without classes": lambda a: torch.nn.functional.one_hot(a[:, 0].long()),
    "add a tensor on the CPU": lambda a: a + torch.zeros(4, 3),
    "matrix product with the CPU": lambda a: a @ torch.zeros(3, 4),
    "weights on the CPU": lambda a: torch.nn.Conv1d(4, 2, 1)(a[None]),
    "gather by the CPU": lambda a: a.gather(1, torch.zeros(4, 1, dtype=torch.int64)),
    "the CPU indexed by the device": lambda a: torch.zeros(4)[a[:, 0].long()],
    "embedding on the CPU": lambda a: torch.nn.functional.embedding(a[:, 0].long(), torch.zeros(4, 3)),
    "read in the backward pass": lambda a: Reads.apply(a.requires_grad_()).sum().backward(),
}


class Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * float(grad.sum())


@pytest.mark.parametrize("name", PLANTED)
def test_a_pretended_device_refuses_every_way_of_waiting_and_of_mixing_devices(name):
    with pretend_device(), pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        PLANTED[name](torch.zeros(4, 3, device=META))


def test_a_pretended_device_allows_what_a_gpu_does_and_names_what_is_read():
    a = torch.zeros(4, 3, device=META)
    with pretend_device() as reasons:
        assert (a * torch.tensor(2.0)).is_meta
        assert a[torch.tensor([0, 1])].shape == (2, 3)
        assert torch.zeros(2).to(META).is_meta
        a[a > 0] = 1.0
        torch.nn.Linear(3, 2, device=META)(a).sum().backward()
        assert read_back(a, "shown").tolist() == [[0.0] * 3] * 4
        assert host.read_back(torch.ones(2), "on the CPU already").tolist() == [1, 1]
    assert reasons == ["shown"]
    assert read_back(torch.ones(1), "outside") == 1


def test_what_a_pretended_device_gives_back_can_be_chosen():
    with pretend_device(lambda zeros: zeros + 7):
        assert read_back(torch.zeros(2, device=META), "sevens").tolist() == [7, 7]


def test_values_read_back_are_those_of_the_tensor_without_its_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert read_back(x, "a test").tolist() == [1, 2]
    assert not read_back(x, "a test").requires_grad
