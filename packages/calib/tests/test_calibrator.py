"""The calibrator's promises: bound, box, identity, units, and its words when something does not fit."""

import numpy as np
import pytest
import torch
from calib.bodies import BODIES
from calib.calibrator import MODES, Calibrator, value_range_of
from hypothesis import example, given, settings
from hypothesis import strategies as st


def randomised(calibrator, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in calibrator.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return calibrator


ANY_NET = {
    "body": st.sampled_from(list(BODIES)),
    "mode": st.sampled_from(MODES),
    "scale": st.sampled_from([0.02, 1.0, 1e3, 1e30]),
    "epsilon": st.floats(1e-3, 1.0),
    "size": st.tuples(st.integers(8, 70), st.integers(8, 70)),
    # Of the last three neither ends nor differences are round, so that each operation rounds.
    "box": st.sampled_from(
        [(0.0, 1.0), (-1.0, 1.0), (0.1134, 1.6953), (-0.8810565, 1.9427779), ((-2.1, -1.0), (2.6, 1.5))]
    ),
    "training": st.booleans(),
    "seed": st.integers(0, 99),
}


def any_net_and_images(body, mode, scale, epsilon, size, box, training, seed):
    """A calibrator with random weights, and two images that hold both ends of the range."""
    calibrator = randomised(Calibrator(2, epsilon, 2, 1, body, mode, box), scale, seed).train(training)
    low, high = calibrator.low, calibrator.high
    share = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(seed))
    share[:, :, :2], share[:, :, 2:4] = 0, 1
    return calibrator, (low + share * (high - low)).clamp(low, high)


# Here the roundings of epsilon * (high - low) fall on one side: 2 units too many, were the correction not held back.
@example(
    body="constant", mode="signed", scale=1e3, epsilon=0.9230845873744564, size=(40, 40),
    box=(-0.8810565, 1.9427779), training=False, seed=0,
)  # fmt: skip
@settings(max_examples=40, deadline=None)
@given(**ANY_NET)
def test_bound_and_box_hold_for_any_weights(**drawn):
    calibrator, images = any_net_and_images(**drawn)
    with torch.no_grad():
        corrected = calibrator(images)
    # In float64, which adds no rounding: epsilon, and one unit in the last place of the range's larger end.
    low, high = calibrator.low.double(), calibrator.high.double()
    ulp = torch.from_numpy(np.spacing(torch.maximum(low.abs(), high.abs()).float().numpy()))
    assert bool(((corrected.double() - images.double()).abs() <= drawn["epsilon"] * (high - low) + ulp).all())
    assert bool(((corrected >= calibrator.low) & (corrected <= calibrator.high)).all())


@settings(max_examples=40, deadline=None)
@given(**ANY_NET, off=st.sampled_from([0.0, torch.tensor(0.0), torch.zeros(2)]))
def test_alpha_zero_is_the_identity_bit_for_bit_for_any_weights(off, **drawn):
    calibrator, images = any_net_and_images(**drawn)
    if drawn["box"][0] == 0.0:
        # Zero has two signs, and a number may be too small for the usual form.
        images[0, 0, 4, :3] = torch.tensor([-0.0, 1e-45, 1e-40])
    with torch.no_grad():
        found = calibrator(images, off)
    assert found.numpy().tobytes() == images.numpy().tobytes()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("mode", ["signed", "positive"])
def test_starts_at_the_identity(body, mode):
    images = torch.rand(2, 3, 20, 13)
    assert torch.equal(Calibrator(3, 0.3, 2, 1, body, mode)(images), images)


def test_alpha_zero_is_the_identity_bit_for_bit_and_alpha_scales():
    calibrator = randomised(Calibrator(1, 0.5, 2, 1), 1.0).eval()
    images = torch.rand(3, 1, 16, 16) * 0.2 + 0.4
    images[0, 0, 0, 0] = 0.0
    signed_zero = -images.new_zeros(())
    images[0, 0, 0, 1] = signed_zero
    whole = calibrator(images)
    for off in (0.0, torch.tensor(0.0), torch.zeros(3)):
        out = calibrator(images, off).detach()
        assert out.numpy().tobytes() == images.numpy().tobytes()
    each = calibrator(images, torch.tensor([0.0, 1.0, 0.5]))
    assert torch.equal(each[0], images[0])
    assert torch.equal(each[1], whole[1])
    inside = (whole[2] > 0) & (whole[2] < 1)
    assert torch.allclose((each[2] - images[2])[inside], (whole[2] - images[2])[inside] / 2, atol=1e-6)


def test_positive_only_brightens_and_released_starts_bright():
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    positive = randomised(Calibrator(1, 0.2, 2, 1, mode="positive"), 1.0).eval()
    assert bool((positive(images) >= images).all())
    torch.manual_seed(0)
    released = Calibrator(1, 0.2, 2, 1, mode="released").eval()
    # tanh is near 0 at the start, so (tanh + 1) / 4 is near 0.25, clamped to epsilon.
    at_epsilon = (released(images) - images - 0.2).abs() < 1e-6
    assert float(at_epsilon.float().mean()) > 0.6


def test_released_rule_is_the_released_codes_in_its_own_units():
    torch.manual_seed(1)
    calibrator = randomised(Calibrator(1, 0.2, 2, 1, mode="released", value_range=(-1.0, 1.0)), 0.3).eval()
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    tanh = torch.tanh(calibrator.body(images))
    by_hand = (images + ((tanh + 1) / 2).clamp(0, 0.4)).clamp(-1, 1)
    assert torch.allclose(calibrator(images), by_hand, atol=1e-6)


def test_epsilon_means_the_same_in_every_value_range():
    mean, std = (0.5, 0.4), (0.2, 0.3)
    plain = randomised(Calibrator(2, 0.3, 2, 1), 1.0).eval()
    other = Calibrator(2, 0.3, 2, 1, value_range=value_range_of(mean, std)).eval()
    other.body.load_state_dict(plain.body.state_dict())
    images = torch.rand(2, 2, 16, 16)
    shift, scale = (torch.tensor(v).reshape(-1, 1, 1) for v in (mean, std))
    expected = (plain(images) - shift) / scale
    assert torch.allclose(other((images - shift) / scale), expected, atol=1e-3)


def test_black_and_white_pixels_learn_at_full_strength():
    calibrator = Calibrator(1, 0.3, 2, 1, "constant")
    for value in (0.0, 0.5, 1.0):
        calibrator.zero_grad()
        calibrator(torch.full((1, 1, 32, 32), value)).sum().backward()
        assert torch.allclose(calibrator.body.map.grad, torch.full_like(calibrator.body.map, 0.3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0; it is a share of the value range"),
        ({"epsilon": 51.0}, "51 of 255 grey levels"),
        ({"body": "unet"}, "body is 'unet'; choose residual, depthwise, lowres, folded, constant"),
        ({"mode": "negative"}, "mode is 'negative'; choose signed"),
        ({"width": 0}, "width=0"),
        ({"value_range": (1.0, 0.0)}, "low must be below high"),
        ({"value_range": ([0.0, 0.0], 1.0)}, "one finite number or 3"),
        ({"value_range": (0.0, float("inf"))}, "finite"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Calibrator(**{"channels": 3, **arguments})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 1, 16, 16), r"takes \(batch, 3, height, width\)"),
        (torch.rand(1, 3, 7, 16), "from 8 up"),
        (torch.randint(255, (1, 3, 8, 8), dtype=torch.uint8), "images are torch.uint8; give floats"),
        (torch.rand(1, 3, 8, 8) * 255, "outside of the value range"),
        (torch.full((1, 3, 8, 8), float("nan")), "outside of the value range"),
    ],
)
def test_images_that_do_not_fit_are_refused(as_a_user, images, message):
    with pytest.raises(ValueError, match=message):
        Calibrator(3, 0.2, 2, 1)(images)


@pytest.mark.parametrize("wrong", [1.5, -1.0, float("nan")])
def test_alpha_outside_of_its_range_is_refused(wrong):
    calibrator, images = Calibrator(1, 0.2, 2, 1), torch.rand(2, 1, 8, 8)
    for alpha in (wrong, torch.tensor(wrong), torch.tensor([1.0, wrong])):
        with pytest.raises(ValueError, match=r"alpha is .*must be from 0 \(off\) to 1"):
            calibrator(images, alpha)


@settings(max_examples=20, deadline=None)
@given(**ANY_NET, alpha=st.floats(width=32))
def test_bound_holds_for_any_alpha_where_it_cannot_be_refused(alpha, **drawn):
    calibrator, images = any_net_and_images(**drawn)
    # As in a graph, which goes by the same lines without the check.
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        found = [calibrator(images, value) for value in (alpha, torch.tensor(alpha), torch.full((2,), alpha))]
    low, high = calibrator.low.double(), calibrator.high.double()
    ulp = torch.from_numpy(np.spacing(torch.maximum(low.abs(), high.abs()).float().numpy()))
    for moved in found:
        assert bool(((moved.double() - images.double()).abs() <= drawn["epsilon"] * (high - low) + ulp).all())
        if not alpha > 0:
            assert torch.equal(moved, images)


def test_value_range_of_holds_black_and_white_however_they_are_rounded():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    calibrator = Calibrator(3, 0.2, 2, 1, value_range=value_range_of(mean, std))
    ends = torch.tensor([0.0, 1.0])
    for normalised in (
        (ends - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None],
        ends / torch.tensor(std)[:, None] - torch.tensor(mean)[:, None] / torch.tensor(std)[:, None],
    ):
        images = normalised.reshape(1, 3, 1, 2).repeat(1, 1, 8, 4)
        assert calibrator(images).shape == images.shape  # and it is not refused as out of range


def test_value_range_of_refuses_what_is_no_normalisation():
    with pytest.raises(ValueError, match="std above 0"):
        value_range_of((0.5,), (0.0,))


def test_bfloat16_stays_within_one_rounding_of_the_bound():
    calibrator = randomised(Calibrator(1, 0.25, 2, 1), 1.0).eval()
    images = torch.rand(2, 1, 16, 16).bfloat16()
    out = calibrator(images).detach()
    assert out.dtype == torch.bfloat16
    assert float((out.float() - images.float()).abs().max()) <= 0.25 + 2**-8


@pytest.mark.compile
@pytest.mark.parametrize("alpha", [1.5, -1.0, float("nan"), torch.tensor(1.5), torch.tensor(float("nan"))])
def test_compiled_cuts_an_alpha_that_it_cannot_refuse(alpha):
    calibrator = randomised(Calibrator(1, 0.2, 2, 1), 1.0).eval()
    images = torch.rand(2, 1, 16, 16)
    out = torch.compile(calibrator, backend="eager")(images, alpha)
    assert torch.allclose(out, calibrator(images, 1.0 if alpha > 0 else 0.0), atol=1e-5)


@pytest.mark.compile
def test_compiled_passes_through_what_it_cannot_refuse():
    calibrator = randomised(Calibrator(1, 0.2, 2, 1), 1.0).eval()
    images = torch.rand(3, 1, 16, 16)
    images[1, 0, 0, 0] = 2.0
    images[2, 0, 3, 3] = float("nan")
    out = torch.compile(calibrator)(images)
    assert torch.allclose(out[:1], calibrator(images[:1]), atol=1e-5)
    assert torch.equal(out[1], images[1])
    assert torch.equal(out[2].nan_to_num(9.0), images[2].nan_to_num(9.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": "0.2"}, "epsilon is '0.2'; give a number"),
        ({"channels": 2.5}, "channels=2.5.*whole numbers"),
        ({"value_range": "01"}, r"value_range is '01'; give \(low, high\)"),
        ({"value_range": 1.0}, r"value_range is 1.0; give \(low, high\)"),
    ],
)
def test_settings_of_another_type_are_refused_by_name(as_a_user, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Calibrator(**{"channels": 3, **settings})


@pytest.mark.parametrize(
    ("alpha", "message"),
    [(torch.ones(5), r"alpha has shape \(5,\) for 2 images"), ([0.5, 0.5], "alpha is a list; give a number")],
)
def test_alpha_of_another_number_or_type_is_refused(as_a_user, alpha, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Calibrator(3)(torch.rand(2, 3, 16, 16), alpha)
