"""What is filled into docs/results/corsd.md, its figure and rows, from the finished runs of corsd/accuracy.py."""

import statistics
from pathlib import Path
from typing import Any

from corsd.config import PRESETS
from corsd.summary import paired_interval
from shared_core.run.atomic import write_json, write_text

from benchmarks.core.marks import filled

PAGE = Path(__file__).parents[2] / "docs" / "results" / "corsd.md"
# Preset, net, training images of the data set, and 10^9 multiplications of the net for an image of the preset.
TO_MEASURE = [
    ("cifar100", "small:mobilenet-v2", 50_000, 0.088),
    ("cifar100", "small:resnet18", 50_000, 0.56),
    ("cifar100", "small:resnet50", 50_000, 1.30),
    ("cifar100", "small:wrn16-8", 50_000, 1.55),
    ("cifar100", "small:resnet101", 50_000, 2.51),
    ("cifar100", "small:wrn28-10", 50_000, 5.24),
    ("imagenet", "torchvision:resnet18", 1_281_167, 1.81),
    ("imagenet", "torchvision:resnet50", 1_281_167, 4.09),
    ("cub200", "torchvision:resnet18", 5_994, 1.81),
    ("cub200", "torchvision:resnet50", 5_994, 4.09),
]
# Two operations a multiplication, a backward pass as two forward ones, CORSD's own quarter (corsd/step.py).
OPERATIONS = 2 * 3 * 1.25
GPU = 20e12  # operations a second; an A100's peak in bf16 is 312e12, of which nets of this size reach a small part


def write_page(
    folder: Path,
    rows: list[dict],
    notes: dict[str, str],
    trials: list[dict],
    required: list[str],
    peer: dict[str, Any] | None = None,
) -> None:
    """Write corsd.json, corsd.png and corsd.md into ``folder``; ``peer`` is peers/torchdistill_accuracy.py's."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "corsd.json", rows)
    _figure(folder / "corsd.png", rows)
    settings = dict.fromkeys(row["setting"] for row in rows)
    parts = {
        "in short": _verdict(rows),
        "settings": "\n".join(
            _section(setting, [r for r in rows if r["setting"] == setting], notes, required)
            for setting in settings
        ),
        "torchdistill": _beside(peer) if peer else "",
        "tuning": _tuning(trials),
        "hours to measure": _to_measure(),
    }
    write_text(folder / "corsd.md", filled(PAGE.read_text(encoding="utf-8"), parts))


def _best_control(rows: list[dict]) -> dict:
    controls = [row for row in rows if not row["method"].lower().startswith("corsd")]
    return max(controls, key=lambda row: statistics.fmean(row["accuracy"]))


def _gain(own: dict, other: dict) -> tuple[float, list[float] | None]:
    seeds = sorted(set(own["seeds"]) & set(other["seeds"]))
    a, b = ([r["accuracy"][r["seeds"].index(s)] for s in seeds] for r in (own, other))
    return statistics.fmean(a) - statistics.fmean(b), paired_interval(a, b)


def _words(gain: float, interval: list[float] | None) -> str:
    return f"{gain:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def _verdict(rows: list[dict]) -> str:
    lines = ["## In short\n"]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = [r for r in rows if r["setting"] == setting]
        best = _best_control(own)
        for row in own:
            if row["method"] in ("CORSD (triplets)", "CORSD (in-batch)", "corsd v2", "corsd v2, mixing off"):
                against_ce, interval = _gain(row, next(r for r in own if r["method"] == "cross-entropy"))
                low, high = interval or (0, 0)
                shown = "a gain" if low > 0 else "a loss" if high < 0 else "no difference shown"
                over_best = _words(*_gain(row, best))
                lines.append(
                    f"- **{setting}**, {row['method']}: {_words(against_ce, interval)} points over cross-entropy "
                    f"({shown}); {over_best} over the best control, {best['method']}."
                )
    return "\n".join(lines) + "\n"


def _section(setting: str, rows: list[dict], notes: dict[str, str], required: list[str]) -> str:
    best = _best_control(rows)
    baseline = next(r for r in rows if r["method"] == "cross-entropy")
    lines = [
        f"## {setting}\n",
        f"{notes[setting]}.  {rows[0]['images_seen']:,} images seen by every row; seeds "
        f"{', '.join(map(str, baseline['seeds']))}.\n",
        "| method | accuracy, mean (sd) | over cross-entropy | over the best control | train accuracy "
        "| noise 0.05 / 0.1 | calibration error | core-seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mean, sd = statistics.fmean(row["accuracy"]), _sd(row["accuracy"])
        noise = " / ".join(f"{statistics.fmean(n[s] for n in row['noise']):.1f}" for s in ("0.05", "0.1"))
        over_ce = "" if row is baseline else _words(*_gain(row, baseline))
        over_best = "best" if row is best else _words(*_gain(row, best))
        name = row["method"] + ("" if row["method"] in required else " *")
        lines.append(
            f"| {name} | {mean:.2f} ({sd}) | {over_ce} | {over_best} | {statistics.fmean(row['train_accuracy']):.1f} "
            f"| {noise} | {statistics.fmean(row['calibration_error']):.1f} "
            f"| {statistics.fmean(row['seconds']):.0f} |"
        )
    return "\n".join(lines) + "\n\n(* ablations and further controls)\n"


def _beside(peer: dict[str, Any]) -> str:
    seeds, accuracy = peer["seeds"], peer["accuracy"]
    version = next(line.removeprefix("torchdistill==") for line in peer["versions"] if "distill" in line)
    lines = [
        "## Beside torchdistill\n",
        f"The digits once more, in one run with torchdistill {version} in an environment of its own "
        f"(`benchmarks/peers/torchdistill_accuracy.py`): the same {peer['steps']} batches, learning rates and first "
        f"weights for all, seeds {seeds[0]} to {seeds[-1]}.  It distils two models; its teacher is the plain net of "
        "another seed.  With half the steps, teacher and student together have seen as many images as the others.  A "
        "first run (commit cf7e763, same seeds) had ours channels-last, so that the plain nets of both sides were not "
        "the same nets: it is replaced, and its means were 96.20 (in-batch) and 96.27 (triplets).\n",
        "| trained by | accuracy, mean (sd) | over the plain net here | CORSD (in-batch) over it "
        "| CORSD (triplets) over it "
        "| core-seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in accuracy.items():
        own = {ours: _words(*_paired(accuracy[ours], values)) if ours != name else ""
               for ours in ("here: CORSD in-batch", "here: CORSD triplets")}  # fmt: skip
        over = "" if name == "here: plain" else _words(*_paired(values, accuracy["here: plain"]))
        who = name.replace("there: ", "torchdistill, ").replace("here: ", "corsd, ")
        lines.append(
            f"| {who} | {statistics.fmean(values):.2f} ({_sd(values)}) | {over} | {' | '.join(own.values())} "
            f"| {peer['core_seconds'][name]:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _paired(a: list[float], b: list[float]) -> tuple[float, list[float] | None]:
    return statistics.fmean(a) - statistics.fmean(b), paired_interval(a, b)


def _sd(values: list[float]) -> str:
    return f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"


def _tuning(trials: list[dict[str, Any]]) -> str:
    if not trials:
        return ""
    lines = ["## Tuning: accuracy on the validation split (a quarter of the training images), one seed\n"]
    lines += ["| setting | trial | accuracy | train accuracy |", "|---|---|---|---|"]
    lines += [
        f"| {t['setting']} | {t['method']} | {t['accuracy']:.2f} | {t['train_accuracy']:.1f} |"
        for t in trials
    ]
    return "\n".join(lines) + "\n"


def _to_measure() -> str:
    lines = [
        "GPU hours of one method with one seed (a command above trains nine, the controls a little faster), for a\n"
        f"loader that keeps up and a GPU that does {GPU / 1e12:.0f} TFLOP/s; MobileNet's thin layers will not reach "
        "that:\n",
        "| preset | net | images, million | GMAC an image | GPU hours |",
        "|---|---|---|---|---|",
    ]
    for preset, net, images, gmac in TO_MEASURE:
        seen = images * PRESETS[preset]().epochs
        hours = seen * gmac * 1e9 * OPERATIONS / GPU / 3600
        lines.append(f"| `{preset}` | `{net}` | {seen / 1e6:.1f} | {gmac:.2f} | {hours:.1f} |")
    return "\n".join(lines) + "\n"


def _figure(path: Path, rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = list(dict.fromkeys(row["setting"] for row in rows))
    height = 1.2 + 0.3 * max(sum(r["setting"] == s for r in rows) for s in settings)
    figure, axes = plt.subplots(1, len(settings), figsize=(5.5 * len(settings), height), squeeze=False)
    for axis, setting in zip(axes[0], settings, strict=True):
        own = [row for row in rows if row["setting"] == setting][::-1]
        for place, row in enumerate(own):
            colour = "tab:red" if row["method"].lower().startswith("corsd") else "tab:blue"
            axis.plot(row["accuracy"], [place] * len(row["accuracy"]), "o", color=colour, alpha=0.5)
            axis.plot(
                statistics.fmean(row["accuracy"]), place, "|", color=colour, markersize=16, markeredgewidth=2
            )
        axis.set_yticks(range(len(own)), [row["method"] for row in own])
        axis.set_xlabel("test accuracy, %  (dot: a seed, bar: mean)")
        axis.set_title(setting)
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
