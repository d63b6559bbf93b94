"""What fsd's own small priors are worth: right kinds, colours and sides of DDIM's pictures, judged by a classifier.

    python -m benchmarks.fsd.prior --out FILE [--quick] [--prompts N] [--steps N] [--scales S ...]
                                   [--multi-view FOLDER] [--camera-free FOLDER]

Of both variants, as they come with the package or from folders of `fsd train-prior`: random prompts of a colour and a
kind from random sides; colours of 256 samples of prompts that leave them open, as entropy over that of the training;
and FSD in two dimensions, by SGD of step delta lambda, against DDIM from the same noise.  The first guidance scale is
judged; the others, with a tenth of the prompts, show what it does.  On one thread, at about 8 ms for a pass of one
picture: some 15 minutes of a core for the camera-free prior, an hour for the multi-view one with its four views.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch
from fsd.prior_quality import flow_agreement, openness, prior_quality
from fsd.priors.embedded import WEIGHTS, EmbeddedPrior, in_views
from fsd.priors.multiview import open_prior

from benchmarks.core.figures import difference, options, write

VARIANTS = ("multi-view", "camera-free")
# Per cent, as the pictures of 1,000 prompts should be.
KIND, COLOUR, VIEW, OPEN, AGREE = 95.0, 95.0, 85.0, 90.0, 100.0
OPEN_PROMPTS = ("a mushroom", "an object")


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    figures, more = [], {}
    for variant in VARIANTS:
        folder = getattr(given, variant.replace("-", "_")) or WEIGHTS / variant
        if not (folder / "model_index.json").is_file():
            print(f"skipped: there is no {variant} prior in {folder}")
            more[variant] = {"skipped": f"no {folder.name}"}
            continue
        prior = opened(variant, folder)
        found = measure(prior, given)
        figures += judged(variant, found, given.quick)
        more[variant] = {"weights": fingerprint(folder), **found}
    write(given.out, given.quick, figures, threads=1, **more)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=1000, metavar="N")
    parser.add_argument(
        "--samples", type=int, default=256, metavar="N", help="of a prompt that leaves something open"
    )
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="of DDIM")
    parser.add_argument("--scales", type=float, nargs="+", default=[3.0, 1.0, 5.0, 7.5], metavar="S")
    for variant in VARIANTS:
        parser.add_argument(
            f"--{variant}", type=Path, metavar="FOLDER", help="default: what comes with the package"
        )
    given = parser.parse_args()
    if given.quick:
        given.prompts, given.samples, given.steps, given.scales = 4, 4, 3, given.scales[:2]
    return given


def opened(variant: str, folder: Path) -> Any:
    """The prior in a folder, told of sides as the embedded ones are."""
    if folder == WEIGHTS / variant:
        return EmbeddedPrior("multi-view" if variant == "multi-view" else "camera-free")
    return open_prior(folder) if variant == "multi-view" else open_prior(folder, view_words=in_views)


def measure(prior: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Quality at each scale, openness and agreement at the first."""
    first, *others = given.scales
    how = {"steps": given.steps, "guidance_scale": first}
    quality = [prior_quality(prior, given.prompts, **how)]
    print(quality[0], flush=True)
    for scale in others:
        quality.append(
            prior_quality(prior, max(1, given.prompts // 10), steps=given.steps, guidance_scale=scale)
        )
        print(quality[-1], flush=True)
    prompts = OPEN_PROMPTS[:1] if given.quick else OPEN_PROMPTS
    found = [openness(prior, prompt, given.samples, **how) for prompt in prompts]
    agreement = flow_agreement(prior, "an object", max(1, given.samples // 4), **how)
    print(*found, agreement, sep="\n", flush=True)
    return {"quality": quality, "openness": found, "agreement": agreement}


def judged(variant: str, found: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """The figures with goals, in per cent."""
    quality, agreement = found["quality"][0], found["agreement"]
    colours = [entry["colour_ratio"] for entry in found["openness"]]
    values = {
        "kind": ([quality["kind"]], KIND, "pictures of the right kind"),
        "colour": ([quality["colour"]], COLOUR, "pictures of the right colour"),
        "view": ([quality["view"]], VIEW, "right sides, of kinds with a front"),
        "open": (
            [min(colours)],
            OPEN,
            f"entropy of colours over the training's, least of {len(colours)} prompts",
        ),
        "2d": ([agreement["agree"]], AGREE, "pictures of FSD in 2D named as DDIM's"),
    }
    return [
        difference(f"{variant} {name}", what, "%", {"found": [100 * v for v in numbers], "zero": [0.0]}, "found",
                   "zero", goal=goal, at_least=True, quick=quick)
        for name, (numbers, goal, what) in values.items()
        if numbers[0] is not None
    ]  # fmt: skip


def fingerprint(folder: Path) -> str:
    """Of the network's weights, so that a figure can be traced to them."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    main()
