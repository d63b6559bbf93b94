"""Translation: losses against slow loops, the pool, resume and kill bit for bit, the folder that it writes."""

import dataclasses
import json
import os
import signal

import pytest
import torch
from calib import translate as training
from calib.cyclegan import (
    ImagePool,
    critic_loss,
    cycle_loss,
    generator,
    generator_loss,
    patch_critic,
)
from calib.pose import poses, poses_of
from calib.translate import PRESETS, TranslateSettings, train_translation
from calib.translations import (
    class_folder_names,
    label_flips,
    load_translation,
    translate,
    write_translations,
)
from safetensors.torch import load_file
from shared_core.data.arrays import ArrayImages
from shared_core.data.open import open_dataset
from shared_core.run.config import ConfigError
from shared_core.run.folder import RunFolderError
from shared_core.run.guard import NonFiniteError
from shared_core.run.metrics import read
from shared_core.testing import assert_same_state, gradients_agree, run_ranks


def randn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_critic(real, fake):
    r, f = real.flatten().tolist(), fake.flatten().tolist()
    return (sum((v - 1) ** 2 for v in r) / len(r) + sum(v**2 for v in f) / len(f)) / 2


def slow_generator(fake):
    values = fake.flatten().tolist()
    return sum((v - 1) ** 2 for v in values) / len(values)


def slow_cycle(back, images):
    pairs = list(zip(back.flatten().tolist(), images.flatten().tolist(), strict=True))
    # In [-1, 1], where a difference is twice what it is in [0, 1].
    return sum(abs((2 * a - 1) - (2 * b - 1)) for a, b in pairs) / len(pairs)


LOSSES = {
    "critic": (critic_loss, slow_critic, lambda: (randn(1, 2, 1, 3, 3), randn(2, 2, 1, 3, 3))),
    "generator": (generator_loss, slow_generator, lambda: (randn(1, 2, 1, 3, 3),)),
    "cycle": (cycle_loss, slow_cycle, lambda: (randn(1, 2, 1, 3, 3), randn(2, 2, 1, 3, 3))),
}
every_loss = pytest.mark.parametrize(("loss", "slow", "arguments"), LOSSES.values(), ids=LOSSES)


@every_loss
def test_loss_equals_slow_loops(loss, slow, arguments):
    assert float(loss(*arguments())) == pytest.approx(slow(*arguments()), rel=1e-12)


@every_loss
def test_loss_gradient_and_one_element(loss, slow, arguments):
    gradients_agree(loss, *arguments())
    one = [x[:1, :, :1, :1] for x in arguments()]
    assert float(loss(*one)) == pytest.approx(slow(*one), rel=1e-12)


@every_loss
def test_loss_of_half_precision_is_computed_in_single(loss, slow, arguments):
    half = [x.bfloat16() for x in arguments()]
    assert float(loss(*half)) == pytest.approx(slow(*[x.double() for x in half]), rel=1e-5)


@every_loss
@pytest.mark.compile
def test_compiled_loss_equals_eager(loss, slow, arguments):
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(*arguments()), loss(*arguments()))


def test_generator_starts_at_the_identity_and_stays_in_range():
    images = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = generator(3, width=4, blocks=1)
    assert torch.equal(net(images), images)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=3)
    made = net(images)
    assert made.min() >= 0
    assert made.max() <= 1
    assert (made - images).abs().max() > 0.5


@pytest.mark.parametrize(("strided", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_critic_sees_patches_of_the_size_it_states(strided, patch):
    torch.manual_seed(0)
    critic = patch_critic(1, width=2, strided=strided).double()
    # Instance norm looks at the whole image; without it the field of view is that of the convolutions.
    layers = [layer for layer in critic if not isinstance(layer, torch.nn.InstanceNorm2d)]
    image = torch.rand(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    verdicts = torch.nn.Sequential(*layers)(image)
    middle = verdicts.shape[-1] // 2
    (gradient,) = torch.autograd.grad(verdicts[0, 0, middle, middle], image)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == patch


def test_pool_fills_then_swaps_half():
    pool = ImagePool(4, seed=0)
    first = torch.arange(4.0).view(4, 1, 1, 1)
    assert torch.equal(pool.swap(first, 0), first)
    came_out = [pool.swap(torch.full((2, 1, 1, 1), 10.0 + step), step) for step in range(1, 41)]
    fresh = sum(int((out == 10.0 + step).sum()) for step, out in enumerate(came_out, start=1))
    assert 20 < fresh < 65
    stored = pool.state_dict()["images"]
    assert stored.shape == (4, 1, 1, 1)
    # Nothing is lost or doubled by a swap: all values that went in are out or in the pool.
    values = torch.cat([*came_out, stored]).flatten().tolist()
    assert sorted(values) == sorted([0, 1, 2, 3, *(10.0 + step for step in range(1, 41) for _ in range(2))])


def test_pool_takes_part_of_a_batch_and_continues_from_its_state():
    def batch(step):
        return torch.full((3, 1, 1, 1), float(step))

    pool, again = ImagePool(4, seed=3), ImagePool(4, seed=3)
    for step in range(2):
        pool.swap(batch(step), step)
    again.load_state_dict(pool.state_dict())
    for step in range(2, 12):
        assert torch.equal(pool.swap(batch(step), step), again.swap(batch(step), step))
    none = ImagePool(0, seed=3)
    assert torch.equal(none.swap(batch(5), 0), batch(5))
    assert none.state_dict() == {}


TINY = TranslateSettings(
    size=8,
    channels=1,
    steps=5,
    batch_size=4,
    width=2,
    blocks=1,
    critic_width=4,
    pool=6,
    log_every=1,
    checkpoint_every=2,
)


def domain(seed, low, high, count=18, size=10):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(low, high, (count, 1, size, size), generator=generator).to(torch.uint8)
    return ArrayImages(images, torch.arange(count) % 3, ["a", "b", "c"])


SOURCE, TARGET = domain(1, 0, 120), domain(2, 130, 256, count=11, size=8)


def run(out, resume=False, settings=TINY, seed=0):
    return train_translation(SOURCE, TARGET, settings, seed, out, resume, device="cpu")


def assert_equal_runs(a, b):
    for name in ("generator", "back"):
        assert_same_state(load_file(a / f"{name}.safetensors"), load_file(b / f"{name}.safetensors"))
    plain = [
        [{k: v for k, v in line.items() if k != "time"} for line in read(folder / "metrics.jsonl")]
        for folder in (a, b)
    ]
    assert plain[0] == plain[1]
    results = [json.loads((folder / "result.json").read_text()) for folder in (a, b)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_a_run_is_a_function_of_the_seed_and_leaves_the_callers_generator(tmp_path):
    drawn = torch.get_rng_state()
    run(tmp_path / "a")
    assert torch.equal(drawn, torch.get_rng_state())
    torch.manual_seed(5)
    run(tmp_path / "b")
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert run(tmp_path / "c", seed=1)["cycle"] != run(tmp_path / "a", resume=True)["cycle"]


def two_processes(out, pose):
    # A target of 12: batches of 4 that two share.
    more = dataclasses.replace(TINY, steps=8, pose=pose)
    return train_translation(SOURCE, domain(2, 130, 256, 12, 8), more, 0, out, True, device="cpu")


@pytest.mark.parametrize("pose", [False, True])
def test_two_processes_equal_one(pose, tmp_path):
    one = two_processes(tmp_path / "one", pose)
    first, second = run_ranks(two_processes, 2, tmp_path / "two", pose, timeout=120.0)
    # Old images are in play, or the pools would not be tested.
    assert TINY.pool < 8 * TINY.batch_size
    for name in one.keys() - {"seconds"}:
        assert first[name] == second[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
    # What the nets make, and not their weights: a bias in front of a norm changes nothing and is left to rounding.
    for name in ("generator", "back"):
        a, b = (load_translation(tmp_path / run, name).generator for run in ("one", "two"))
        images = SOURCE.images.float() / 255
        assert (translate(a, images) - images).abs().max() > 1e-3
        torch.testing.assert_close(translate(b, images), translate(a, images), rtol=0, atol=1e-4)


def odd_batch(out):
    with pytest.raises(ConfigError, match="a batch of 11 images cannot be shared evenly by 2 processes"):
        run(out, settings=dataclasses.replace(TINY, batch_size=12))
    return True


def test_a_batch_that_two_cannot_share_is_refused(tmp_path):
    assert run_ranks(odd_batch, 2, tmp_path / "run") == [True, True]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kind", "pose"), [("signal", False), ("signal", True), ("crash", False)])
def test_stopped_and_resumed_equals_straight(kind, pose, tmp_path, monkeypatch):
    settings = dataclasses.replace(TINY, pose=pose)
    run(tmp_path / "straight", settings=settings)
    true_update, calls = training._update, []

    def update(players, optimizer, loss):
        calls.append(1)
        if len(calls) == 6 and kind == "crash":
            raise KeyboardInterrupt
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        true_update(players, optimizer, loss)

    monkeypatch.setattr(training, "_update", update)
    with pytest.raises(SystemExit if kind == "signal" else KeyboardInterrupt) as stopped:
        run(tmp_path / "resumed", settings=settings)
    if kind == "signal":
        assert stopped.value.code == 143
    monkeypatch.undo()
    with pytest.raises(RunFolderError, match="unfinished run: resume it"):
        run(tmp_path / "resumed", settings=settings)
    run(tmp_path / "resumed", resume=True, settings=settings)
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


def test_training_moves_the_style(tmp_path):
    """Dots, sparse in the source and dense in the target."""
    generator = torch.Generator().manual_seed(0)
    sparse, dense = (
        ArrayImages(
            (torch.rand(40, 1, 16, 16, generator=generator) < share).to(torch.uint8) * 255,
            torch.zeros(40, dtype=torch.int64),
        )
        for share in (0.1, 0.7)
    )
    settings = dataclasses.replace(
        TINY, size=16, steps=60, width=4, critic_width=8, learning_rate=5e-3, checkpoint_every=200
    )
    train_translation(sparse, dense, settings, 0, tmp_path / "run", device="cpu")
    x, y = (data.images.float() / 255 for data in (sparse, dense))
    forth, back = (load_translation(tmp_path / "run", name).generator for name in ("generator", "back"))
    assert float(translate(forth, x, batch_size=7).mean()) > float(x.mean()) + 0.15
    assert float(translate(back, y).mean()) < float(y.mean()) - 0.15


def test_a_domain_smaller_than_a_batch_gives_all_it_has(tmp_path):
    few = domain(2, 130, 256, count=3, size=8)
    result = train_translation(
        SOURCE, few, dataclasses.replace(TINY, steps=2), 0, tmp_path / "a", device="cpu"
    )
    assert result["steps"] == 2


def test_a_loss_that_is_not_finite_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "cycle_loss", lambda a, b: (a - b).sum() * torch.inf)
    with pytest.raises(NonFiniteError, match=r"'cycle' is (nan|inf|-inf) at step 1"):
        run(tmp_path / "a")


@pytest.fixture(scope="module")
def translation(tmp_path_factory):
    out = tmp_path_factory.mktemp("translation") / "run"
    run(out)
    return load_translation(out)


def test_written_folder_opens_with_labels_and_pixels_kept(translation, tmp_path):
    assert write_translations(translation, SOURCE, tmp_path / "out") == len(SOURCE)
    opened = open_dataset(f"imagefolder:{tmp_path / 'out'}", "train")
    assert opened.class_names == ["a", "b", "c"]
    assert len(opened) == len(SOURCE)
    assert sorted(opened.labels.tolist()) == sorted(SOURCE.labels.tolist())
    image, label = opened[0]
    place = int(os.path.basename(opened.files[0]).removesuffix(".png"))
    assert label == int(SOURCE.labels[place])
    fitted = training.fitting(8, 1).fit(SOURCE.images[place])[None].float() / 255
    expected = (translate(translation.generator, fitted) * 255).round()
    # Opened as RGB: three equal channels.
    assert (image.float() - expected[0]).abs().max() <= 1
    with pytest.raises(ValueError, match="is there already"):
        write_translations(translation, SOURCE, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train"]


def test_nothing_is_left_of_a_folder_that_could_not_be_written(translation, tmp_path):
    class Broken(ArrayImages):
        @property
        def class_names(self):
            return ["a", "b"]

        @class_names.setter
        def class_names(self, names):
            pass

    with pytest.raises(IndexError):
        write_translations(translation, Broken(SOURCE.images, SOURCE.labels), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def bars(heights, count=12):
    """White bars of these heights in turn on black, standing off the centre by turns."""
    images = torch.zeros(count, 1, 16, 16, dtype=torch.uint8)
    for i, image in enumerate(images):
        half = heights[i % len(heights)] // 2
        image[0, 8 - half : 8 + half, 7 + i % 2 : 9 + i % 2] = 255
    return ArrayImages(images, torch.arange(count) % 3, ["a", "b", "c"])


def test_with_pose_the_source_stands_as_the_target_in_training_and_in_what_is_written(tmp_path, monkeypatch):
    source, target = bars([4]), bars([8, 10, 12])
    seen = []
    true = training.cycle_loss
    monkeypatch.setattr(
        training, "cycle_loss", lambda back, images: seen.append(images) or true(back, images)
    )
    settings = dataclasses.replace(TINY, size=16, steps=1, pose=True, learning_rate=1e-9)
    run = tmp_path / "run"
    train_translation(source, target, settings, 0, run, device="cpu")
    wanted = poses_of(target, 16, 1)
    # The first that a step compares with what came back are source images.
    assert float(poses(seen[0]).height.min()) > 1.5 * float(poses_of(source, 16, 1).height.max())

    translation = load_translation(run)
    for have, want in zip(translation.poses, wanted, strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=0)
    assert load_translation(run, "back").poses is None
    write_translations(translation, source, run)
    opened = open_dataset(f"imagefolder:{run}", "train")
    made = poses_of(opened, 16, 1)
    assert float(made.height.min()) >= 0.95 * float(wanted.height.min())
    assert float(made.height.max()) <= 1.1 * float(wanted.height.max())

    # What a judge sees of the images as they are is not posed.
    def low(images):
        return torch.stack(
            [torch.zeros(len(images)), 0.2 - poses(images).height, torch.full((len(images),), -9)], 1
        )

    ones = ArrayImages(source.images, torch.ones(len(source), dtype=torch.int64), ["a", "b", "c"])
    assert label_flips(low, ones, translation) == {"before": 0.0, "after": 100.0}


def test_class_folders_keep_the_order_of_the_classes():
    assert class_folder_names(["0 - zero", "1 - one"]) == ["0 - zero", "1 - one"]
    eleven = class_folder_names([str(number) for number in range(11)])
    assert eleven == sorted(eleven)
    assert eleven[2] == "02"
    assert class_folder_names(["b", "a"]) == ["0", "1"]
    assert class_folder_names(["a/../..", "b"]) == ["0", "1"]
    assert class_folder_names(["a", "a"]) == ["0", "1"]


def test_label_flips_count_what_a_classifier_calls_otherwise(translation):
    def always_a(images):
        assert images.shape[1:] == (1, 8, 8)
        return torch.tensor([1.0, 0.0, 0.0]).expand(len(images), 3)

    share = 100 * float((SOURCE.labels != 0).float().mean())
    assert label_flips(always_a, SOURCE, translation) == pytest.approx({"before": share, "after": share})

    def right_on_originals(images):
        """Knows the original images by heart."""
        known = torch.stack([training.fitting(8, 1).fit(image) for image in SOURCE.images]).float() / 255
        gap = (images[:, None] - known[None]).flatten(2).abs().amax(2)
        found = torch.nn.functional.one_hot(SOURCE.labels[gap.argmin(1)], 3).float()
        exact = gap.amin(1) < 1e-6
        return torch.where(exact[:, None], found, -found)

    assert label_flips(right_on_originals, SOURCE, translation) == {"before": 0.0, "after": 100.0}


@pytest.mark.usefixtures("as_a_user")
def test_bad_input_is_named(translation, tmp_path):
    with pytest.raises(ValueError, match=r"outside of the value range \[0, 1\]"):
        translate(translation.generator, torch.rand(1, 1, 9, 8) + 1)
    with pytest.raises(ValueError, match="give floats"):
        translate(translation.generator, SOURCE.images)
    with pytest.raises(ValueError, match="holds no translation"):
        load_translation(tmp_path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": 4}, "size is 4; give 8"),
        ({"steps": 0}, "steps is 0; give a number above 0"),
        ({"channels": 2}, "channels is 2"),
        ({"critic_strided": 4}, "critic_strided 4"),
    ],
)
def test_settings_name_the_bad_one(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(PRESETS["digits"], **values)
