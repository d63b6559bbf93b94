import os
import signal
import subprocess
import sys

import pytest
import torch.distributed as dist
from shared_core.run.stop import StopFlag
from shared_core.testing import run_ranks


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_sets_the_flag_and_handlers_come_back(number, code):
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert not stop.stopped
        assert stop.exit_code == 0
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.stopped
        assert stop.agreed()
        assert stop.exit_code == code
    assert signal.getsignal(number) is before


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), StopFlag():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


SLEEPER = """
import time, sys
from shared_core.run.stop import StopFlag
StopFlag.ECHO = float((sys.argv + ["0"])[1])
with StopFlag() as stop:
    print("ready", flush=True)
    while not stop.stopped:
        time.sleep(0.01)
    print("saving", flush=True)
    if len(sys.argv) > 1:
        time.sleep(1)
        print("saved", flush=True)
        time.sleep(60)
sys.exit(stop.exit_code)
"""


def sleeper(*arguments):
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    return process


def test_a_process_ends_with_143():
    process = sleeper()
    assert process.wait(10) == 143
    process.stdout.close()


def test_a_signal_that_comes_later_ends_it_at_once():
    process = sleeper("0")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stdout.read() == ""
    process.stdout.close()


def test_the_same_order_passed_on_by_another_process_lets_it_save():
    process = sleeper("60")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    assert process.stdout.readline() == "saved\n"
    process.kill()
    process.wait(10)
    process.stdout.close()


def one_rank_is_told():
    with StopFlag() as stop:
        before = stop.agreed()
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return before, stop.agreed(), stop.exit_code


def test_ranks_agree():
    assert run_ranks(one_rank_is_told, 2) == [(False, True, 143), (False, True, 130)]
