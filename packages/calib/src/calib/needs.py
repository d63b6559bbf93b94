"""Which settings of a run act only beside others; a run with one that does nothing is refused."""

from shared_core.run.idle import Need

from calib.config import AdaptConfig

FOLDERS = ("mnist", "usps", "svhn", "cifar10", "cifar100", "fashion-mnist", "gta5", "cityscapes")
STREETS = ("gta5", "cityscapes")
PUBLISHED = ("torchvision:", "timm:")


def is_trained_here(c: AdaptConfig) -> bool:
    """Whether the run trains its classifier on the source: a named net without weights, or one it is told to."""
    published = c.pretrained and c.classifier.startswith(PUBLISHED)
    named = c.classifier.startswith(("small:", *PUBLISHED))
    return c.train_classifier or (named and c.weights is None and not published)


def _data(c: AdaptConfig) -> list[str]:
    return [spec for spec in (c.source, c.target, c.translated) if spec is not None]


def needs(segmentation: bool) -> list[Need]:
    """What settings of a run need, whose classifier gives one label per pixel, or one per image."""
    return [
        Need("data_root", lambda c: set(_data(c)) & set(FOLDERS), "data of torchvision, gta5 or cityscapes"),
        Need("download", lambda c: set(_data(c)) & set(FOLDERS) - set(STREETS), "data of torchvision"),
        Need(
            "on_bad", lambda c: any(s.startswith("imagefolder:") for s in _data(c)), "data in image folders"
        ),
        Need("scene_size", lambda c: set(_data(c)) & set(STREETS), "gta5 or cityscapes as source or target"),
        Need(
            "ignore feature_stride", lambda c: segmentation or c.feature.startswith("layer:"), "segmentation"
        ),
        Need(
            "image_size channels baselines training.learning_rate training.weight_decay",
            lambda c: not segmentation,
            "one label per image; these are not of use in segmentation",
        ),
        Need(
            "pretrained",
            lambda c: c.weights is None and c.classifier.startswith(PUBLISHED),
            "classifier torchvision:NAME or timm:NAME, without weights",
        ),
        Need(
            "train_classifier",
            lambda c: not is_trained_here(c.model_copy(update={"train_classifier": False})),
            "a classifier that is not trained anyway: with weights, pretrained, or file.py:function",
        ),
        Need(
            "normalize",
            lambda c: not c.classifier.endswith(".onnx") and c.classifier != "small:segmenter",
            "a classifier other than an ONNX file or small:segmenter",
        ),
        Need(
            "surrogate_steps",
            lambda c: c.classifier.endswith(".onnx") or ".py:" in c.classifier,
            "a classifier that gives no gradient, such as model.onnx",
        ),
        Need(
            "training.epochs training.batch_size training.learning_rate training.weight_decay",
            is_trained_here,
            "a classifier that the run trains",
        ),
        Need("width blocks", lambda c: c.body != "constant", "a body other than constant"),
        Need("feature feature_stride", lambda c: c.loss.feature > 0, "loss.feature above 0"),
        # Without a gradient pixels are all that is left, whatever loss.pixel says.
        Need(
            "patch patches",
            lambda c: c.loss.pixel > 0 or c.classifier.endswith(".onnx"),
            "loss.pixel above 0",
        ),
        Need(
            "loss.source optim.critic_learning_rate",
            lambda c: c.loss.pixel > 0 or c.loss.feature > 0,
            "loss.pixel or loss.feature above 0",
        ),
        Need("source_tolerance", lambda c: c.selection != "last", "a selection other than last"),
        Need(
            "views.count views.zooms views.shear views.zoom_temperature views.temperature views.threshold views.shake",
            lambda c: c.loss.views > 0,
            "loss.views above 0",
        ),
        Need("views.zoom_temperature", lambda c: len(c.views.zooms) > 1, "more than one of views.zooms"),
        Need("views.temperature", lambda c: c.views.count > 1, "views.count above 1"),
        Need(
            "views.threshold",
            lambda c: not c.neighbours.count,
            "neighbours.count 0; see neighbours.threshold",
        ),
        Need(
            "neighbours.answers neighbours.restart neighbours.balance neighbours.rounds neighbours.threshold "
            "neighbours.images neighbours.every",
            lambda c: c.neighbours.count > 0,
            "neighbours.count above 0",
        ),
    ]
