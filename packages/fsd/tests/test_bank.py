"""The render bank against its equations, written out as plain loops in float64."""

import math

import pytest
import torch
from fsd.cameras import Cameras, place, turntable
from fsd.priors.bank import ELEVATIONS, RenderBank
from fsd.priors.base import Prior
from fsd.priors.mixture import alpha_sigma
from fsd.world.renders import paint, trace
from fsd.world.solids import KINDS
from fsd.world.words import COLOURS

SIZE, AZIMUTHS = 16, 12
# Off the bank's grid, and one on it; two objects of four views.
CAMERAS = place([3.0, 93.0, 183.0, 273.0, 47.0, 137.0, 227.0, 317.0], [12.0] * 4 + [30.0] * 4)


@pytest.fixture(scope="module")
def joint() -> RenderBank:
    return RenderBank(joint=True, size=SIZE, azimuths=AZIMUTHS)


@pytest.fixture(scope="module")
def alone(joint: RenderBank) -> RenderBank:
    return RenderBank(joint=False, size=SIZE, azimuths=AZIMUTHS)


def noisy(bank: RenderBank, t: float, cameras: Cameras, objects: list[int]) -> torch.Tensor:
    """The picture nearest to each camera of the object named, with noise of time t, in float64."""
    alpha, sigma = alpha_sigma(t)
    rows = []
    for camera, thing in zip(range(len(cameras)), objects, strict=True):
        turn = (bank.azimuth - cameras.azimuth_deg[camera] + 180) % 360 - 180
        rise = bank.elevation - cameras.elevation_deg[camera]
        rows.append(bank.means[thing, (turn**2 + rise**2).argmin()])
    clean = torch.stack(rows).double().view(-1, 3, SIZE, SIZE)
    return alpha * clean + sigma * torch.randn(
        clean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )


def slow_clean(
    bank: RenderBank, x_t: torch.Tensor, t: float, cameras: Cameras, fits: list[bool]
) -> torch.Tensor:
    """E[x | x_t]: sums over objects and over the views near each camera, of products of plain Gaussians.

    per view:  p(o, v | x_t) ~ fit(o) k_c(v) N(x_t; alpha m_ov, s^2);  joint:  p(o | all x_t) ~ fit(o) prod_c sum_v.
    """
    alpha, sigma = alpha_sigma(t)
    variance = alpha**2 * bank.std**2 + sigma**2
    pictures = bank.means.double()
    views = [(n * 360 / AZIMUTHS, e) for e in ELEVATIONS for n in range(AZIMUTHS)]
    # log of k_c(v) N(...), by camera, object and view
    logs: list[list[dict[int, float]]] = []
    for camera in range(len(cameras)):
        azimuth, elevation = cameras.azimuth_deg[camera].item(), cameras.elevation_deg[camera].item()
        by_object = []
        for thing in range(len(fits)):
            found = {}
            for v, (a, e) in enumerate(views):
                turn = abs(azimuth - a) % 360
                turn = min(turn, 360 - turn)
                kernel = -0.5 * (turn / bank.widths[0]) ** 2 - 0.5 * ((elevation - e) / bank.widths[1]) ** 2
                if kernel > -4.5:
                    error = (x_t[camera].flatten() - alpha * pictures[thing, v]).square().sum().item()
                    found[v] = kernel - error / (2 * variance)
            by_object.append(found)
        logs.append(by_object)

    def log_sum(terms: list[float]) -> float:
        top = max(terms)
        return top + math.log(sum(math.exp(term - top) for term in terms))

    group = bank.views if bank.joint else 1
    clean = torch.zeros(len(cameras), pictures.shape[2], dtype=torch.float64)
    for first in range(0, len(cameras), group):
        together = range(first, first + group)
        evidence = {
            thing: sum(log_sum(list(logs[camera][thing].values())) for camera in together)
            for thing in range(len(fits))
            if fits[thing]
        }
        whole = log_sum(list(evidence.values()))
        for camera in together:
            for thing, log in evidence.items():
                own = log_sum(list(logs[camera][thing].values()))
                for v, term in logs[camera][thing].items():
                    clean[camera] += math.exp(log - whole) * math.exp(term - own) * pictures[thing, v]
    return clean.view_as(x_t)


def noise_of(bank: RenderBank, clean: torch.Tensor, x_t: torch.Tensor, t: float) -> torch.Tensor:
    """-sigma grad log p(x_t), from the posterior mean by Tweedie's formula of one mode's width."""
    alpha, sigma = alpha_sigma(t)
    return sigma * (x_t - alpha * clean) / (alpha**2 * bank.std**2 + sigma**2)


def test_pictures_are_those_of_the_world(joint):
    """Objects and views in the order that names and angles say, each as if it were traced alone."""
    assert joint.means.shape == (64, len(ELEVATIONS) * AZIMUTHS, 3 * SIZE * SIZE)
    for index, view in ((0, 0), (9, 13), (46, 35), (63, 59)):
        colour, kind = joint.names[index]
        camera = place(joint.azimuth[view : view + 1], joint.elevation[view : view + 1])
        picture = paint(*trace(KINDS[kind], camera, SIZE), COLOURS[colour])[0].flatten() * 2 - 1
        # The order of sums differs with the batch, and with it a ray along an edge.
        assert (joint.means[index, view] - picture).abs().gt(1e-3).float().mean() < 0.01
    assert len(set(joint.names)) == 64
    assert (joint.azimuth[13], joint.elevation[13]) == (30.0, 10.0)


@pytest.mark.parametrize("kind", ["alone", "joint"])
@pytest.mark.parametrize(
    ("prompt", "t", "scale"),
    [("a red object", 0.6, 7.5), ("a mug", 0.9, 1.0), ("an object", 0.75, 7.5), ("blue cube", 0.98, 3.0)],
)
def test_noise_against_plain_loops(kind, prompt, t, scale, request):
    bank = request.getfixturevalue(kind)
    # Red mug and red table to start from: at these times the answer is no foregone one.
    objects = [bank.names.index(("red", "mug"))] * 4 + [bank.names.index(("blue", "table"))] * 4
    x_t = noisy(bank, t, CAMERAS, objects)
    asked = bank.encode_text(prompt)
    fits = [colour in asked.colours and thing in asked.kinds for colour, thing in bank.names]
    clean = slow_clean(bank, x_t, t, CAMERAS, fits)
    if not all(fits):
        anything = slow_clean(bank, x_t, t, CAMERAS, [True] * 64)
        clean = anything + scale * (clean - anything)
    found = bank.predict_noise(x_t, t, bank.condition(asked, CAMERAS), scale)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, noise_of(bank, clean, x_t, t), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["alone", "joint"])
def test_without_noise_it_sees_the_picture_itself(kind, request):
    """At t near 0 the posterior mean is the one picture that is there."""
    bank = request.getfixturevalue(kind)
    cameras = place(bank.azimuth[[0, 3, 6, 9]], bank.elevation[[12, 15, 18, 21]])
    thing, views = bank.names.index(("green", "mug")), torch.tensor([12, 15, 18, 21])
    picture = bank.means[thing, views].view(4, 3, SIZE, SIZE)
    alpha, _ = alpha_sigma(0.001)
    noise = bank.predict_noise(
        alpha * picture, 0.001, bank.condition(bank.encode_text("object"), cameras), 1.0
    )
    clean = clean_of(bank, noise, alpha * picture, 0.001)
    torch.testing.assert_close(clean, picture, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["alone", "joint"])
def test_noise_alone_gives_the_mean_of_what_fits(kind, request):
    """Where the image tells nothing apart, the answer is the mean of all that was asked for, weighted by the view."""
    bank = request.getfixturevalue(kind)
    # At t = 1 there are 7 % of signal left; modes so wide hide the rest.
    bank_std, bank.std = bank.std, 1e3
    try:
        condition = bank.condition(bank.encode_text("a red object"), CAMERAS)
        x_t = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        noise = bank.predict_noise(x_t, 1.0, condition, 1.0)
        clean = clean_of(bank, noise, x_t, 1.0)
    finally:
        bank.std = bank_std
    red = [n for n, (colour, _) in enumerate(bank.names) if colour == "red"]
    for camera, (views, log) in enumerate(zip(condition.views, condition.log_kernel, strict=True)):
        weight = log.double().softmax(0)
        expected = torch.einsum("v,ovd->d", weight, bank.means[red][:, views].double()) / len(red)
        torch.testing.assert_close(clean[camera].flatten(), expected, rtol=0, atol=0.02)


def clean_of(bank: RenderBank, noise: torch.Tensor, x_t: torch.Tensor, t: float) -> torch.Tensor:
    """The posterior mean behind a noise of one mode's width."""
    alpha, sigma = alpha_sigma(t)
    return (x_t - noise * (alpha**2 * bank.std**2 + sigma**2) / sigma) / alpha


def test_views_of_two_objects_do_not_mix(joint):
    """Each group of four is answered as if it were alone."""
    objects = [joint.names.index(("red", "mug"))] * 4 + [joint.names.index(("blue", "table"))] * 4
    x_t = noisy(joint, 0.9, CAMERAS, objects)
    prompt = joint.encode_text("an object")
    both = joint.predict_noise(x_t, 0.9, joint.condition(prompt, CAMERAS), 1.0)
    for part in (slice(0, 4), slice(4, 8)):
        single = joint.predict_noise(x_t[part], 0.9, joint.condition(prompt, CAMERAS[part]), 1.0)
        torch.testing.assert_close(both[part], single, rtol=0, atol=1e-12)


def test_views_of_one_object_agree_only_together(joint, alone):
    """Three clear views of a mug and one of a table: together all see the mug, alone each its own."""
    mug, table = joint.names.index(("red", "mug")), joint.names.index(("red", "table"))
    cameras = CAMERAS[:4]
    x_t = noisy(joint, 0.2, cameras, [mug, mug, mug, table])
    for bank, last in ((joint, mug), (alone, table)):
        noise = bank.predict_noise(x_t, 0.2, bank.condition(bank.encode_text("object"), cameras), 1.0)
        clean = clean_of(bank, noise, x_t, 0.2).float()
        labels, _ = bank.describe((clean + 1) / 2, cameras)
        assert labels == ["red mug"] * 3 + [" ".join(joint.names[last])]


def test_one_view_alone_is_the_same_in_any_company(alone):
    x_t = noisy(alone, 0.7, CAMERAS, list(range(8)))
    prompt = alone.encode_text("an object")
    every = alone.predict_noise(x_t, 0.7, alone.condition(prompt, CAMERAS), 1.0)
    for n in range(8):
        single = alone.predict_noise(x_t[n : n + 1], 0.7, alone.condition(prompt, CAMERAS[n : n + 1]), 1.0)
        torch.testing.assert_close(every[n : n + 1], single, rtol=0, atol=1e-12)


def test_a_prompt_keeps_others_out(joint):
    """Pictures of a blue cube, and a prompt for green balls: what comes back is a green ball."""
    cube = joint.names.index(("blue", "cube"))
    x_t = noisy(joint, 0.8, CAMERAS, [cube] * 8)
    noise = joint.predict_noise(x_t, 0.8, joint.condition(joint.encode_text("green ball"), CAMERAS), 1.0)
    labels, _ = joint.describe((clean_of(joint, noise, x_t, 0.8).float() + 1) / 2, CAMERAS)
    assert labels == ["green ball"] * 8


def test_an_open_prompt_has_no_guidance(joint):
    x_t = noisy(joint, 0.8, CAMERAS, [5] * 8)
    condition = joint.condition(joint.encode_text("an object"), CAMERAS)
    assert torch.equal(
        joint.predict_noise(x_t, 0.8, condition, 1.0), joint.predict_noise(x_t, 0.8, condition, 50.0)
    )


def test_scale_zero_is_any_object(joint):
    x_t = noisy(joint, 0.9, CAMERAS, [5] * 8)
    some, every = (joint.condition(joint.encode_text(p), CAMERAS) for p in ("a red mug", "an object"))
    zero = joint.predict_noise(x_t, 0.9, some, 0.0)
    torch.testing.assert_close(zero, joint.predict_noise(x_t, 0.9, every, 1.0))


def test_all_its_own_pictures_are_named(alone):
    """64 objects from five elevations and twelve sides: everything gets its own name, at no distance."""
    cameras = place(alone.azimuth, alone.elevation)
    for index, name in enumerate(alone.names):
        images = (alone.means[index].view(-1, 3, SIZE, SIZE) + 1) / 2
        labels, distances = alone.describe(images, cameras)
        assert labels == [" ".join(name)] * len(cameras)
        assert distances.max() < 1e-6


def test_distances_are_of_pixels_from_0_to_1(joint):
    """A grey image against pictures that differ from it where the object is: RMSE over all pixels."""
    cameras = place(joint.azimuth[:1], joint.elevation[:1])
    _, distances = joint.describe(torch.full((1, 3, SIZE, SIZE), 0.5), cameras)
    near = joint.condition(joint.encode_text("object"), cameras).views[0].tolist()
    errors = [
        math.sqrt(sum((value / 2) ** 2 for value in joint.means[thing, view].tolist()) / (3 * SIZE * SIZE))
        for thing in range(64)
        for view in near
    ]
    assert distances.item() == pytest.approx(min(errors), abs=1e-5)


def test_images_of_other_sizes_are_resized(joint):
    small, large = torch.rand(2, 3, SIZE, SIZE), torch.rand(2, 3, 3 * SIZE, 3 * SIZE, requires_grad=True)
    torch.testing.assert_close(joint.encode_image(small), small * 2 - 1)
    seen = joint.encode_image(large)
    assert seen.shape == (2, *joint.latent_shape)
    seen.sum().backward()
    assert large.grad is not None
    assert large.grad.abs().min() > 0


def test_calls_are_counted_and_no_gradient_flows():
    bank = RenderBank(size=8, azimuths=12)
    assert isinstance(bank, Prior)
    assert (bank.views, bank.calls, RenderBank(joint=False, size=8, azimuths=12).views) == (4, 0, 1)
    cameras = turntable(4)
    x_t = torch.randn(4, 3, 8, 8, requires_grad=True)
    for prompt, scale in (("a red mug", 7.5), ("an object", 7.5), ("a red mug", 1.0)):
        before = bank.calls
        noise = bank.predict_noise(x_t, 0.5, bank.condition(bank.encode_text(prompt), cameras), scale)
        assert bank.calls == before + 1
        assert not noise.requires_grad


def test_azimuth_closes_on_itself(joint):
    """Cameras a hair to either side of 0 have the same views near, with the same weight."""
    condition = joint.condition(joint.encode_text("object"), place([0.001, 359.999], 12.0))
    assert torch.equal(condition.views[0].sort().values, condition.views[1].sort().values)
    torch.testing.assert_close(condition.log_kernel[0], condition.log_kernel[1], rtol=0, atol=1e-2)


@pytest.mark.parametrize(("elevation", "shown"), [(75.0, "75"), (-30.0, "-30")])
def test_cameras_that_it_has_no_views_near(joint, elevation, shown):
    cameras = place([0.0, 0.0], [20.0, elevation])
    with pytest.raises(ValueError, match=rf"a camera at elevation {shown} deg, .* views from 0 to 40: keep"):
        joint.condition(joint.encode_text("object"), cameras)


def test_there_is_no_negative_prompt(joint):
    with pytest.raises(ValueError, match="takes no negative prompt"):
        joint.encode_text("a mug", "blurry")


def test_too_few_azimuths_for_the_kernel():
    said = r"azimuths=6 with .*10 and 7 deg: a camera can be 3.1 widths .* within 3 count; give more azimuths"
    with pytest.raises(ValueError, match=said):
        RenderBank(size=8, azimuths=6)
    assert RenderBank(size=4, azimuths=6, azimuth_width=20.0).latent_shape == (3, 4, 4)


@pytest.mark.parametrize(("distance", "fov_deg"), [(1.4, 40.0), (2.6, 60.0)])
def test_cameras_that_see_objects_at_another_size_are_named(distance: float, fov_deg: float) -> None:
    bank = RenderBank(size=16, azimuths=12)
    with pytest.raises(ValueError, match="keep cameras there"):
        bank.condition(bank.encode_text("an object"), place([0.0], 10.0, distance, fov_deg))
