import pytest
import torch
import torch.distributed as dist
from shared_core.ops.gather import all_gather, everywhere, in_turn, once, rank, world_size
from shared_core.testing import run_ranks


def test_one_process_is_the_identity():
    x = torch.randn(3, requires_grad=True)
    assert all_gather(x) is x
    assert (rank(), world_size()) == (0, 1)


def weighted_sum(x):
    return (torch.arange(1.0, x.numel() + 1, dtype=x.dtype) * x.flatten() ** 2).sum()


def gathered():
    x = (torch.arange(6.0, dtype=torch.float64).reshape(3, 2) + 10 * rank()).requires_grad_()
    everything = all_gather(x)
    # Ranks use the gathered batch differently: the gradients of both must arrive.
    (weighted_sum(everything) * (rank() + 1)).backward()
    labels = all_gather(torch.tensor([rank()]))
    mask = all_gather(torch.tensor([[rank() == 0]]))
    half = all_gather(torch.ones(1, dtype=torch.bfloat16))
    strided = all_gather(torch.arange(6.0).reshape(2, 3).t())
    return everything.detach(), x.grad, labels, mask, half.dtype, strided


def test_values_gradients_and_types_against_one_process():
    results = run_ranks(gathered, 2)
    x = torch.cat([torch.arange(6.0, dtype=torch.float64).reshape(3, 2) + 10 * r for r in range(2)])
    x.requires_grad_()
    (weighted_sum(x) * (1 + 2)).backward()
    for number, (everything, grad, labels, mask, half, strided) in enumerate(results):
        assert torch.equal(everything, x)
        torch.testing.assert_close(grad, x.grad[3 * number : 3 * number + 3], rtol=0, atol=1e-12)
        assert labels.tolist() == [0, 1]
        assert mask.tolist() == [[True], [False]]
        assert half == torch.bfloat16
        assert torch.equal(strided, torch.arange(6.0).reshape(2, 3).t().repeat(2, 1))


def gather_unequal():
    messages = []
    for x in (torch.zeros(2 + rank(), 3), torch.zeros(2, dtype=[torch.float32, torch.int64][rank()])):
        try:
            all_gather(x)
        except ValueError as error:
            messages.append(str(error))
    # A later collective still works: nobody hangs in the middle of one.
    dist.barrier()
    try:
        all_gather(torch.tensor(1.0))
    except ValueError as error:
        messages.append(str(error))
    return messages


def test_unequal_shapes_and_types_are_errors_on_all_ranks():
    first, second = run_ranks(gather_unequal, 2)
    assert first == second
    shapes, types, single = first
    assert "rank 0 (2, 3) torch.float32; rank 1 (3, 3) torch.float32" in shapes
    assert "rank 0 (2,) torch.float32; rank 1 (2,) torch.int64" in types
    assert "use x.reshape(1)" in single


def fails_on_rank_one():
    if rank() == 1:
        raise KeyError("broken on purpose")
    dist.barrier()


def test_run_ranks_reports_the_rank_that_fails():
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 failed.*broken on purpose"):
        run_ranks(fails_on_rank_one, 2)


def never_returns():
    import time

    time.sleep(60)


def test_run_ranks_gives_up():
    with pytest.raises(TimeoutError, match="rank 0 did not return in 3"):
        run_ranks(never_returns, 1, timeout=3.0)


def test_run_ranks_refuses_a_local_function():
    with pytest.raises(ValueError, match="must stand at the top level of a file"):
        run_ranks(lambda: 1)


def took_turns():
    asked = []

    def work(number):
        asked.append(number)
        return torch.tensor(number), rank()

    done = [(int(number), where) for number, where in in_turn(5, work)]
    return done, asked, once(lambda: asked.append("once") or rank()), everywhere(rank), asked


def test_processes_take_turns_and_all_get_all():
    (first, mine, only, ranks, _), (second, theirs, again, _, other) = run_ranks(took_turns, 2)
    assert first == second == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert (mine, theirs) == ([0, 2, 4, "once"], [1, 3])
    assert only == again == 0
    assert "once" not in other
    assert ranks == [0, 1]
    done, asked, only, ranks, _ = took_turns()
    assert done == [(number, 0) for number in range(5)]
    assert asked == [*range(5), "once"]
    assert (only, ranks) == (0, [0])


class OneOfUsError(Exception):
    """It cannot be sent: pickle would call it with one argument."""

    def __init__(self, file, line):
        super().__init__(f"{file}:{line}")


def failed():
    said = []
    for error in (ValueError("not here"), OneOfUsError("a.py", 3)):

        def work(number, error=error):
            if number == 1:
                raise error
            return number

        try:
            list(in_turn(4, work))
        except Exception as found:
            said.append((type(found).__name__, str(found)))
    return said, everywhere(rank)


def test_an_error_of_one_process_is_raised_on_all_and_none_hangs():
    (first, after), (second, _) = run_ranks(failed, 2)
    assert first == [("ValueError", "not here"), ("RuntimeError", "OneOfUsError: a.py:3")]
    assert second == [("ValueError", "not here"), ("OneOfUsError", "a.py:3")]
    assert after == [0, 1]
