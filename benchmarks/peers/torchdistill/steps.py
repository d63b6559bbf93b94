"""torchdistill's side of ../torchdistill_rkd.py, run by its environment: reads a variant a line, answers seconds.

    python steps.py NETS.PY WIDTH BATCH cpu|cuda

A variant is "plain" or the module whose output RKD compares.
"""

import sys
import time
from collections.abc import Callable

import torch
from boxes import load_nets, plain, rkd, step

CLASSES = 100
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


def main() -> None:
    path, width, size, device = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), torch.device(sys.argv[4])
    torch.set_num_threads(1)
    small_resnet = load_nets(path).small_resnet
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 32, 32, generator=generator).to(device)
    labels = (torch.arange(size) % CLASSES).to(device)

    def net() -> torch.nn.Module:
        torch.manual_seed(0)
        return small_resnet([2, 2, 2, 2], width, CLASSES).to(device)

    clock = time.process_time if device.type == "cpu" else time.perf_counter
    boxes = {}
    for line in sys.stdin:
        variant = line.strip()
        if variant not in boxes:
            box = plain(net(), device, SGD) if variant == "plain" else rkd(net(), net(), variant, device, SGD)
            box.pre_epoch_process(epoch=0)
            boxes[variant] = box
        begin = _now(clock, device)
        step(boxes[variant], images, labels)
        print(_now(clock, device) - begin, flush=True)


def _now(clock: Callable[[], float], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock()


if __name__ == "__main__":
    main()
