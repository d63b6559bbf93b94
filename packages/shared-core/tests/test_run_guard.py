import math

import pytest
import torch
import torch.distributed as dist
from shared_core.run.guard import FiniteGuard, NonFiniteError, check_finite
from shared_core.testing import run_ranks


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


def test_error_texts():
    with pytest.raises(ValueError, match="policy is 'ignore'; it must be 'error' or 'skip'"):
        FiniteGuard("ignore")
    with pytest.raises(ValueError, match="patience is 0"):
        FiniteGuard(patience=0)
