"""torchdistill's own training loop around a net, alone or beside a teacher; its environment runs this file."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchdistill.common.constant import def_logger  # pyright: ignore[reportMissingImports]
from torchdistill.core.distillation import get_distillation_box  # pyright: ignore[reportMissingImports]
from torchdistill.core.training import get_training_box  # pyright: ignore[reportMissingImports]

def_logger.setLevel("ERROR")
# Hinton et al. 2015; half the labels, half the teacher.
TEMPERATURE, ALPHA = 4.0, 0.5


def plain(net: torch.nn.Module, device: torch.device, sgd: Mapping[str, Any]):
    """The loop around the net alone, with cross entropy."""
    config = {
        "num_epochs": 1,
        "model": {"forward_proc": "forward_batch_only"},
        "optimizer": optimizer(sgd),
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": cross_entropy()}}},
    }
    return get_training_box(net, {}, config, device, None, False, 1)


def rkd(
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    module: str,
    device: torch.device,
    sgd: Mapping[str, Any],
):
    """Cross entropy, and RKD between the outputs of ``module`` of both nets."""
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
    terms = {"ce": cross_entropy(), "rkd": {"criterion": relation, "weight": 1.0}}
    return _distillation(teacher, student, terms, module, device, sgd)


def kd(teacher: torch.nn.Module, student: torch.nn.Module, device: torch.device, sgd: Mapping[str, Any]):
    """Cross entropy, and the teacher's softened answers."""
    softened = {
        "key": "KDLoss",
        "kwargs": {
            "student_module_path": ".",
            "student_module_io": "output",
            "teacher_module_path": ".",
            "teacher_module_io": "output",
            "temperature": TEMPERATURE,
            "alpha": ALPHA,
            "reduction": "batchmean",
        },
    }
    return _distillation(teacher, student, {"kd": {"criterion": softened, "weight": 1.0}}, None, device, sgd)


def _distillation(
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    terms: dict[str, Any],
    module: str | None,
    device: torch.device,
    sgd: Mapping[str, Any],
):
    def side() -> dict[str, Any]:
        hooked = [] if module is None else [module]
        return {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": hooked}}

    config = {
        "num_epochs": 1,
        "teacher": {**side(), "requires_grad": False},
        "student": side(),
        "optimizer": optimizer(sgd),
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    teacher.eval()
    return get_distillation_box(teacher, student, {}, config, device, None, False, 1)


def step(box: Any, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step as torchdistill takes it: forward_process, then backward, SGD step and zero_grad."""
    box.post_forward_process(box.forward_process(images, targets=labels, supp_dict={}))


def optimizer(sgd: Mapping[str, Any]) -> dict[str, Any]:
    """SGD in torchdistill's words; a new one each time, because the boxes write into what they are given."""
    return {"key": "SGD", "kwargs": dict(sgd)}


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


def load_nets(path: str):
    """corsd.nets without corsd, which this environment does not have; of shared_core its source is enough."""
    sys.path.append(str(Path(path).parents[3] / "shared-core" / "src"))
    spec = importlib.util.spec_from_file_location("nets", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
