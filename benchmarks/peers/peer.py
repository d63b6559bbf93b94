"""What the DANN of another project is given by calib/to_90.py, in its own environment, and what it gives back.

    python dann.py NETS.PY DATA.npz OPTIONS.json        # prints the race as JSON

DATA holds bytes `source target test`, their labels `source_labels test_labels`, and the classifier's weights as
`net.NAME`.  Imports torch and nothing of this project but the file of nets.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.race import race

Play = Callable[[nn.Sequential, dict[str, Tensor], Tensor, dict[str, Any]], Iterator[None]]


def compete(play: Play) -> None:
    """Race `play(net, images by domain, source labels, options)`, whose turns are steps that train the net in place."""
    nets, data, options = sys.argv[1], np.load(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(options["seed"])
    spec = importlib.util.spec_from_file_location("nets", nets)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.dtn()
    weights = {name.removeprefix("net."): data[name] for name in data.files if name.startswith("net.")}
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})

    def predict(images: Tensor) -> Tensor:
        net.eval()
        logits = net(2 * images - 1)
        net.train()
        return logits

    images = {name: torch.from_numpy(data[name]) for name in ("source", "target", "test")}
    labels = {name: torch.from_numpy(data[f"{name}_labels"]) for name in ("source", "test")}
    net.train()
    steps = play(net, images, labels["source"], options)
    limits = {name: options[name] for name in ("goal", "budget", "every")}
    print(json.dumps(race(steps, predict, images["test"], labels["test"], **limits)))


def prepared(images: Tensor) -> Tensor:
    """Bytes as the classifier wants them, in [-1, 1]."""
    return images.float() / 127.5 - 1
