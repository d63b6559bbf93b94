import math

import pytest
import torch
import torch.distributed as dist
from shared_core.ops.snapshot import Snapshot, take_back
from shared_core.run.guard import (
    OVERFLOWS,
    FiniteGuard,
    NonFiniteError,
    check_finite,
    joined,
    largest_gradient,
)
from shared_core.testing import assert_same_state, run_ranks
from torch import nn


def parts(**values):
    return {"ce": torch.tensor(1.0), **{name: torch.tensor(value) for name, value in values.items()}}


def test_finite_parts_pass():
    check_finite(parts(relation=[1.0, 1e38]), 3)
    check_finite({}, 3)
    check_finite(parts(empty=[]), 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_bad_part_is_named_with_value_step_and_advice(value):
    with pytest.raises(
        NonFiniteError, match=rf"loss part 'a' is {value} at step 7: .*lower the learning rate"
    ):
        check_finite(parts(a=[0.0, value], b=math.nan), 7)


def test_policy_error():
    guard = FiniteGuard()
    assert guard.accepts(parts(), 0)
    with pytest.raises(NonFiniteError, match="'relation' is nan at step 1"):
        guard.accepts(parts(relation=math.nan), 1)


def test_policy_skip_counts_and_loses_patience():
    guard = FiniteGuard("skip", patience=2)
    bad, good = parts(relation=math.inf), parts(relation=0.0)
    assert [guard.accepts(p, i) for i, p in enumerate([bad, bad, good, bad, bad])] == [False, False, True] + [
        False
    ] * 2
    assert guard.skipped == 4
    again = FiniteGuard("skip", patience=2)
    again.load_state_dict(guard.state_dict())
    for one in (guard, again):
        with pytest.raises(NonFiniteError, match=r"at step 5: .*\(2 steps before it were skipped in a row\)"):
            one.accepts(bad, 5)


def bad_on_rank_one():
    guard = FiniteGuard("skip")
    bad = dist.get_rank() == 1
    accepted = guard.accepts(parts(relation=math.nan if bad else 0.0), 0)
    try:
        check_finite(parts(relation=math.nan if bad else 0.0), 4)
    except NonFiniteError as error:
        return accepted, str(error)


def test_ranks_decide_alike():
    (accepted, message), (accepted_too, other) = run_ranks(bad_on_rank_one, 2)
    assert not accepted
    assert not accepted_too
    assert message.startswith("loss part 'relation' is not finite at step 4 on rank 1")
    assert other.startswith("loss part 'relation' is nan at step 4 on rank 1")


def bad_on_rank_one_alone():
    guard = FiniteGuard("skip", together=False)
    # Another number of looks on each rank: whoever waited for the other would wait for ever.
    return [guard.accepts(parts(relation=math.nan), step) for step in range(2 * dist.get_rank())]


def test_ranks_with_work_of_their_own_decide_alone():
    assert run_ranks(bad_on_rank_one_alone, 2) == [[], [False, False]]


def test_the_advice_is_the_callers():
    with pytest.raises(NonFiniteError, match="'a' is nan at step 2: look at the image"):
        FiniteGuard(advice="look at the image").accepts(parts(a=math.nan), 2)


def test_steps_that_a_loss_scaler_leaves_out_are_counted_and_bounded():
    """Under either policy; bad losses in a row are another count."""
    guard = FiniteGuard()
    assert [guard.scaled(left_out, 1) for left_out in (True, True, False, True)] == [
        False,
        False,
        True,
        False,
    ]
    assert (guard.skipped, guard.in_a_row) == (3, 0)
    for step in range(OVERFLOWS - 2):
        guard.scaled(True, step)
    with pytest.raises(NonFiniteError, match=f"left out {OVERFLOWS} steps in a row up to step 99: .*bf16"):
        guard.scaled(True, 99)


def test_the_largest_gradient_of_parameters_is_that_of_their_module():
    net = nn.Linear(2, 2)
    net(torch.ones(1, 2)).square().sum().backward()
    assert torch.equal(largest_gradient(net), largest_gradient(iter(net.parameters())))


def test_error_texts():
    with pytest.raises(ValueError, match="policy is 'ignore'; it must be 'error' or 'skip'"):
        FiniteGuard("ignore")
    with pytest.raises(ValueError, match="patience is 0"):
        FiniteGuard(patience=0)


class Counting(nn.Module):
    """Everything that a forward pass can move: statistics, a table, a count outside tensors, a new buffer."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.calls = nn.BatchNorm1d(2), nn.Dropout(0.5), 0
        self.register_buffer("table", torch.zeros(5, 2))
        self.register_buffer("mean", torch.zeros(2), persistent=False)
        self.register_buffer("late", None)

    def forward(self, x, rows):
        self.calls += 1
        self.table[rows] = x
        self.mean = 0.9 * self.mean + x.mean(0)
        self.late = x
        self.register_buffer("new", x)
        return self.drop(self.norm(x))

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


@pytest.mark.parametrize("by_row", [True, False])
def test_a_refused_pass_leaves_no_trace(by_row):
    net, rows = Counting(), torch.tensor([1, 3, 1])
    net(torch.rand(3, 2), torch.tensor([0, 1, 2]))
    del net.new
    net.late = None
    kept = {
        name: value.clone() for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)
    }
    mean, draw = net.mean.clone(), torch.get_rng_state()
    guard = FiniteGuard("skip")
    before = [guard.snapshot(net, rows={"table": rows} if by_row else None)]
    net(torch.full((3, 2), math.nan), rows)
    before.append(guard.snapshot(net, rows={"table": rows} if by_row else None))
    net(torch.full((3, 2), math.inf), rows)
    take_back(before)
    now = {name: value for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    assert_same_state(now, kept)
    assert torch.equal(net.mean, mean)
    assert net.calls == 1
    assert net.late is None
    assert not hasattr(net, "new")
    assert torch.equal(torch.get_rng_state(), draw)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_restored_buffers_are_the_same_tensors_also_in_torchscript():
    for net in (nn.BatchNorm1d(2), torch.jit.script(nn.BatchNorm1d(2))):
        buffer, before = net.running_mean, Snapshot(net)
        net(torch.rand(4, 2))
        before.restore()
        assert buffer.data_ptr() == net.running_mean.data_ptr()
        assert torch.equal(net.running_mean, torch.zeros(2))


def test_policy_error_keeps_no_snapshot():
    assert FiniteGuard("error").snapshot(nn.BatchNorm1d(2)) is None
    take_back([None])


def test_largest_gradient_and_joined_parts():
    net = nn.Linear(2, 1)
    assert largest_gradient(net) == 0
    net.weight.grad, net.bias.grad = torch.tensor([[1e30, -3e30]]), torch.ones(1)
    assert largest_gradient(net) == 3e30
    net.bias.grad = torch.tensor([math.nan])
    assert largest_gradient(net).isnan()
    both = joined([{"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}])
    assert_same_state(both, {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])})
