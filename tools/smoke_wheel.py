"""Use an installed wheel as a stranger would; run by tools/wheels.py with the empty environment's python -I.

    python -I tools/smoke_wheel.py corsd [--readme]

Needs nothing but the wheel: no test runner, no file of the checkout.  --readme runs the Python examples of the README
too, as the wheel's own metadata holds it.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points, metadata, packages_distributions
from pathlib import Path

METHODS = ("corsd", "fsd", "calib")


def check_installed(module: str) -> None:
    """The package comes from site-packages, is typed and has a version; the other methods are absent."""
    package = importlib.import_module(module)
    folder = Path(str(package.__file__)).parent
    if folder.parent.name != "site-packages":
        raise SystemExit(f"{module} was imported from {folder}, not from site-packages")
    if not (folder / "py.typed").is_file():
        raise SystemExit(f"{module} is installed without py.typed")
    if not package.__version__:
        raise SystemExit(f"{module} has no version")
    for other in set(METHODS) - {module}:
        if importlib.util.find_spec(other):
            raise SystemExit(f"{module} brought {other} along")


def check_command(name: str) -> None:
    """`NAME --help` works, where the package declares a command."""
    if entry_points(group="console_scripts", name=name):
        command = Path(sys.executable).parent / name
        done = subprocess.run([command, "--help"], text=True, capture_output=True)
        if done.returncode or "usage" not in done.stdout.lower():
            raise SystemExit(f"{name} --help: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def train_corsd() -> None:
    """One training step of a user's own loop changes the user's own net."""
    import corsd
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential()
    for name, (before, after) in {"first": (3, 8), "second": (8, 16)}.items():
        block = nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
        net.add_module(name, block)
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)))
    images, labels = torch.rand(12, 3, 16, 16), torch.arange(12) % 4

    distiller = corsd.Distiller(net, stages=["first", "second"], num_classes=4)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    before = net.get_parameter("first.0.weight").detach().clone()
    out = distiller(images, labels)
    out.loss.backward()
    optimizer.step()
    if not torch.isfinite(out.loss) or torch.equal(before, net.get_parameter("first.0.weight")):
        raise SystemExit(f"a training step with loss {out.loss.item()} left the net as it was")


def adapt_calib() -> None:
    """Two steps of an adaptation move the calibrator and leave the classifier as it is."""
    import calib
    import torch
    from torch import nn

    torch.manual_seed(0)
    classifier = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    source, target = [torch.rand(8, 3, 16, 16)], [torch.rand(8, 3, 16, 16) ** 2]
    model = calib.attach(classifier, calib.Calibrator(channels=3, epsilon=0.1, width=2, blocks=1))
    report = calib.adapt(model, source, target, steps=2, ema=None, selection="last", device="cpu")
    model.verify()
    if not report.classifier_unchanged or torch.equal(model.calibrator(target[0]), target[0]):
        raise SystemExit("two steps left the calibrator where it was")


def generate_fsd() -> None:
    """Two steps of a user's own loop move the scene towards what the prior asks for; a mesh can be written."""
    import fsd
    import torch

    prior = fsd.MixturePrior(torch.randn(2, 3 * 16 * 16), latent_shape=(3, 16, 16))
    guide = fsd.FlowScoreDistillation(prior, noise=fsd.WorldMapNoise(seed=0))
    scene = fsd.grid_scene(12, samples=8)
    optimizer = torch.optim.Adam(scene.parameters(), lr=0.1)
    prompt, generator = prior.encode_text("anything"), torch.Generator().manual_seed(0)
    before = {name: value.clone() for name, value in scene.state_dict().items()}
    for step in range(2):
        cameras = fsd.cameras.orbit(batch=2, generator=generator)
        view = scene.render(cameras, size=16)
        out = guide(view.image, prompt, cameras, progress=step / 2, opacity=view.opacity)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    if all(torch.equal(before[name], value) for name, value in scene.state_dict().items()):
        raise SystemExit("two steps left the scene as it was")


def run_readme(module: str) -> None:
    """Every Python example of the README, each for itself, in an empty folder."""
    readme = str(metadata(packages_distributions()[module][0]).json["description"])
    examples = re.findall(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    if not examples:
        raise SystemExit(f"the README in the wheel of {module} holds no Python example")
    for number, example in enumerate(examples, start=1):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            exec(compile(example, f"README.md, example {number}", "exec"), {"__name__": "example"})  # noqa: S102
            os.chdir("/")
    check_installed(module)


if __name__ == "__main__":
    name = sys.argv[1]
    check_installed(name)
    check_command(name)
    if name == "corsd":
        train_corsd()
    if name == "calib":
        adapt_calib()
    if name == "fsd":
        generate_fsd()
    if "--readme" in sys.argv[2:]:
        run_readme(name)
    print(f"{name}: fine")
