"""The loop: it adapts, resumes bit for bit, stops when told, runs on two processes, and says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from calib.adaptation import adapt
from calib.attachment import ClassifierChangedError, attach
from calib.calibrator import Calibrator
from calib.critics import FeatureCritic, PixelCritic, draw_patch
from calib.neighbours import Neighbours
from calib.step import Critics, Weights
from calib.views import Views
from shared_core.data.arrays import ArrayImages
from shared_core.run import checkpoint
from shared_core.run.guard import NonFiniteError
from shared_core.testing import assert_same_state, run_ranks
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

SHORT = {
    "batch_size": 8,
    "validate_every": 4,
    "validation_images": 24,
    "device": "cpu",
    "checkpoint_every": 4,
}
TAUGHT = Weights(pixel=0.0, feature=0.0, views=1.0, hold=1.0)


def toy(n=40, shift=0.0, seed=0):
    """Two classes, bright left or bright right; `shift` lifts the whole image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = 0.1 * torch.rand(n, 1, 8, 8, generator=generator)
    for label in (0, 1):
        images[labels == label, :, :, 4 * label : 4 * label + 4] += 0.5
    return ArrayImages(((images + shift).clamp(0, 1) * 255).to(torch.uint8), labels)


def classifier():
    """Compares the right half's mean brightness with 0.3, which a lift of 0.3 crosses."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Dropout(0.5)).eval()
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1].view(8, 8)[:, 4:] = 20 / 32
        net[1].bias.copy_(torch.tensor([6.0, 0.0]))
    return net


def model(seed=0, **more):
    torch.manual_seed(seed)
    return attach(classifier(), Calibrator(1, 0.3, 2, 1, **more))


def weights_of(calibrated):
    return {name: value.clone() for name, value in calibrated.calibrator.state_dict().items()}


def test_the_classifier_does_not_change_and_the_caller_s_random_state_neither():
    calibrated, before = model(), torch.get_rng_state()
    report = adapt(calibrated, toy(), toy(shift=0.3), steps=4, **SHORT)
    calibrated.verify()
    assert report.classifier_unchanged
    assert torch.equal(torch.get_rng_state(), before)
    assert report.steps == 4
    assert report.epsilon_unit == "share of the value range"


def test_other_target_labels_give_the_same_calibrator():
    target, runs = toy(shift=0.3), []
    for labels in (target.labels, 1 - target.labels):
        calibrated = model()
        adapt(calibrated, toy(), ArrayImages(target.images, labels), steps=4, **SHORT)
        runs.append(weights_of(calibrated))
    assert_same_state(*runs)


class Alarmed(torch.Tensor):
    """Labels that may be carried along with their images, but raise as soon as anything looks at one."""

    CARRIED = ("__get__", "__getitem__", "cat", "dim")

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), more=None):
        if function.__name__ not in cls.CARRIED:
            raise AssertionError(f"{function.__name__} looked at a target label")
        return super().__torch_function__(function, types, arguments, more or {})


def test_target_labels_are_never_looked_at():
    target = toy(shift=0.3)
    batches = list(zip(target.images.split(8), target.labels.split(8), strict=True))
    alarmed = [(images, labels.as_subclass(Alarmed)) for images, labels in batches]
    adapt(model(), toy(), alarmed, steps=4, **SHORT)
    # The alarm works: this selection does look.
    with pytest.raises(AssertionError, match="looked at a target label"):
        adapt(model(), toy(), alarmed, steps=4, selection="oracle", **SHORT)


def test_without_critics_none_is_kept_nor_asked(tmp_path):
    settings = {"weights": TAUGHT, "views": Views(count=2, threshold=0.0), **SHORT}
    report = adapt(model(), toy(), toy(shift=0.3), steps=4, out=tmp_path, log_every=1, **settings)
    assert report.classifier_unchanged
    assert "confusion" not in report.validators
    assert "critics" not in checkpoint.load(tmp_path / "checkpoints").tensors
    with pytest.raises(ValueError, match=r"'confusion', which needs a critic: .* choose information"):
        adapt(model(), toy(), toy(shift=0.3), steps=4, selection="confusion", **settings)


@pytest.mark.parametrize("images", [1, 2])
def test_one_or_two_target_images_have_no_neighbourhoods_and_are_enough_without(images):
    for selection in ("last", "information"):
        calibrated = model()
        report = adapt(calibrated, toy(), toy(images, shift=0.3), steps=2, selection=selection, **SHORT)
        assert report.classifier_unchanged
        assert "neighbourhood" not in report.validators
    with pytest.raises(ValueError, match="'neighbourhood', which needs three or more target images"):
        adapt(model(), toy(), toy(images, shift=0.3), steps=2, selection="neighbourhood", **SHORT)


def test_a_brightness_shift_is_undone_enough_to_be_named_right():
    source, target = toy(80), toy(80, shift=0.3, seed=1)
    calibrated = model()

    def accuracy(alpha):
        with torch.no_grad():
            answers = calibrated(target.images.float() / 255, alpha).argmax(1)
        return 100 * float((answers == target.labels).float().mean())

    before = accuracy(0.0)
    adapt(
        calibrated, source, target, steps=80, learning_rate=3e-3, weights=Weights(source=1.0),
        selection="last", **{**SHORT, "batch_size": 20},
    )  # fmt: skip
    assert accuracy(1.0) >= before + 20
    assert accuracy(0.0) == before


class KnowsLargeSquares(nn.Module):
    """Tells filled from hollow squares by their middle; small ones, which leave the border dark, are all "filled"."""

    def forward(self, images):
        reach = images[:, 0, :, [2, 3, 12, 13]].mean((1, 2))
        hollow = 1 - 2 * images[:, 0, 6:10, 6:10].mean((1, 2))
        sure = functional.softplus(30 * (reach - 0.25))
        return torch.stack([1.5 - sure * hollow, sure * hollow], 1)


def squares(half, n=40):
    """Squares of `half` pixels to each side of the centre of 16 by 16: even ones filled, odd ones hollow."""
    images = torch.zeros(n, 1, 16, 16, dtype=torch.uint8)
    images[:, :, 8 - half : 8 + half, 8 - half : 8 + half] = 255
    inner = half // 2
    images[1::2, :, 8 - inner : 8 + inner, 8 - inner : 8 + inner] = 0
    return ArrayImages(images, torch.arange(n) % 2)


@pytest.mark.slow
def test_views_teach_what_the_classifier_knows_of_larger_images():
    right = []
    for zooms in ((1.0,), Views().zooms):
        torch.manual_seed(0)
        calibrated = attach(KnowsLargeSquares(), Calibrator(1, 0.5, 4, 1))
        adapt(
            calibrated, squares(6), squares(4), steps=60, learning_rate=3e-3, selection="last",
            weights=Weights(pixel=0.0, feature=0.0, views=1.0, hold=1.0),
            views=Views(zooms=zooms, shear=0.0, threshold=0.5), **{**SHORT, "batch_size": 20},
        )  # fmt: skip
        with torch.no_grad():
            answers = calibrated(squares(4).images.float() / 255).argmax(1)
        right.append(float((answers == squares(4).labels).float().mean()))
        calibrated.verify()
    # Asked about the images as they are, it teaches that all are filled.
    assert right == [0.5, 1.0]


@pytest.mark.parametrize(("weights", "words"), [(Weights(views=1.0), "views"), (Weights(hold=1.0), "hold")])
def test_what_names_classes_is_no_part_of_the_released_code(weights, words):
    released = model(mode="released")
    with pytest.raises(ValueError, match=words):
        adapt(released, toy(), toy(shift=0.3), steps=2, weights=weights, compat="released", **SHORT)


@pytest.mark.parametrize("mode", ["signed", "positive"])
def test_the_released_code_is_repeated_whole_or_not_at_all(mode):
    with pytest.raises(ValueError, match=f"with mode='released' .it has '{mode}'"):
        adapt(model(mode=mode), toy(), toy(shift=0.3), steps=2, compat="released", **SHORT)


@pytest.mark.parametrize("stopped_at", [3, 4, 7])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"ema": None, "accumulate": 2},
        {"compat": "released"},
        {"weights": Weights(views=1.0, hold=1.0), "views": Views(count=2, threshold=0.0)},
        {
            "weights": Weights(views=1.0, hold=1.0),
            "views": Views(count=2),
            "neighbours": Neighbours(count=3, threshold=0.0, every=2),
        },
        {"weights": TAUGHT, "views": Views(count=2, threshold=0.0, shake=0.1)},
    ],
)
def test_resume_equals_the_straight_run_bit_for_bit(tmp_path, stopped_at, more, monkeypatch):
    mode = "released" if "compat" in more else "signed"
    straight = model(mode=mode)
    adapt(straight, toy(), toy(shift=0.3), steps=8, out=tmp_path / "straight", log_every=1, **more, **SHORT)

    from calib import adaptation

    class Stopped:
        def __init__(self):
            self.asked, self.exit_code = 0, 143

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            return None

        def agreed(self):
            self.asked += 1
            return self.asked == stopped_at

    broken = model(mode=mode)
    with monkeypatch.context() as patched:
        patched.setattr(adaptation, "StopFlag", Stopped)
        with pytest.raises(SystemExit) as stop:
            adapt(
                broken, toy(), toy(shift=0.3), steps=8, out=tmp_path / "broken", log_every=1, **more, **SHORT
            )
    assert stop.value.code == 143
    resumed = model(seed=99, mode=mode)
    adapt(
        resumed,
        toy(),
        toy(shift=0.3),
        steps=8,
        out=tmp_path / "broken",
        resume=True,
        log_every=1,
        **more,
        **SHORT,
    )
    assert_same_state(weights_of(resumed), weights_of(straight))
    found = [checkpoint.load(tmp_path / name / "checkpoints").tensors for name in ("broken", "straight")]
    assert_same_state(*found)
    assert lines(tmp_path / "broken") == lines(tmp_path / "straight")


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in found]


KILLED = """
import sys; sys.path.insert(0, {tests!r})
from test_adaptation import SHORT, model, toy
from calib.adaptation import adapt
adapt(model(), toy(), toy(shift=0.3), steps=200, out={out!r}, resume=True, log_every=1, **SHORT)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on(tmp_path, how):
    out = tmp_path / "run"
    code = KILLED.format(tests=os.path.dirname(__file__), out=str(out))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    for _ in range(600):
        if checkpoint.latest(out / "checkpoints") or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(how)
    _, words = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 143), words.decode()
    step = checkpoint.load(out / "checkpoints").step
    assert 0 < step < 200
    resumed, straight = model(), model()
    adapt(resumed, toy(), toy(shift=0.3), steps=200, out=out, resume=True, log_every=1, **SHORT)
    adapt(straight, toy(), toy(shift=0.3), steps=200, **SHORT)
    assert_same_state(weights_of(resumed), weights_of(straight))


def two_processes(critics=None, **more):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    calibrated = attach(classifier().double(), Calibrator(1, 0.3, 2, 1).double())
    critics = critics or Critics(PixelCritic(1, 4, 8), FeatureCritic(2, (8, 6), dropout=0.0)).double()
    # Doubles, or the order of a sum would show.
    data = [Floats(toy(), torch.float64), Floats(toy(shift=0.3), torch.float64)]
    adapt(calibrated, *data, steps=12, critics=critics, selection="last", ema=None, **more, **SHORT)
    return {name: value.detach() for name, value in calibrated.calibrator.state_dict().items()}


class Floats(torch.utils.data.Dataset):
    def __init__(self, images, dtype=torch.float32):
        self.images, self.dtype = images, dtype

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, label = self.images[index]
        return image.to(self.dtype) / 255, label


def two_processes_with_views():
    return two_processes(weights=Weights(views=1.0, hold=1.0), views=Views(count=2, threshold=0.0))


def two_processes_without_critics():
    return two_processes(Critics(None, None), weights=TAUGHT, views=Views(count=2, threshold=0.0, shake=0.1))


def two_processes_with_neighbours():
    return two_processes(
        weights=Weights(views=1.0, hold=1.0),
        views=Views(count=2),
        neighbours=Neighbours(count=3, threshold=0.0, every=5),
    )


@pytest.mark.parametrize(
    "work",
    [two_processes, two_processes_with_views, two_processes_with_neighbours, two_processes_without_critics],
)
def test_two_processes_equal_one(work):
    one, (first, second) = work(), run_ranks(work, 2, timeout=120.0)
    for name, value in one.items():
        assert torch.allclose(value, first[name], atol=1e-9), name
        assert torch.equal(first[name], second[name]), name


def test_loaders_do_as_well_and_unequal_batches_too():
    report = adapt(
        model(), DataLoader(Floats(toy()), 7), DataLoader(Floats(toy(30, 0.3)), 11), steps=6, selection="last",
        **{**SHORT, "precision": "fp32"},
    )  # fmt: skip
    assert report.chosen_step == 6


def test_pixels_only_need_no_gradient_of_the_classifier():
    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = classifier()

        @torch.no_grad()
        def forward(self, images):
            return self.net(images)

    calibrated = attach(Closed(), Calibrator(1, 0.3, 2, 1))
    with pytest.raises(ValueError, match="gives no gradient to its input"):
        adapt(calibrated, toy(), toy(shift=0.3), steps=2, **SHORT)
    adapt(calibrated, toy(), toy(shift=0.3), steps=2, weights=Weights(feature=0.0), **SHORT)
    calibrated.verify()


def test_released_faults_are_all_there_and_reported(monkeypatch):
    from calib import adaptation

    tops = []

    def drawn(*given, top_rows_only=False):
        tops.append(top_rows_only)
        return draw_patch(*given, top_rows_only=top_rows_only)

    monkeypatch.setattr(adaptation, "draw_patch", drawn)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 2)).eval()
    calibrated = attach(net, Calibrator(1, 0.3, 2, 1, mode="released"))
    report = adapt(calibrated, toy(), toy(shift=0.3), steps=3, compat="released", **SHORT)
    assert report.compat == "released"
    assert not report.classifier_unchanged
    assert tops == [True] * 3
    images = torch.rand(4, 1, 8, 8) * 0.5
    with torch.no_grad():
        lifted = calibrated.calibrator(images) - images
    assert float(lifted.min()) >= 0
    assert float(lifted.max()) > 0.1
    with pytest.raises(ClassifierChangedError, match=r"1\.running_mean"):
        calibrated.verify()


def test_segmentation_scores_get_a_critic_for_every_pixel():
    net = nn.Conv2d(1, 2, 1).eval()
    calibrated = attach(net, Calibrator(1, 0.3, 2, 1))
    images = [torch.rand(4, 1, 16, 16)]
    report = adapt(calibrated, images, images, steps=2, weights=Weights(pixel=0.0), **SHORT)
    assert report.classifier_unchanged


def test_oracle_needs_labels():
    bare = [torch.rand(4, 1, 8, 8)]
    with pytest.raises(ValueError, match="selection is 'oracle', but the target has no labels"):
        adapt(model(), toy(), bare, steps=2, selection="oracle", **SHORT)
    assert adapt(model(), toy(), toy(shift=0.3), steps=4, selection="oracle", **SHORT).selection == "oracle"


def test_a_loss_that_is_not_finite_is_named():
    calibrated = model()
    calibrated.calibrator.body[1].weight.data.fill_(float("inf"))
    critics = Critics(PixelCritic(1, 4), None)
    critics.pixel.net[0].weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="loss part 'critic_pixel' is nan at step 1"):
        adapt(calibrated, toy(), toy(shift=0.3), steps=2, critics=critics, **SHORT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"selection": "best"}, "selection is 'best'; choose information, entropy"),
        ({"compat": "old"}, "compat is 'old'; choose none, released"),
        ({"schedule": "step"}, "schedule is 'step'; choose constant, cosine"),
        ({"precision": "int8"}, "precision is 'int8'; choose fp32"),
        ({"steps": 0}, "steps=0"),
        ({"accumulate": 3}, "a batch size that they divide"),
        ({"precision": "fp16", "accumulate": 2}, "use bf16"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"patch": 16}, "patch is 16 pixels, the image 8x8"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        adapt(model(), toy(), toy(shift=0.3), **{"steps": 2, **SHORT, **arguments})


def test_domains_in_different_ranges_are_named():
    floats = [torch.rand(8, 1, 8, 8)]
    with pytest.raises(ValueError, match=r"target images run from .* outside of the value range \[0, 1\]"):
        adapt(model(), floats, [255 * images for images in floats], steps=2, **SHORT)
    with pytest.raises(ValueError, match="different ranges"):
        adapt(model(), floats, [images / 255 for images in floats], steps=2, **SHORT)


def test_a_folder_holds_what_the_run_left(tmp_path):
    calibrated = model()
    report = adapt(calibrated, toy(), toy(shift=0.3), steps=4, out=tmp_path / "run", **SHORT)
    assert json.loads((tmp_path / "run" / "adaptation.json").read_text())["chosen_step"] == report.chosen_step
    again = Calibrator.from_pretrained(tmp_path / "run" / "calibrator")
    assert_same_state(again.state_dict(), calibrated.calibrator.state_dict())


@pytest.mark.gpu
def test_a_gpu_adapts_in_half_precision(tmp_path):
    report = adapt(model(), toy(), toy(shift=0.3), steps=4, precision="fp16", **{**SHORT, "device": "cuda"})
    assert report.classifier_unchanged
