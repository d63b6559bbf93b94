"""A step that is skipped changes nothing but the counter, critics included, and too many in a row end the run."""

import copy

import pytest
import torch
from calib import adaptation, step
from calib.adaptation import adapt
from calib.attachment import attach
from calib.calibrator import Calibrator
from calib.step import Critics, Weights
from calib.views import Views
from shared_core.data.arrays import ArrayImages
from shared_core.run import checkpoint
from shared_core.run.guard import NonFiniteError
from shared_core.run.metrics import read
from shared_core.testing import assert_same_state, scale_losses
from torch import nn

SETTINGS = {
    "batch_size": 8, "validate_every": 100, "validation_images": 12, "device": "cpu", "checkpoint_every": 1,
    "schedule": "cosine", "on_nonfinite": "skip",
}  # fmt: skip
TAUGHT = {"weights": Weights(pixel=0.0, feature=0.0, views=1.0, hold=1.0), "views": Views(2, threshold=0.0)}


def domain(seed):
    images = torch.randint(256, (24, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()
    return ArrayImages(images, torch.arange(24) % 2)


def model(mode="signed"):
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 2)).eval()
    return attach(classifier, Calibrator(1, 0.3, 2, 1, mode=mode))


def bad_gradient(monkeypatch, of, steps):
    """The gradient of the calibrator (or the critics) is infinite at these steps, counted from 1."""
    real, calls = step.average_gradients, []

    def broken(module):
        norm = real(module)
        if isinstance(module, Critics) != (of == "critics"):
            return norm
        calls.append(1)
        if len(calls) not in steps:
            return norm
        for parameter in module.parameters():
            parameter.grad.fill_(float("inf"))
        return norm * float("inf")

    monkeypatch.setattr(step, "average_gradients", broken)


def bad_loss(monkeypatch, name, steps):
    real, calls = getattr(step, name), []

    def broken(*given):
        parts = real(*given)
        calls.append(1)
        return {key: part * (float("nan") if len(calls) in steps else 1.0) for key, part in parts.items()}

    monkeypatch.setattr(step, name, broken)


def recorded(monkeypatch):
    """What a checkpoint holds after every step, the random generator included."""
    states = []

    def save(folder, number, saved, state):
        found = {name: part.state_dict() for name, part in saved.items()}
        states.append(copy.deepcopy({**found, "drawn": torch.get_rng_state()}))

    monkeypatch.setattr(checkpoint, "save", save)
    return states


BROKEN = {
    "gradient": lambda patch, steps: bad_gradient(patch, "calibrator", steps),
    "critics' gradient": lambda patch, steps: bad_gradient(patch, "critics", steps),
    "critics' loss": lambda patch, steps: bad_loss(patch, "critics_loss", steps),
    "loss": lambda patch, steps: bad_loss(patch, "deception_loss", steps),
}
FORMS = {
    "critics": {},
    "views beside critics": {**TAUGHT, "weights": Weights(views=1.0, hold=1.0)},
    "no critics": TAUGHT,
    "no average": {"ema": None},
    "released": {"compat": "released"},
    "dropout in the calibrator while it teaches": {**TAUGHT, "ema": None},
}
PLAYED = ("critics", "views beside critics", "no average", "released")


@pytest.mark.parametrize("what", BROKEN)
def test_a_run_whose_every_step_is_bad_ends_after_ten(what, monkeypatch):
    BROKEN[what](monkeypatch, range(1, 99))
    with pytest.raises(NonFiniteError, match=r"at step 11: .*\(10 steps before it were skipped in a row\)"):
        adapt(model(), domain(0), domain(1), steps=20, **SETTINGS)


def test_without_critics_a_bad_gradient_ends_the_run_as_well(monkeypatch):
    BROKEN["gradient"](monkeypatch, range(1, 99))
    with pytest.raises(NonFiniteError, match="'gradient_norm' is inf at step 11"):
        adapt(model(), domain(0), domain(1), steps=20, **TAUGHT, **SETTINGS)


@pytest.mark.parametrize(
    ("what", "form"),
    [(what, form) for what in BROKEN for form in FORMS if what == "gradient" or form in PLAYED],
)
def test_a_bad_step_now_and_then_changes_nothing_but_the_counter(what, form, monkeypatch, tmp_path):
    BROKEN[what](monkeypatch, (3, 5))
    released = form == "released" or form.startswith("dropout")
    calibrated, states = model("released" if released else "signed"), recorded(monkeypatch)
    report = adapt(calibrated, domain(0), domain(1), steps=6, out=tmp_path, **FORMS[form], **SETTINGS)
    assert report.skipped_steps == 2
    assert [state.pop("guard")["skipped"] for state in states] == [0, 0, 1, 1, 2, 2]
    assert_same_state(states[2], states[1])
    assert_same_state(states[4], states[3])
    for number in (1, 3, 5):
        with pytest.raises(AssertionError, match="calibrator"):
            assert_same_state(
                {"calibrator": states[number]["calibrator"]}, {"calibrator": states[number - 1]["calibrator"]}
            )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_images_that_are_not_finite_are_judged_with_the_rest_of_the_step(
    bad, accumulate, tmp_path, monkeypatch
):
    batches = list(torch.rand(8, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    batches[2 * accumulate][1, 0, 3, 3] = bad
    more = {**TAUGHT, "weights": Weights(views=1.0, hold=1.0), "accumulate": accumulate}
    states = recorded(monkeypatch)
    report = adapt(model(), domain(0), batches, steps=4, out=tmp_path, **more, **SETTINGS)
    assert report.skipped_steps == 1
    assert [state.pop("guard")["skipped"] for state in states] == [0, 0, 1, 1]
    assert_same_state(states[2], states[1])


def test_the_judge_of_a_step_is_asked_once_and_sees_all(monkeypatch):
    asked = []
    real = adaptation.accepted

    def accepted(guard, accelerator, number, parts):
        asked.append(list(parts))
        return real(guard, accelerator, number, parts)

    monkeypatch.setattr(adaptation, "accepted", accepted)
    for accumulate in (1, 2):
        asked.clear()
        adapt(model(), domain(0), domain(1), steps=2, accumulate=accumulate, **SETTINGS)
        critics = ["critic_pixel", "critic_feature", "critics_gradient_norm"]
        assert asked == 2 * [
            ["source_images", "target_images", *critics, "pixel", "feature", "gradient_norm"]
        ]


def scaled(monkeypatch, overflows):
    """adapt under a loss scaler, on the CPU."""
    real = adaptation.join

    def join(*given):
        accelerator = real(*given)
        scale_losses(accelerator, overflows)
        return accelerator

    monkeypatch.setattr(adaptation, "join", join)


def rates(folder):
    return [line["rates"] for line in read(folder / "metrics.jsonl") if "rates" in line]


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("form", ["critics", "no critics"])
def test_a_step_that_the_loss_scaler_leaves_out_is_a_skipped_one(policy, form, monkeypatch, tmp_path):
    scaled(monkeypatch, lambda scale: scale > 2**14)
    calibrated, states = model(), recorded(monkeypatch)
    more = {**SETTINGS, **FORMS[form], "on_nonfinite": policy, "log_every": 1}
    report = adapt(calibrated, domain(0), domain(1), steps=4, out=tmp_path, **more)
    assert report.skipped_steps == 2
    assert [state.pop("guard")["skipped"] for state in states] == [1, 2, 2, 2]
    assert [state.pop("scaler")["scale"] for state in states] == [2**15, 2**14, 2**14, 2**14]
    # Rates, average, optimizers, weights, the generator where steps may be skipped: nothing moves.
    for state in states if policy == "error" else ():
        state.pop("drawn")
    assert_same_state(states[1], states[0])
    assert states[0]["calibrator_schedule"]["last_epoch"] == 0
    assert states[2]["calibrator_schedule"]["last_epoch"] == 1
    found = rates(tmp_path)
    assert all(rate == 1e-3 for rate in (*found[0].values(), *found[1].values()))
    assert all(rate < 1e-3 for rate in found[2].values())


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_player_s_rate_moves_with_its_own_net(policy, monkeypatch, tmp_path):
    """The calibrator's gradient alone overflows: the second backward pass of each of the first two steps."""
    passes = []
    scaled(monkeypatch, lambda _scale: passes.append(1) or len(passes) in (2, 4))
    calibrated, states = model(), recorded(monkeypatch)
    settings = {**SETTINGS, "on_nonfinite": policy}
    assert adapt(calibrated, domain(0), domain(1), steps=3, out=tmp_path, **settings).skipped_steps == 2
    steps = [[s[f"{name}_schedule"]["last_epoch"] for s in states] for name in ("calibrator", "critics")]
    # Critics that moved before are put back where a copy of them was kept.
    assert steps == [[0, 0, 1], [1, 2, 3] if policy == "error" else [0, 0, 1]]
    assert_same_state(states[0]["averaged"], states[1]["averaged"])
    if policy == "skip":
        assert_same_state(states[0]["critics"], states[1]["critics"])


def test_a_refused_step_leaves_the_loss_scaler_as_it_was(monkeypatch, tmp_path):
    scaled(monkeypatch, lambda _scale: False)
    bad_loss(monkeypatch, "critics_loss", (2,))
    calibrated, states = model(), recorded(monkeypatch)
    report = adapt(calibrated, domain(0), domain(1), steps=3, out=tmp_path, **SETTINGS)
    assert report.skipped_steps == 1
    assert [state.pop("guard")["in_a_row"] for state in states] == [0, 1, 0]
    assert_same_state(states[1], states[0])


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_gradients_that_overflow_at_every_scale_end_the_run(policy, monkeypatch):
    scaled(monkeypatch, lambda _scale: True)
    with pytest.raises(NonFiniteError, match=r"left out 40 steps in a row up to step 40: .*bf16"):
        adapt(model(), domain(0), domain(1), steps=60, **{**SETTINGS, "on_nonfinite": policy})
