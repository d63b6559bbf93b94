"""Steps on a stand-in for a GPU: nothing is left on the CPU, and a step waits once, for whether it is finite."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from calib import adaptation, translate
from calib.adaptation import adapt
from calib.attachment import CalibratedClassifier, attach
from calib.baselines import METHODS, Labelled, Settings, target_supervised
from calib.bodies import BODIES
from calib.calibrator import FITS, MODES, Calibrator
from calib.critics import FeatureCritic, PixelCritic, PixelwiseFeatureCritic, draw_patch
from calib.cyclegan import ImagePool
from calib.features import Features
from calib.neighbours import Neighbours
from calib.players import Players
from calib.step import Batch, Critics, Weights
from calib.supervised import train_classifier
from calib.views import Views
from shared_core.data.arrays import ArrayImages
from shared_core.run.folder import RunFolder
from shared_core.run.guard import FiniteGuard
from shared_core.testing import pretend_device
from torch import nn
from torch.utils.data import TensorDataset

META, CLASSES, SIZE = torch.device("meta"), 3, 16
FINITE, LOG = "is the step finite?", "numbers for the log"

# All places of calib that read values back, beside the judgement of a step and the log.  None of them comes in a step.
ONCE = {"the value range", "features of clean images, once", "the moments of a domain", FITS}
NOW_AND_THEN = {
    "answers to the validation sample",
    "validators",
    "the calibrator that is kept",
    "what are the zooms worth?",
    "what do the views say of all images?",
    "who is near?",
}


def values(zeros):
    """The ends of a value range are 0 and 1; all else that is read is 0."""
    if zeros.dim() == 4 and zeros.shape[0] == 2 and zeros.shape[2:] == (1, 1):
        zeros[1] = 1
    return zeros


def domain(n=24):
    return ArrayImages(torch.zeros(n, 3, SIZE, SIZE, dtype=torch.uint8), torch.arange(n) % CLASSES)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, CLASSES))


class Standing(Accelerator):
    """accelerate's accelerator on the stand-in, which no process can be on."""

    device = META

    def __init__(self):
        super().__init__(cpu=True)

    def prepare(self, optimizer):
        return AcceleratedOptimizer(optimizer, device_placement=False)


@pytest.fixture
def standing(monkeypatch):
    """adapt on the stand-in, without what it proves of the classifier before and after all steps."""
    monkeypatch.setattr(adaptation, "join", lambda *_: Standing())
    monkeypatch.setattr(adaptation, "digest", lambda _sums: "")
    monkeypatch.setattr(adaptation, "checksums", lambda _net: {})
    monkeypatch.setattr(adaptation.checkpoint, "save", lambda *_: None)
    monkeypatch.setattr(CalibratedClassifier, "verify", lambda _self: None)
    monkeypatch.setattr(Calibrator, "save_pretrained", lambda *_: None)

    def try_out(model, features, weights, images):
        return None if features is None else features(images)

    monkeypatch.setattr(adaptation, "try_out", try_out)


def segmenter():
    return nn.Conv2d(3, CLASSES, 1)


TAUGHT = {"weights": Weights(pixel=0.0, feature=0.0, views=1.0, hold=1.0)}
BOTH = {"weights": Weights(views=1.0, hold=1.0), "views": Views(count=2, threshold=0.0)}
FORMS = {
    "both critics": {},
    "no table": {},
    "pixel critic": {"weights": Weights(feature=0.0)},
    "feature critic": {"weights": Weights(pixel=0.0)},
    "critics of every pixel": {"net": segmenter},
    "logits": {"feature": "logits"},
    "a layer": {"feature": "layer:0"},
    "teacher": {**TAUGHT, "views": Views(count=2)},
    "teacher beside critics": BOTH,
    "shaken": {**BOTH, "views": Views(count=2, shake=0.1)},
    "neighbours": {**BOTH, "neighbours": Neighbours(count=3, every=2)},
    "neighbours by answers": {**TAUGHT, "views": Views(2), "neighbours": Neighbours(3, answers=0.3)},
    "skip": {"on_nonfinite": "skip", **BOTH},
    "in two parts": {"accumulate": 2},
    "in two parts, skip": {"accumulate": 2, "on_nonfinite": "skip"},
    "no average": {"ema": None, **BOTH},
    "released": {"compat": "released", "mode": "released"},
}


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_adaptation_waits_once(form, standing, tmp_path, monkeypatch):
    settings = {**FORMS[form]}
    net, mode = settings.pop("net", linear), settings.pop("mode", "signed")
    model = attach(net(), Calibrator(3, 0.2, 2, 0, mode=mode), outputs="logits")
    steps, data = 4, domain() if net is linear else TensorDataset(domain().images)
    monkeypatch.setattr("calib.feed.TABLE_LIMIT", 0 if form == "no table" else 2**27)
    with pretend_device(values) as reasons:
        report = adapt(
            model, data, data, steps=steps, batch_size=8, validate_every=99, validation_images=12,
            selection="last", log_every=2, out=tmp_path, **settings,
        )  # fmt: skip
    assert report.skipped_steps == 0
    assert reasons.count(FINITE) == steps
    assert reasons.count(LOG) == steps // 2
    assert set(reasons) - {FINITE, LOG} <= ONCE | NOW_AND_THEN
    # Between the judgements of two steps nothing is read but a log's line, or a survey that was due.
    places = [at for at, reason in enumerate(reasons) if reason == FINITE]
    between = {r for a, b in pairwise(places) for r in reasons[a + 1 : b]}
    surveyed = {"what do the views say of all images?", "who is near?"} if "neighbours" in settings else set()
    assert between - surveyed == {LOG}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("mode", MODES)
def test_a_calibrator_looks_at_the_first_batch_of_a_device_alone(body, mode):
    calibrator = Calibrator(3, 0.2, 4, 1, body, mode).to(META)
    images = torch.zeros(2, 3, SIZE, SIZE, device=META)
    with pretend_device() as reasons:
        calibrator(images).sum().backward()
        calibrator(images, torch.zeros(2, device=META))
        assert reasons == [FITS]
        calibrator._looked = False
        calibrator(images, torch.zeros((), device=META))
    assert reasons == 3 * [FITS]


def test_images_in_another_range_are_refused_in_the_first_batch_of_a_device(monkeypatch):
    calibrator = Calibrator(3, 0.2, 4, 1).to(META)
    monkeypatch.setattr(calibrator, "_range_words", lambda: "the value range [0, 1]")
    with (
        pretend_device(torch.ones_like),
        pytest.raises(ValueError, match=r"images run from 1 to 1, outside of the value range \[0, 1\]"),
    ):
        calibrator(torch.zeros(2, 3, SIZE, SIZE, device=META))


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("feature", [None, "vector", "map"])
def test_a_step_of_both_players_waits_once(careful, rounds, feature):
    net = (segmenter() if feature == "map" else linear()).to(META)
    critic = {None: None, "vector": FeatureCritic(CLASSES), "map": PixelwiseFeatureCritic(CLASSES)}[feature]
    made = Players(
        Calibrator(3, 0.2, 2, 0).to(META), Critics(PixelCritic(3), critic).to(META), Features(net), Weights(),
        Standing(), steps=3,
    )  # fmt: skip
    guard = FiniteGuard("skip" if careful else "error")
    images = torch.zeros(4, 3, SIZE, SIZE, device=META)
    clean = None if feature is None else net(images).softmax(1).detach()
    batch = Batch(images, images, clean, clean)
    with pretend_device() as reasons:
        for number in range(2):
            patch = draw_patch(SIZE, SIZE, 4, 0, number)
            made.play(rounds * [(batch, patch)], lambda parts, n=number: guard.accepts(parts, n), careful)
    assert reasons == [FITS, FINITE, FINITE]


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).mean((2, 3)))


# Per step; bn_adapt takes none that could go wrong, and tent and it see the target once.
WAITS = {"tent": 1, "deep_coral": 3, "dann": 3, "adda": 3, "shot_im": 3, "target_supervised": 3}
BEFORE = {
    "moment_matching": 2 * ["the moments of a domain"],
    "surest_view": len(Views().zooms) * ["what are the zooms worth?"],
    "neighbours": [
        *len(Views().zooms) * ["what are the zooms worth?"],
        "what do the views say of all images?",
        "who is near?",
    ],
}


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize("name", [*METHODS, "target_supervised"])
def test_a_step_of_a_baseline_waits_once(name, where):
    net, settings = Normed().to(META).eval(), Settings(steps=3, batch_size=8, outputs="logits")
    images = torch.zeros(24, 3, SIZE, SIZE, dtype=torch.uint8, device=where)
    labelled = Labelled(images, torch.arange(24) % CLASSES)
    with pretend_device() as reasons:
        if name == "target_supervised":
            adapted = target_supervised(net, labelled, settings, 0)
        else:
            adapted = METHODS[name](net, labelled, images, settings, 0)
        before = BEFORE.get(name, []) if name != "moment_matching" or where == "meta" else []
        assert reasons == before + WAITS.get(name, 0) * [FINITE]
        reasons.clear()
        assert adapted.predict(images[:4]).is_meta
    assert reasons == (["who is near?"] * 2 if name == "neighbours" else [])


def test_supervised_training_waits_once_a_step():
    with pretend_device() as reasons:
        train_classifier(linear(), domain(8), 1.0, 4, 1e-3, 0.0, 0, META)
    assert reasons == ["are answers logits or probabilities?", *2 * [FINITE]]


@pytest.mark.parametrize("pool", [0, 6])
def test_a_step_of_a_translation_waits_once(pool, monkeypatch, tmp_path):
    settings = translate.TranslateSettings(
        size=SIZE, steps=4, batch_size=4, width=4, blocks=1, critic_width=4, pool=pool, log_every=2
    )
    held = SimpleNamespace(load_latest=lambda *_: None, save=lambda *_: None)
    monkeypatch.setattr(translate, "checkpoint", held)
    monkeypatch.setattr(translate, "save_weights", lambda *_: None)
    with pretend_device() as reasons:
        translate._train(domain(), domain(), settings, 0, RunFolder(tmp_path), Standing())
    assert reasons == [FITS, FITS, *2 * [FINITE], LOG, *2 * [FINITE], LOG]


def test_the_pool_of_old_images_stays_on_its_device():
    pool = ImagePool(3, 0)
    with pretend_device() as reasons:
        for step in range(3):
            assert pool.swap(torch.zeros(2, 3, 8, 8, device=META), step).is_meta
    assert reasons == []
