"""torchdistill's side of ../torchdistill_accuracy.py, run by its environment: trains nets and counts right answers.

    python accuracy.py NETS.PY WIDTH       # then a line of JSON a training, answered by a line of JSON

A request holds `variant` (plain, kd or rkd), `seed`, `data` and `steps`; `data` is a file with `images labels`
[steps, batch, ...], `rates momenta` [steps] and `test test_labels`.  A teacher is the plain net of the seed before,
trained on the same batches with as many steps, and its seconds are counted.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from boxes import kd, load_nets, plain, rkd, step


def main() -> None:
    nets, width = load_nets(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        with np.load(asked["data"]) as file:
            data = {name: torch.from_numpy(file[name]) for name in file.files}
        begin = time.process_time()
        net = trained(nets, width, asked, data)
        seconds = time.process_time() - begin
        net.eval()
        with torch.inference_mode():
            right = (net(data["test"]).argmax(1) == data["test_labels"]).float().mean()
        print(json.dumps({"accuracy": 100 * right.item(), "seconds": seconds}), flush=True)


def trained(nets: Any, width: int, asked: dict[str, Any], data: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The net that is to be judged."""
    device, sgd = torch.device("cpu"), asked["sgd"]

    def net(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return nets.small_resnet([1, 1, 1, 1], width, asked["classes"], data["test"].shape[1])

    if asked["variant"] == "plain":
        student = net(asked["seed"])
        run(plain(student, device, sgd), data)
        return student
    teacher = net(asked["seed"] - 1)
    run(plain(teacher, device, sgd), data)
    student = net(asked["seed"])
    if asked["variant"] == "kd":
        run(kd(teacher, student, device, sgd), data)
    else:
        run(rkd(teacher, student, "avgpool", device, sgd), data)
    return student


def run(box: Any, data: dict[str, torch.Tensor]) -> None:
    """All steps, with the learning rate and momentum of each."""
    box.pre_epoch_process(epoch=0)
    for images, labels, rate, momentum in zip(
        data["images"], data["labels"], data["rates"].tolist(), data["momenta"].tolist(), strict=True
    ):
        for group in box.optimizer.param_groups:
            group.update(lr=rate, momentum=momentum)
        step(box, images, labels)


if __name__ == "__main__":
    main()
