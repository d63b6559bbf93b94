"""The part of a report that ``calib analyse`` adds: corrections of other kinds, and Fourier amplitudes."""

from pathlib import Path

from markupsafe import Markup
from shared_core.run.atomic import read_json
from shared_core.run.report import figure, heading, table, text

from calib import figures
from calib.analysis import as_percent, missing, score_column
from calib.calibrator import EPSILON_UNIT


def analysis(run: Path) -> list[Markup]:
    """Sections from analysis.json; a sentence on how to get it where there is none."""
    path = run / "analysis.json"
    if not path.is_file():
        return [
            heading("Analysis"),
            text(
                "Not made. calib analyse RUN compares the calibrator with a per-image attack on its critics and with "
                "random signs, and shows what it does to each frequency."
            ),
        ]
    found = read_json(path)
    name, scores = score_column(found)
    rows = [
        {
            "correction": row["name"],
            name: score,
            "mean size (grey levels)": f"{255 * row['mean_size']:.1f}",
            "critics take it for source": as_percent(row["confusion"]),
            "seconds": f"{row['seconds']:.2f}",
        }
        for row, score in zip(found["corrections"], scores, strict=True)
    ]
    return [
        heading("Analysis: is the calibrator an attack on its critics?"),
        text(
            "The paper reads the calibrator as an adversarial attack on the critics, learned once for all images. The "
            "attack here moves every image for itself, by projected gradient descent against the critics of the last "
            "step, within the same bound. Two controls have a size and no direction: random signs of the full bound, "
            "and random signs that move the images as far as the calibrator does on average (so that single values may "
            "move further than epsilon)."
        ),
        *[text(sentence) for sentence in missing(found)],
        table(
            rows,
            f"{found['images']} target test images, epsilon {found['epsilon']:g} ({EPSILON_UNIT}), which is "
            f"{255 * found['epsilon']:.0f} of 255 grey levels.",
        ),
        heading("Analysis: what it does to frequencies"),
        figure(
            figures.spectra(found["spectra"]),
            "Natural logarithm of the Fourier amplitude, mean over images, channels and rings of equal frequency. At "
            "the right, less the first curve: above 0 there is more of that frequency.",
        ),
    ]
