import os
import subprocess
import sys

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from shared_core.run import processes
from shared_core.run.processes import is_main, join
from shared_core.testing import run_ranks


@pytest.fixture(autouse=True)
def _afresh(monkeypatch):
    """As in a new process: nobody has joined, and accelerate has no setting."""
    monkeypatch.setattr(processes, "_joined", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def joined():
    return join().num_processes, is_main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU auto is the GPU")
def test_processes_find_each_other_on_a_device_that_is_not_named():
    assert run_ranks(joined) == [(2, True), (2, False)]


def joined_again():
    return [join("cpu", precision).num_processes for precision in ("fp32", "bf16", "fp32")]


def test_processes_that_joined_may_join_again_with_another_precision():
    assert run_ranks(joined_again) == [[2, 2, 2], [2, 2, 2]]


def test_the_next_run_of_a_process_may_have_another_precision():
    linear, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with join("cpu", precision).autocast():
            assert linear(x).dtype == expected


def test_the_accelerator_of_the_caller_stays_as_it_is():
    own = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    with pytest.raises(
        ValueError, match="device cpu, precision fp32: this process has an accelerator with another"
    ):
        join("cpu", "fp32")
    assert join("cpu", "bf16").mixed_precision == own.mixed_precision == "bf16"


def test_accelerate_still_has_no_public_way_to_start_afresh():
    """Looked for by hand in 1.2 to 1.15: `end_training` and `destroy_process_group` leave the precision as it is."""
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    accelerator.free_memory()
    accelerator.end_training()
    with pytest.raises(ValueError, match="already been initialized"):
        accelerate.Accelerator(cpu=True, mixed_precision="no")
    public = [
        name
        for kind in (accelerate.Accelerator, AcceleratorState, accelerate.PartialState)
        for name in dir(kind)
        if not name.startswith("_") and ("reset" in name or "reinit" in name)
    ]
    assert not public, (
        f"accelerate {accelerate.__version__} has {public}: use it in shared_core.run.processes.join"
    )


class Told:
    """Stands for accelerate's, and keeps what it was told of the device."""

    def __init__(self, cpu, mixed_precision):
        self.cpu, self.device = cpu, os.environ.get("ACCELERATE_TORCH_DEVICE")


@pytest.mark.parametrize(
    ("name", "cpu", "device"),
    [("auto", False, None), ("cuda", False, None), ("cpu", True, None), ("cuda:1", False, "cuda:1")],
)
def test_a_gpu_is_named_to_accelerate_only_where_each_process_would_not_take_its_own(
    name, cpu, device, monkeypatch
):
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    monkeypatch.setattr(accelerate, "Accelerator", Told)
    here = {"auto": "cuda", "cuda": "cuda:0"}.get(name, name)
    monkeypatch.setattr(processes, "choose_device", lambda _: torch.device(here))
    accelerator = join(name)
    assert (accelerator.cpu, accelerator.device) == (cpu, device)
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


def test_what_cannot_be_joined_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="fp16 needs a GPU; choose bf16 or fp32 on a CPU"):
        join("cpu", "fp16")
    with pytest.raises(ValueError, match="device 'cuda:99' is not here"):
        join("cuda:99")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match="device cuda:0: all processes would share that GPU; give cuda, and each"
    ):
        join("cuda:0")


def test_asking_who_writes_does_not_import_accelerate():
    code = "import sys; from shared_core.run.processes import is_main; print(is_main(), 'accelerate' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True False\n"
