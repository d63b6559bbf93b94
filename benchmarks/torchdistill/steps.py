"""torchdistill's side of ../torchdistill_rkd.py, run by its environment: reads a variant a line, answers seconds.

    python steps.py NETS.PY WIDTH BATCH cpu|cuda

A variant is "plain" or the module whose output RKD compares.  The step is the one of torchdistill's own
training loop: forward_process, then post_forward_process, which is backward, SGD step and zero_grad.
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchdistill.common.constant import def_logger  # pyright: ignore[reportMissingImports]
from torchdistill.core.distillation import get_distillation_box  # pyright: ignore[reportMissingImports]
from torchdistill.core.training import get_training_box  # pyright: ignore[reportMissingImports]

CLASSES = 100
SGD = {"key": "SGD", "kwargs": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}}


def main() -> None:
    path, width, size, device = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), torch.device(sys.argv[4])
    torch.set_num_threads(1)
    def_logger.setLevel("ERROR")
    small_resnet = _module(path).small_resnet
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 32, 32, generator=generator).to(device)
    labels = (torch.arange(size) % CLASSES).to(device)

    def net() -> torch.nn.Module:
        torch.manual_seed(0)
        return small_resnet([2, 2, 2, 2], width, CLASSES).to(device)

    clock = time.process_time if device.type == "cpu" else time.perf_counter
    steps: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        variant = line.strip()
        if variant not in steps:
            box = plain(net(), device) if variant == "plain" else rkd(net(), net(), variant, device)
            box.pre_epoch_process(epoch=0)
            steps[variant] = lambda box=box: box.post_forward_process(
                box.forward_process(images, targets=labels, supp_dict={})
            )
        begin = _now(clock, device)
        steps[variant]()
        print(_now(clock, device) - begin, flush=True)


def plain(net: torch.nn.Module, device: torch.device):
    """torchdistill's loop around the net alone, with cross entropy."""
    config = {
        "num_epochs": 1,
        "model": {"forward_proc": "forward_batch_only"},
        "optimizer": _copy(SGD),
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": cross_entropy()}}},
    }
    return get_training_box(net, {}, config, device, None, False, 1)


def rkd(teacher: torch.nn.Module, student: torch.nn.Module, module: str, device: torch.device):
    """torchdistill's loop with cross entropy and RKD between the outputs of ``module`` of both nets."""
    side = {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": [module]}}
    relation = {
        "key": "RKDLoss",
        "kwargs": {
            "teacher_output_path": module,
            "student_output_path": module,
            "dist_factor": 25.0,
            "angle_factor": 50.0,
            "reduction": "mean",
        },
    }
    config = {
        "num_epochs": 1,
        "teacher": {**_copy(side), "requires_grad": False},
        "student": _copy(side),
        "optimizer": _copy(SGD),
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"ce": cross_entropy(), "rkd": {"criterion": relation, "weight": 1.0}}},
        },
    }
    teacher.eval()
    return get_distillation_box(teacher, student, {}, config, device, None, False, 1)


def cross_entropy() -> dict:
    """The term of the labels, in torchdistill's words."""
    of_student = {"is_from_teacher": False, "module_path": ".", "io": "output"}
    return {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {"input": of_student, "target": {"uses_label": True}},
        },
        "weight": 1.0,
    }


def _copy(config: dict) -> dict:
    # The boxes write into what they are given.
    return {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}


def _now(clock: Callable[[], float], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock()


def _module(path: str):
    """corsd.nets without corsd, which this environment does not have; of shared_core its source is enough."""
    sys.path.append(str(Path(path).parents[3] / "shared-core" / "src"))
    spec = importlib.util.spec_from_file_location("nets", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
