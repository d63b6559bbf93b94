"""Every public function that takes tensors or data refuses what it cannot take in one sentence, jaxtyping or not.

A walk over the public names finds those functions; a new one fails here until it has a case.
"""

import importlib
import inspect
import pkgutil
import re

import calib
import pytest
import torch
from calib import (
    analyse,
    answers,
    blackbox,
    critics,
    cyclegan,
    domains,
    evaluate,
    features,
    losses,
    neighbours,
    pose,
    segmentation,
    step,
    supervised,
    survey,
    translate,
    translations,
    validators,
    views,
)
from calib.adaptation import adapt
from calib.attachment import attach
from calib.baselines import METHODS, Labelled, Settings, alignment, encoders, form, frozen, statistics
from calib.calibrator import Calibrator
from calib.classifiers import Normalize, Normalized
from calib.neighbours import Neighbours
from calib.step import Batch, CalibratedBatch, Critics, Weights
from calib.views import Views
from shared_core.data.arrays import ArrayImages
from torch import nn

pytestmark = pytest.mark.usefixtures("as_a_user")

X, BYTES = torch.rand(4, 3, 8, 8), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
LABELS, Z, GROUPS = torch.tensor([0, 1, 1, 0]), torch.rand(4, 2), torch.rand(4, 4)
ONE, BATCH = torch.zeros(4), Batch(X, X, Z, Z)
SHAPE, IMAGES = r"has shape \(3, 8, 8\); it must be \(batch, channels", "images has shape"
NOT_A_TENSOR = "is a list; give a torch.Tensor of shape"


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()


def model():
    return attach(net(), Calibrator(3, 0.2, 2, 0))


def data():
    return ArrayImages(BYTES, LABELS)


def adapting(**changes):
    return lambda: adapt(model(), data(), data(), **{"steps": 1, "batch_size": 4, "device": "cpu", **changes})


def baseline(name, classifier=None, source=None, target=BYTES, settings=None):
    source = Labelled(BYTES, LABELS) if source is None else source
    return lambda: METHODS[name](classifier or net(), source, target, settings or Settings(steps=1), 0)


PIXEL, FEATURE = critics.PixelCritic(3, 4), critics.FeatureCritic(2)
PATCH = critics.draw_patch(8, 8, 4, 0, 0)
BOTH = Critics(PIXEL, FEATURE)
V, T, S = ValueError, TypeError, "source"
CASES = {
    "adaptation.adapt: model": (
        lambda: adapt(net(), data(), data()),
        T,
        "model is a Sequential; give what calib.att",
    ),
    "adaptation.adapt: source": (
        lambda: adapt(model(), X, data(), device="cpu"),
        T,
        "source is a Tensor; give a Dat",
    ),
    "adaptation.adapt: path": (
        lambda: adapt(model(), data(), "images/", device="cpu"),
        T,
        "target is a str; give a D",
    ),
    "adaptation.adapt: empty": (
        lambda: adapt(model(), data(), ArrayImages(BYTES[:0], LABELS[:0]), device="cpu"),
        V,
        "target domain holds no",
    ),
    "adaptation.adapt: shape": (
        lambda: adapt(model(), [X], [X[:, :1]], device="cpu"),
        V,
        r"target images have shape \(4, 1, 8, 8\), but the",
    ),
    "adaptation.adapt: type": (
        lambda: adapt(model(), [X], [X > 0], device="cpu"),
        V,
        "target images are torch.bool",
    ),
    "adaptation.adapt: weights": (
        adapting(weights={"pixel": 1.0}),
        T,
        "weights is a dict; give a calib.Weights",
    ),
    "adaptation.adapt: views": (adapting(views=4), T, "views is a int; give a calib.Views"),
    "adaptation.adapt: neighbours": (
        adapting(neighbours=5),
        T,
        "neighbours is a int; give a calib.Neighbours",
    ),
    "adaptation.adapt: critics": (adapting(critics=[PIXEL]), T, "critics is a list; give a calib.Critics"),
    "adaptation.adapt: steps": (adapting(steps=2.5), V, "steps is 2.5; give a whole number from 1 up"),
    "adaptation.adapt: workers": (adapting(workers=-1), V, "workers is -1; give a whole number from 0 up"),
    "adaptation.adapt: every": (
        adapting(validate_every=0),
        V,
        "validate_every is 0; give a whole number from 1",
    ),
    "adaptation.adapt: rate": (adapting(learning_rate=0), V, "learning_rate is 0; give a number above 0"),
    "adaptation.adapt: nan": (adapting(critic_learning_rate=float("nan")), V, "critic_learning_rate is nan"),
    "adaptation.adapt: betas": (adapting(betas=0.9), V, r"betas is 0.9; give two numbers in \[0, 1\)"),
    "adaptation.adapt: ema": (adapting(ema=1.0), V, r"ema is 1.0; give a decay in \[0, 1\), or None"),
    "adaptation.adapt: decay": (adapting(weight_decay=-1), V, "weight_decay is -1; give a number from 0 up"),
    "adaptation.adapt: guard": (adapting(on_nonfinite="stop"), V, "it must be 'error' or 'skip'"),
    "step.Weights": (
        lambda: Weights(pixel=-1.0),
        V,
        "weights.pixel is -1.0; it must be a finite number from 0 up",
    ),
    "analyse.accuracy_by_epsilon": (
        lambda: analyse.accuracy_by_epsilon(model(), X, LABELS[:2], [0.1]),
        V,
        r"labels has shape \(2,\); .*batch=4",
    ),
    "analyse.attack": (lambda: analyse.attack(X[0], None, Critics(PIXEL, None), 0.1), V, SHAPE),
    "analyse.random_sign": (
        lambda: analyse.random_sign(BYTES, 0.1, torch.Generator()),
        T,
        "uint8; give floating-point",
    ),
    "analyse.random_sign_epsilon": (lambda: analyse.random_sign_epsilon(X[0], 0.1), V, SHAPE),
    "analyse.log_amplitude": (lambda: analyse.log_amplitude(X[0]), V, SHAPE),
    "analyse.radial_mean": (
        lambda: analyse.radial_mean(X),
        V,
        r"spectrum has shape .* it must be \(height, width\)",
    ),
    "answers.Reading": (
        lambda: answers.Reading("a")({"b": Z}),
        V,
        "output='a' is not in what the classifier returns",
    ),
    "answers.settled": (lambda: answers.settled(net(), X[0]), V, SHAPE),
    "answers.decide": (
        lambda: answers.decide(Z.tolist()),
        T,
        r"answers are a list; give a tensor .*\(images, class",
    ),
    "answers.as_logits": (lambda: answers.as_logits(Z.sum(), "logits"), T, "answers are a single number"),
    "attachment.attach": (
        lambda: attach(net, Calibrator()),
        T,
        "the classifier is a function, not an nn.Module",
    ),
    "attachment.CalibratedClassifier.forward": (
        lambda: model()(X[0]),
        V,
        r"images have shape \(3, 8, 8\); this cali",
    ),
    "attachment.CalibratedClassifier.logits": (
        lambda: model().logits([1]),
        T,
        "images are a list; give a tensor of",
    ),
    "attachment.CalibratedClassifier.ask": (lambda: model().ask(X[0]), V, SHAPE + r".*images\[None\]"),
    "attachment.CalibratedClassifier.settle": (
        lambda: model().settle(BYTES),
        T,
        r"images.float\(\) / 255 for bytes",
    ),
    **{
        f"baselines.{where}.{name}": (baseline(name, target=BYTES[0]), V, "target " + SHAPE)
        for where, names in {
            "alignment": ("deep_coral", "dann"),
            "encoders": ("adda", "shot_im"),
            "frozen": ("source_only", "moment_matching", "random_correction", "surest_view", "neighbours"),
            "statistics": ("bn_adapt", "tent"),
        }.items()
        for name in names
    },
    **{
        f"baselines.{name}: labels": (
            baseline(name, source=(BYTES, torch.eye(4))),
            T,
            r"one-hot or soft labels: give labels.argmax\(1\)",
        )
        for name in METHODS
    },
    "baselines: classifier": (baseline("dann", net), T, "the classifier is a function; give an nn.Module"),
    "baselines: source": (
        baseline("dann", source=BYTES),
        T,
        r"a Tensor; give calib.baselines.Labelled\(images, lab",
    ),
    "baselines: count": (baseline("dann", source=(BYTES, LABELS[:2])), V, "there are 2 labels for 4 images"),
    "baselines: channels": (baseline("dann", target=BYTES[:, :1]), V, r"target has shape .*channels=3"),
    "baselines: type": (
        baseline("dann", target=BYTES.int()),
        T,
        "target have the type torch.int32; give uint8",
    ),
    "baselines: settings": (
        baseline("dann", settings={"steps": 3}),
        T,
        "settings are a dict; give calib.baselines.Se",
    ),
    "baselines: predict": (
        lambda: baseline("source_only")().predict(X[0]),
        V,
        SHAPE,
    ),
    "baselines.frozen.target_supervised": (
        lambda: frozen.target_supervised(net(), Labelled(BYTES, LABELS.float()), Settings(), 0),
        T,
        r"give labels.long\(",
    ),
    "baselines.frozen.channel_moments": (lambda: frozen.channel_moments(BYTES[0]), V, SHAPE),
    "baselines.alignment.coral": (
        lambda: alignment.coral(Z, GROUPS),
        V,
        r"target has shape \(4, 4\); .*features=2",
    ),
    "baselines.alignment.domain_loss": (
        lambda: alignment.domain_loss(Z, Z),
        V,
        r"source has shape .* \(n, 1\)",
    ),
    "baselines.alignment.reverse_gradient": (
        lambda: alignment.reverse_gradient(3.0, 1.0),
        T,
        "x is a float; give a",
    ),
    "baselines.encoders.information_maximisation": (
        lambda: encoders.information_maximisation(ONE),
        V,
        r"logits has shape \(4,\); it must be \(batch, classes\)",
    ),
    "baselines.statistics.entropy_loss": (
        lambda: statistics.entropy_loss(ONE),
        V,
        r"it must be \(batch, classes\)",
    ),
    "baselines.form.Settings": (
        lambda: Settings(output=None, outputs="odds"),
        V,
        "outputs is 'odds'; choose auto",
    ),
    "baselines.form.FeatureNet": (lambda: form.FeatureNet(net(), BYTES[0]), V, SHAPE),
    "baselines.form.FeatureNet.forward": (
        lambda: form.FeatureNet(net())(BYTES),
        T,
        "images has the type torch.uint8",
    ),
    "baselines.form.reading": (lambda: form.reading(net(), [1], Settings()), T, NOT_A_TENSOR),
    "baselines.form.pixels": (
        lambda: form.pixels(BYTES.long(), net()),
        T,
        "images have the type torch.int64; give ui",
    ),
    "baselines.form.domains": (
        lambda: form.domains(net(), (X, [0, 1]), X, Settings()),
        V,
        "2 labels for 4 images",
    ),
    "blackbox.distil_surrogate": (
        lambda: blackbox.distil_surrogate(net(), X, BYTES, net(), 1),
        T,
        "target_images has the type torch.uint8",
    ),
    "blackbox.distil_surrogate: student": (
        lambda: blackbox.distil_surrogate(net(), X, X, net, 1),
        T,
        "net is a func",
    ),
    "blackbox.gives_gradient": (
        lambda: blackbox.gives_gradient(net(), BYTES),
        T,
        "example has the type torch.uint8",
    ),
    "calibrator.Calibrator.forward": (
        lambda: Calibrator()(X[:, :1]),
        V,
        r"calibrator takes \(batch, 3, height, width",
    ),
    "calibrator.Calibrator.correction": (
        lambda: Calibrator().correction(X[:, :1]),
        V,
        "images has shape .*channels=3",
    ),
    "classifiers.Normalize.forward": (
        lambda: Normalize([0.5] * 3, [0.5] * 3)(X[:, :2]),
        V,
        r"images has shape \(4, 2, 8, 8\); .*channels=3",
    ),
    "classifiers.Normalized.forward": (lambda: Normalized(net(), [0.5], [0.5])(BYTES), T, "for bytes"),
    "critics.draw_patch": (
        lambda: critics.draw_patch(8, 8, 4, 0, 0, patches=0),
        V,
        "patches=0; both must be at least",
    ),
    "critics.PixelCritic.forward": (lambda: PIXEL(X[:, :1], PATCH), V, r"images has shape .*channels=3"),
    "critics.PixelCritic.forward: patch": (
        lambda: PIXEL(X, critics.draw_patch(8, 8, 2, 0, 0)),
        V,
        "patch is not one of 4 by 4 pixels: draw it with",
    ),
    "critics.FeatureCritic.forward": (
        lambda: FEATURE(GROUPS),
        V,
        "this critic was built for 2 numbers an image",
    ),
    "critics.PixelwiseFeatureCritic.forward": (
        lambda: critics.PixelwiseFeatureCritic(2)(X),
        V,
        r"scores has shape .*classes=2, height, width",
    ),
    "cyclegan.critic_loss": (lambda: cyclegan.critic_loss(Z, 1), T, "fake is a int; give a torch.Tensor"),
    "cyclegan.generator_loss": (lambda: cyclegan.generator_loss(LABELS), T, "fake has the type torch.int64"),
    "cyclegan.cycle_loss": (
        lambda: cyclegan.cycle_loss(X[:1], X),
        V,
        r"back has shape \(1, 3, 8, 8\) and images",
    ),
    "cyclegan.ImagePool.swap": (lambda: cyclegan.ImagePool(2, 0).swap(X[0], 0), V, SHAPE),
    "domains.Domain": (
        lambda: domains.Domain(S, 3, Calibrator(), 2, 0),
        T,
        "source is a int; give a Dataset",
    ),
    "domains.as_floats": (
        lambda: domains.as_floats(BYTES.int()),
        T,
        r"images have the type torch.int32; give uint8",
    ),
    "domains.check_images": (
        lambda: domains.check_images(S, X[0], Calibrator()),
        V,
        "source images have shape",
    ),
    "evaluate.evaluate_classifier": (
        lambda: evaluate.evaluate_classifier(net(), X, 2, torch.device("cpu")),
        T,
        "dataset is a Tensor; give a map-st",
    ),
    "evaluate.evaluate_segmenter": (
        lambda: evaluate.evaluate_segmenter(net(), [], 2, torch.device("cpu")),
        V,
        "dataset holds no images",
    ),
    "evaluate.both_domains": (
        lambda: evaluate.both_domains(net(), iter([X]), None, 2, torch.device("cpu")),
        T,
        "is a list_iterator; give a",
    ),
    "evaluate.four_numbers": (
        lambda: evaluate.four_numbers(model(), "day", None, 2, torch.device("cpu")),
        T,
        "dataset is a str; give a map",
    ),
    "evaluate.scores_of": (
        lambda: evaluate.scores_of(LABELS),
        V,
        r"matrix has shape \(4,\); it must be \(labels, pre",
    ),
    "evaluate.is_near_chance": (lambda: evaluate.is_near_chance(Z.long()), V, r"\(4, 2\); it must be square"),
    "evaluate.latency_ratio": (lambda: evaluate.latency_ratio(model(), X[0]), V, SHAPE),
    "features.Features": (
        lambda: features.Features(net),
        T,
        "the classifier is a function; give an nn.Module",
    ),
    "features.Features.__call__": (lambda: features.Features(net())(X[0]), V, SHAPE),
    "features.Features.answer": (
        lambda: features.Features(net()).answer(BYTES),
        T,
        "images has the type torch.uint8",
    ),
    "losses.critic_loss": (
        lambda: losses.critic_loss([GROUPS] * 3 + [Z]),
        V,
        r"groups\[3\] has shape .*\(batch, 4, \.",
    ),
    "losses.critic_loss: one tensor": (
        lambda: losses.critic_loss(GROUPS),
        T,
        "groups are a Tensor; give a list of the",
    ),
    "losses.calibrator_loss": (
        lambda: losses.calibrator_loss(GROUPS, Z),
        V,
        r"calibrated_target has shape \(4, 2\)",
    ),
    "losses.agreement_loss": (
        lambda: losses.agreement_loss(Z, GROUPS),
        V,
        r"taught has shape \(4, 4\); .*classes=2",
    ),
    "losses.agreement_loss: rows": (lambda: losses.agreement_loss(Z, Z[:1]), V, r"taught has shape \(1, 2\)"),
    "neighbours.upright": (lambda: neighbours.upright(X[0]), V, SHAPE),
    "neighbours.looks_and_answers": (
        lambda: neighbours.looks_and_answers(Z, Z[:2], 1.0),
        V,
        "answers has shape",
    ),
    "neighbours.nearest": (lambda: neighbours.nearest(Z, 1, GROUPS), V, r"seen_from has shape .*features=2"),
    "neighbours.agree": (
        lambda: neighbours.agree(Z, Z, Neighbours()),
        T,
        "neighbours has the type torch.float32",
    ),
    "pose.poses": (
        lambda: pose.poses(X, Z),
        V,
        r"ground has shape \(4, 2\); it must be \(batch=4, channels=3\)",
    ),
    "pose.reposed": (lambda: pose.reposed(X, (0, 0)), V, "want must be calib.pose.Poses"),
    "pose.grounds": (lambda: pose.grounds(BYTES), T, "images has the type torch.uint8"),
    "pose.poses_of": (
        lambda: pose.poses_of(iter([]), 8, 1),
        T,
        "dataset is a list_iterator; give a map-style",
    ),
    "pose.PosedImages": (lambda: pose.PosedImages([], None, 8, 1, 0), V, "dataset holds no images"),
    "segmentation.TinySegmenter.forward": (
        lambda: segmentation.tiny_segmenter(2)(X[:, :1]),
        V,
        r"images has shape .*channels=3",
    ),
    "segmentation.train_segmenter": (
        lambda: segmentation.train_segmenter(net(), BYTES, LABELS, segmentation.SegmenterSettings(), 0),
        V,
        "masks has sh",
    ),
    "segmentation.class_weights": (
        lambda: segmentation.class_weights(X[:, 0], 2, 255, 1.0),
        T,
        "masks has the type",
    ),
    "segmentation.segmentation_scores": (
        lambda: segmentation.segmentation_scores(Z),
        T,
        "confusion has the type",
    ),
    "segmentation.confusion": (
        lambda: segmentation.confusion(X, BYTES[:, 0, :4]),
        V,
        r"height=8.*one label per pixel",
    ),
    "segmentation.confusion_over": (
        lambda: segmentation.confusion_over(net(), BYTES, BYTES[:2, 0]),
        V,
        "one mask of the same height",
    ),
    "step.calibrate": (
        lambda: step.calibrate(Calibrator(), None, Batch(X[0], X, None, None)),
        V,
        "batch.source " + SHAPE,
    ),
    "step.critics_loss": (
        lambda: step.critics_loss(BOTH, Batch(X, X, None, Z), CalibratedBatch(X, X, Z, Z), PATCH),
        V,
        "give batch.clean_s",
    ),
    "step.critics_loss: patch": (
        lambda: step.critics_loss(BOTH, BATCH, CalibratedBatch(X, X, Z, Z), None),
        V,
        "a pixel critic and no patch: draw",
    ),
    "step.deception_loss": (
        lambda: step.deception_loss(BOTH, CalibratedBatch(X, X, None, None), PATCH, Weights()),
        V,
        "features of the cali",
    ),
    "step.naming_loss": (
        lambda: step.naming_loss(BATCH, CalibratedBatch(X, X, Z, Z), Weights(views=1.0)),
        V,
        "needs batch.taught",
    ),
    "supervised.train_classifier": (
        lambda: supervised.train_classifier(net(), X, 1, 2, 0.1, 0.0, 0, torch.device("cpu")),
        T,
        "dataset is a Tensor",
    ),
    "supervised.train_classifier: epochs": (
        lambda: supervised.train_classifier(net(), data(), 0, 2, 0.1, 0.0, 0, torch.device("cpu")),
        V,
        "epochs=0, batch",
    ),
    "supervised.reading_of": (
        lambda: supervised.reading_of(nn.Identity(), data(), "a"),
        V,
        "output='a', but the classifier returns one tensor",
    ),
    "survey.draw": (
        lambda: survey.draw([X], 3, 0),
        V,
        "this target is an iterable of batches: give a data set",
    ),
    "translate.train_translation": (
        lambda: translate.train_translation(X, data(), translate.PRESETS["digits"], 0, "x"),
        T,
        "source is a Tensor",
    ),
    "translations.translate": (
        lambda: translations.translate(Calibrator(), X[0]),
        V,
        SHAPE,
    ),
    "translations.write_translations": (
        lambda: translations.write_translations(translations.Translation(net(), 8, 3), X, "x"),
        T,
        "source is a Tensor",
    ),
    "translations.label_flips": (
        lambda: translations.label_flips(net(), [], translations.Translation(net(), 8, 3)),
        V,
        "source holds no images",
    ),
    "translations.prepared": (
        lambda: translations.prepared(translations.Translation(net(), 8, 3), X),
        T,
        "source is a Tensor; give",
    ),
    "translations.class_names_of": (
        lambda: translations.class_names_of(X),
        T,
        "source is a Tensor; give a map-style",
    ),
    "validators.entropy": (lambda: validators.entropy(ONE), V, r"it must be \(batch, classes\)"),
    "validators.information": (lambda: validators.information(LABELS), T, "logits has the type torch.int64"),
    "validators.neighbourhood": (lambda: validators.neighbourhood(ONE), V, r"logits has shape \(4,\)"),
    "validators.confusion": (
        lambda: validators.confusion(Z),
        V,
        r"groups has shape \(4, 2\); it must be \(batch, 4\)",
    ),
    "validators.source_kept": (
        lambda: validators.source_kept(Z, LABELS[:1]),
        V,
        r"reference has shape \(1,\); .*batch=4",
    ),
    "views.look": (
        lambda: views.look(X, torch.ones(1), torch.ones(4)),
        V,
        r"zoom has shape \(1,\); .*one number per im",
    ),
    "views.zoom_weights": (lambda: views.zoom_weights(net(), X[0], Views()), V, SHAPE),
    "views.shaken": (
        lambda: views.shaken(X, 0.1, torch.rand(4, 2)),
        V,
        r"draws has shape \(4, 2\); .*see view_draws",
    ),
    "views.surest_answers": (
        lambda: views.surest_answers(net(), X, torch.ones(2), Views(), torch.rand(4, 2, 4)),
        V,
        "zooms has shape",
    ),
    "views.surest": (lambda: views.surest(Z, 0.1), V, r"probabilities has shape .*\(views, batch, classes\)"),
    "views.Teacher": (lambda: views.Teacher(Z, Views()), T, "answers is a Tensor; give a function of images"),
    "views.Teacher.weigh_zooms": (lambda: views.Teacher(net(), Views()).weigh_zooms(X[0]), V, SHAPE),
    "views.Teacher.teach": (
        lambda: views.Teacher(net(), Views()).teach(X, torch.rand(4, 2, 1)),
        V,
        r"draws has shape .*count=4",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_is_refused_in_one_sentence(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


INSIDE = {
    "analysis": "a run's own images", "comparison": "a run's own domains", "data": "a run's own domains",
    "run": "what it opened itself", "samples": "a run's own images", "source_classifier": "a run's own domains",
    "report_translation": "a run's own domains", "bodies": "nets inside of the calibrator, behind its door",
    "feed": "domains, behind their door", "players": "batches, behind the door of calibrate", "refusals": "of adapt",
    "validation": "samples of domains, behind their door", "export.Deployed": "a graph, in which nothing can raise",
    "answers.pick": "", "domains.filled": "inside of adapt", "domains.Domain.all_images": "its own",
    "domains.Pairs": "inside of Domain", "domains.in_range": "inside of Domain",
    "ranges": "inside of adapt", "domains.Images": "", "attachment.probe": "inside of adapt",
    "attachment.CalibratedClassifier": "see attach", "survey.Survey": "inside of adapt, a Domain",
    "step.default_critics": "inside of adapt", "step.Game": "behind the doors of its losses",
    "classifiers.OnnxClassifier": "held by test_classifiers", "views.view_draws": "numbers of places, no tensor",
    "cyclegan.ImagePool.load_state_dict": "a checkpoint's", "calibrator.value_range_of": "no tensor",
}  # fmt: skip
"""What needs no case of its own, and why."""
TAKEN = re.compile(r"Tensor|Float\[|Int\d*\[|Dataset|Labelled|Iterable|Domain|Batch|Answers")


def public_functions():
    """Names of the functions and methods below `calib` that take tensors or data."""
    for module in pkgutil.walk_packages(calib.__path__, "calib."):
        if module.name.endswith("__main__"):
            continue
        here = importlib.import_module(module.name)
        short = module.name.removeprefix("calib.")
        for name, thing in vars(here).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.name:
                continue
            if inspect.isfunction(thing):
                yield f"{short}.{name}", thing
            elif inspect.isclass(thing):
                for method, function in vars(thing).items():
                    function = inspect.unwrap(function) if callable(function) else function
                    if inspect.isfunction(function) and (
                        not method.startswith("_") or method in ("__init__", "__call__")
                    ):
                        yield f"{short}.{name}{'' if method == '__init__' else '.' + method}", function


def takes_tensors(function):
    annotations = [
        str(parameter.annotation)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("output", "read", "usable", "classifier", "predict", "ask")
    ]
    return any(TAKEN.search(annotation) for annotation in annotations)


def test_every_public_function_has_a_case():
    names = [name for name, function in public_functions() if takes_tensors(function)]
    assert len(names) > 90
    have = {case.split(":")[0] for case in CASES}
    inside = [name for name in names if any(name == part or name.startswith(f"{part}.") for part in INSIDE)]
    assert sorted({*names} - have - {*inside}) == []


def test_doors_of_names_at_the_top_exist():
    """What `import calib` offers and takes tensors stands in a module that the walk sees."""
    walked = {name.split(".")[-1] for name, _ in public_functions()}
    callables = {name for name in calib.__all__ if inspect.isfunction(getattr(calib, name))}
    assert callables <= walked
