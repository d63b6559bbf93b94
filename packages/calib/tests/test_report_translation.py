"""report.html of a translation: the images that were written, beside where they came from."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from calib.pose import PosedImages, fitting
from calib.report_translation import SHOWN, report_translation
from calib.translate import TranslateSettings, train_translation
from calib.translations import load_translation, write_translations
from PIL import Image
from shared_core.data.arrays import ArrayImages

SETTINGS = TranslateSettings(
    size=16, channels=1, steps=4, batch_size=4, width=2, blocks=1, critic_width=4, log_every=1
)


def domain(seed, count, size):
    pixels = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed)) ** 4
    return ArrayImages((pixels * 255).to(torch.uint8), torch.arange(count) % 2, ["round", "<long>"])


def pictures(page):
    found = re.findall(r"data:image/png;base64,([^\"]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


@pytest.mark.parametrize("pose", [False, True])
def test_it_shows_what_was_written_under_what_it_was_made_of(pose, tmp_path):
    source, target = domain(0, 40, 20), domain(1, 9, 16)
    settings = TranslateSettings(**{**vars(SETTINGS), "pose": pose})
    train_translation(source, target, settings, 0, tmp_path, device="cpu")
    translation = load_translation(tmp_path)
    write_translations(translation, source, tmp_path)
    path = report_translation(tmp_path, source, target, "a in the style of b", {"before": 1.5, "after": 20.0})
    assert path == tmp_path / "report.html"
    page = path.read_text()
    assert "a in the style of b" in page
    assert "<dt>named otherwise, after</dt><dd>20.00 %</dd>" in page
    # Half of them, each named below and to those who do not see.
    assert page.count("&lt;long&gt;") == 2 * SHOWN // 2
    shown = pictures(page)
    assert len(shown) == SHOWN + 9
    # The last source image: number 39, of the second class.
    strip = shown[SHOWN - 1].reshape(-1, 16)
    stages = [fitting(16, 1).fit(source[39][0])[0].numpy()]
    if pose:
        stages.append(PosedImages(source, translation.poses, 16, 1, seed=0)[39][0][0].numpy())
    written = next(Path(tmp_path / "train").glob("*/000039.png"))
    stages.append(np.asarray(Image.open(written)))
    assert np.abs(strip.astype(int) - np.concatenate(stages).astype(int)).max() <= 1
    assert np.array_equal(shown[-1].reshape(16, 16), target.images[8, 0].numpy())


def test_an_unfinished_translation_has_no_report(tmp_path):
    with pytest.raises(ValueError, match=r"result\.json"):
        report_translation(tmp_path, domain(0, 4, 8), domain(1, 4, 8), "")
