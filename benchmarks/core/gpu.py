"""Does the GPU path work, and what does it cost?  Five checks in ten minutes, one JSON (called by tools/gpu.sh).

    python -m benchmarks.core.gpu --out FILE [--quick]

| check | what it tells |
|---|---|
| tests | all tests marked `gpu` pass |
| steps | time and peak memory of a training step of each method against the plain step: bf16, channels last, compiled |
| guidance | time and peak memory of a step of fsd against one of SDS, embedded prior |
| marching | nerfacc's CUDA marching gives the picture of dense samples, and how much sooner |
| object | `fsd generate --preset draft` makes an object on the card |

Each check is a process with a time limit, because a failed kernel spoils the process; the JSON is written after each,
so a run that is cut off leaves what was done.  A check is done, failed or skipped, with the reason.  On a CPU, sizes
are small and what needs a card is skipped.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from shared_core.run.atomic import write_json
from shared_core.run.environment import describe

from benchmarks.core.figures import interleaved, options

ROOT = Path(__file__).parents[2]
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
NO_CARD = "needs a CUDA device; torch sees none"


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--check", choices=list(CHECKS), help="run one check here and print its JSON")
    given = parser.parse_args()
    quick = given.quick or not CUDA
    if given.check:
        run, _ = CHECKS[given.check]
        print(json.dumps(run(quick)))
        return 0
    found: dict[str, Any] = {"environment": describe(), "device": DEVICE.type, "quick": quick, "checks": {}}
    if CUDA:
        card = torch.cuda.get_device_properties(0)
        found["card"] = {"name": card.name, "memory_gb": round(card.total_memory / 2**30, 1)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name, (_, limit) in CHECKS.items():
        found["checks"][name] = check = apart(name, limit, quick)
        print(f"{name}: {check['status']}{': ' + check['reason'] if 'reason' in check else ''}", flush=True)
        write_json(given.out, found)
    failed = [name for name, check in found["checks"].items() if check["status"] == "failed"]
    print(f"{len(CHECKS) - len(failed)} of {len(CHECKS)} checks without a failure; figures in {given.out}")
    return 1 if failed else 0


def apart(name: str, limit: float, quick: bool) -> dict[str, Any]:
    """The result of one check in a process that may take `limit` seconds."""
    command = [sys.executable, "-m", "benchmarks.core.gpu", "--out", "unused", "--check", name] + [
        "--quick"
    ] * quick
    begun = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"took more than {limit:.0f} s", "seconds": limit}
    seconds = round(time.perf_counter() - begun, 1)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        return {"status": "failed", "reason": lines[-1][:300], "seconds": seconds, "log": lines[-30:]}
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": seconds}


def tests(quick: bool) -> dict[str, Any]:
    """pytest on the marker `gpu`; on a CPU only that they are found and skip."""
    folders = [str(path) for path in sorted(ROOT.glob("packages/*/tests"))]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "junit.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "-p",
            "no:xdist",
            f"--junitxml={report}",
        ]
        done = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True)
        if not report.exists():
            return {
                "status": "failed",
                "reason": f"pytest ended with {done.returncode}: {done.stdout[-300:]}",
            }
        counts = _junit(report)
    if counts["failed"] or done.returncode:
        return {
            "status": "failed",
            "reason": f"{counts['failed']} tests failed",
            **counts,
            "log": done.stdout[-3000:],
        }
    if not CUDA:
        return {"status": "skipped", "reason": NO_CARD, **counts}
    return {"status": "done", **counts}


def _junit(report: Path) -> dict[str, int]:
    # Written by pytest a moment ago, so no stranger's XML.
    from xml.etree import ElementTree

    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return {"passed": total - skipped - failed, "failed": failed, "skipped": skipped}


def steps(quick: bool) -> dict[str, Any]:
    """Training steps of corsd's methods and calib's game, in bf16; compiled too where a card is."""
    made: dict[str, Any] = {
        name: lambda name=name: _corsd_step(name, quick, False) for name in ("plain", "in_batch", "rkd")
    }
    if CUDA:
        compiled = {f"{name}, compiled": lambda name=name: _corsd_step(name, quick, True) for name in made}
        made |= compiled
    made["calib, classifier alone"] = lambda: _calib_step(quick, False)
    made["calib, game"] = lambda: _calib_step(quick, True)
    bases = {name: "plain" for name in made if not name.startswith("calib")}
    bases |= {name: "calib, classifier alone" for name in made if name.startswith("calib")}
    rows = _measured(made, bases, rounds=3 if quick else 30)
    if not CUDA:
        return {"status": "done", "steps": rows, "left_out": f"compiled steps, peak memory: {NO_CARD}"}
    return {"status": "done", "steps": rows}


def guidance(quick: bool) -> dict[str, Any]:
    """A step of fsd and of SDS on a small scene: render, guidance, backward, Adam."""
    made: dict[str, Any] = {name: lambda name=name: _guided_step(name, quick) for name in ("sds", "fsd")}
    return {"status": "done", "steps": _measured(made, dict.fromkeys(made, "sds"), rounds=2 if quick else 20)}


def marching(quick: bool) -> dict[str, Any]:
    """nerfacc's kernels against dense samples on one scene: the same colours, and the time of both."""
    del quick
    if not CUDA:
        return {"status": "skipped", "reason": NO_CARD}
    from fsd.cameras import place, rays
    from fsd.marching import march_rays, obstacle
    from fsd.occupancy import OccupancyGrid
    from fsd.render import render_rays
    from fsd.scene import grid_scene

    torch.manual_seed(0)
    field = grid_scene(32, blob_scale=30.0).field.to(DEVICE)
    occupancy = OccupancyGrid(32).to(DEVICE)
    origins, directions = (x.reshape(-1, 3).to(DEVICE) for x in rays(place([0.0, 70.0]), 128, 128))
    reason = obstacle(origins)
    if reason is not None:
        return {"status": "skipped", "reason": reason}
    occupancy.update(field, 0, 2 / 512)
    with torch.no_grad():
        ways = {
            "dense": lambda: render_rays(field, origins, directions, 512),
            "marching": lambda: march_rays(field, origins, directions, occupancy, 2 / 512),
        }
        dense, marched = ways["dense"]().color, ways["marching"]().color
        times = interleaved({name: lambda way=way: _timed(way) for name, way in ways.items()}, rounds=10)
    error = float((dense - marched).square().mean())
    row = {"mean_squared_difference": error, **{name: median(values) for name, values in times.items()}}
    if error > 1e-4:
        return {
            "status": "failed",
            "reason": f"colours differ by {error:.2g} (mean square); allowed 1e-4",
            **row,
        }
    return {"status": "done", **row}


def draft(quick: bool) -> dict[str, Any]:
    """One object through the command line, as a user makes it."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "object"
        command = [sys.executable, "-m", "fsd", "generate", "a red mushroom", "--out", str(out)]
        command += ["--preset", "draft", "--device", DEVICE.type] + ["--steps", "3"] * quick
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            return {"status": "failed", "reason": done.stderr.strip()[-300:]}
        files = sorted(path.name for path in next(iter((out / "objects").iterdir())).iterdir())
    return {"status": "done", "preset": "draft", "files": files}


CHECKS: dict[str, tuple[Callable[[bool], dict[str, Any]], float]] = {
    "tests": (tests, 240.0),
    "steps": (steps, 240.0),
    "guidance": (guidance, 120.0),
    "marching": (marching, 300.0),
    "object": (draft, 240.0),
}
"""The checks in their order, each with its limit in seconds; marching may compile for minutes, so it comes late."""


def _measured(
    made: dict[str, Callable[[], Callable[[], Any]]], bases: dict[str, str], rounds: int
) -> dict[str, dict[str, Any]]:
    """Median seconds, ratio to the base, and the peak of memory in MiB of each step; interleaved."""
    ready, rows = {}, {}
    for name, make in made.items():
        step = make()
        for _ in range(2):  # compiles, and gives the optimizer its state
            step()
        rows[name] = {"peak_mib": _peak(step)}
        ready[name] = step
    times = interleaved({name: lambda step=step: _timed(step) for name, step in ready.items()}, rounds)
    for name, values in times.items():
        rows[name] |= {
            "seconds": median(values),
            "ratio": median(a / b for a, b in zip(values, times[bases[name]], strict=True)),
            "base": bases[name],
        }
    return rows


def _timed(step: Callable[[], Any]) -> float:
    if CUDA:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _peak(step: Callable[[], Any]) -> float | None:
    if not CUDA:
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def _bf16() -> AbstractContextManager[Any]:
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16) if CUDA else nullcontext()


def _corsd_step(method: str, quick: bool, compiled: bool) -> Callable[[], None]:
    from corsd.nets import small_resnet

    from benchmarks.core.step_time import BATCH, CLASSES, METHODS, WIDTH, random_batch

    torch.manual_seed(0)
    net = small_resnet([2, 2, 2, 2], 16 if quick else WIDTH, CLASSES)
    trained = METHODS[method](net).to(DEVICE).to(memory_format=torch.channels_last).train()
    if compiled:
        net.compile()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9)
    images, labels = random_batch(12 if quick else 4 * BATCH)
    images = images.to(DEVICE).to(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        with _bf16():
            loss = trained(images, labels.to(DEVICE)).loss
        loss.backward()
        optimizer.step()

    return step


def _calib_step(quick: bool, game: bool) -> Callable[[], Any]:
    from benchmarks.calib.step import Players, game_step, images, players

    batch = 4 if quick else 256
    nets: Any = [net.to(DEVICE) for net in players(1 if quick else 9)]
    who = Players(*nets)
    source, target = (images(batch, seed).to(DEVICE) for seed in (0, 1))
    both = torch.cat([source, target]).requires_grad_()
    # The work that no method can leave out: the classifier and its gradient to the images.
    alone = lambda: who.classifier(both).sum().backward()  # noqa: E731
    play = game_step(who, source, target, table=True) if game else alone

    def step() -> None:
        with _bf16():
            play()

    return step


def _guided_step(method: str, quick: bool) -> Callable[[], None]:
    import fsd
    from fsd.guidance import METHODS

    torch.manual_seed(0)
    prior = fsd.EmbeddedPrior(device=DEVICE)
    scene = fsd.grid_scene(16 if quick else 48, samples=16 if quick else 64).to(DEVICE)
    guide = METHODS[method](prior, seed=0, guidance_scale=4.0).to(DEVICE)
    optimizer = torch.optim.Adam(scene.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    prompt = prior.encode_text("a red mushroom")

    def step() -> None:
        cameras = fsd.cameras.orbit(batch=4, generator=generator, views=prior.views)
        view = scene.render(cameras, 32)
        out = guide(view.image, prompt, cameras, progress=0.5, opacity=view.opacity)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(main())
