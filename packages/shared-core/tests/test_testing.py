import pytest
import shared_core
import torch
from shared_core.testing import assert_same_state, gradients_agree


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
