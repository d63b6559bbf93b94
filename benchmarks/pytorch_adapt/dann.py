"""pytorch-adapt's DANN, run by its environment: ../calib_to_90.py gives it a classifier and images, it prints JSON.

    python dann.py NETS.PY DATA.npz OPTIONS.json

DATA holds bytes `source target test`, their labels `source_labels test_labels`, and the classifier's weights as
`net.NAME`.  The game is DANNHook with its defaults (reversal weight 1) and pytorch-adapt's own discriminator, Adam.
"""

import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.simplefilter("ignore")  # of its old dependencies

from _race import race  # noqa: E402
from pytorch_adapt.hooks import DANNHook  # noqa: E402  # pyright: ignore[reportMissingImports]
from pytorch_adapt.models import Discriminator  # noqa: E402  # pyright: ignore[reportMissingImports]


def main() -> None:
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
    encoder, head = net[:-1], net[-1]

    def predict(images: torch.Tensor) -> torch.Tensor:
        net.eval()
        logits = net(2 * images - 1)
        net.train()
        return logits

    images = {name: torch.from_numpy(data[name]) for name in ("source", "target", "test")}
    labels = {name: torch.from_numpy(data[f"{name}_labels"]) for name in ("source", "test")}
    net.train()
    steps = dann(encoder, head, images, labels["source"], options)
    limits = {name: options[name] for name in ("goal", "budget", "every")}
    print(json.dumps(race(steps, predict, images["test"], labels["test"], **limits)))


def dann(
    encoder: torch.nn.Module,
    head: torch.nn.Module,
    images: dict[str, torch.Tensor],
    labels: torch.Tensor,
    options: dict,
) -> Iterator[None]:
    """One step of the game at each turn, without end but for `options["steps"]`."""
    critic = Discriminator(in_size=head.in_features, h=options["domain_hidden"])
    models = {"G": encoder, "C": head, "D": critic}
    optimizers = [torch.optim.Adam(m.parameters(), options["learning_rate"]) for m in models.values()]
    hook = DANNHook(optimizers)
    size = options["batch_size"]
    domains = {"src_domain": torch.zeros(size), "target_domain": torch.ones(size)}
    for _ in range(options["steps"] or sys.maxsize):
        at, there = (torch.randint(len(images[name]), (size,)) for name in ("source", "target"))
        batch = {
            "src_imgs": images["source"][at].float() / 127.5 - 1,
            "target_imgs": images["target"][there].float() / 127.5 - 1,
            "src_labels": labels[at],
        }
        hook({**models, **batch, **domains})
        yield


if __name__ == "__main__":
    main()
