"""Which settings of a run act only beside others; a run with one that does nothing is refused."""

from shared_core.run.idle import Need

from corsd.config import TrainConfig

TORCHVISION_SETS = ("mnist", "usps", "svhn", "cifar10", "cifar100", "fashion-mnist")
COMPARES = ("corsd_v2", "rkd", "sp", "pkt", "contrastive", "bake")
"""Methods, beside corsd with pairs in_batch, whose loss compares the images of a batch with each other."""
EXITS = (
    "deep_supervision",
    "byot",
    "byot_tpami",
    "rkd",
    "sp",
    "pkt",
    "dks",
    "contrastive",
    "one",
    "sla",
    "mixskd",
)


def _trains(*methods: str):
    return lambda c: bool({c.method, *c.controls} & set(methods))


def _corsd(acts=lambda r: True):
    """Corsd is trained, and `acts` says yes of its relations."""
    return lambda c: _trains("corsd")(c) and acts(c.relations)


def _version_2(acts=lambda v: True):
    """Version 2 is trained, and `acts` says yes of its settings."""
    return lambda c: _trains("corsd_v2")(c) and acts(c.relational)


def compares_images(c: TrainConfig) -> bool:
    """Whether the method compares the images of an ordinary batch: the others read theirs as ever."""
    return c.method in COMPARES or (c.method == "corsd" and c.pairs == "in_batch")


def _compares(c: TrainConfig) -> bool:
    return _trains(*COMPARES)(c) or _in_batch(c)


def _in_batch(c: TrainConfig) -> bool:
    return _corsd()(c) and c.pairs == "in_batch"


def _kl(r) -> bool:
    return r.weights.same_kl > 0 or r.weights.other_kl > 0


def _softmaxed(r) -> bool:
    return r.variant.soft_label == "softmaxed" and r.weights.other_ce > 0


NEEDS = [
    Need("data_root", lambda c: c.data in (*TORCHVISION_SETS, "cub200"), "data of torchvision, or cub200"),
    Need("download", lambda c: c.data in TORCHVISION_SETS, "data of torchvision"),
    Need(
        "on_bad",
        lambda c: c.data.startswith("imagefolder:") or c.data == "cub200",
        "data read from image files",
    ),
    Need("new_head", lambda c: c.weights is not None, "weights"),
    Need(
        "pretrained",
        lambda c: c.weights is None and c.model.startswith(("torchvision:", "timm:")),
        "model torchvision:NAME or timm:NAME, without weights",
    ),
    Need("width", lambda c: c.model.startswith("small:"), "model small:NAME"),
    Need(
        "images_per_class_in_batch",
        _compares,
        f"corsd with pairs in_batch, or one of the methods {', '.join(COMPARES)}",
    ),
    Need(
        "views",
        lambda c: _compares(c) and c.augment != "none",
        f"augment other than none, and corsd with pairs in_batch or one of the methods {', '.join(COMPARES)}",
    ),
    Need(
        "evaluate_every",
        lambda c: (
            c.validation > 0 or _trains("corsd", "contrastive")(c) or _version_2(lambda v: v.rows > 0)(c)
        ),
        "validation above 0, the methods corsd or contrastive, or corsd_v2 with relational.rows above 0",
    ),
    Need("label_smoothing", _trains("label_smoothing"), "the method label_smoothing"),
    Need(
        "optim.momentum",
        lambda c: c.optim.schedule != "onecycle",
        "optim.schedule cosine or constant, because onecycle moves momentum between 0.85 and 0.95",
    ),
    Need("pairs", _corsd(), "the method corsd"),
    Need(
        "relations.stages",
        _trains("bake", "corsd", "corsd_v2", *EXITS),
        "corsd, corsd_v2, bake or a method with heads at its stages",
    ),
    Need(
        "relations.norm",
        _trains("corsd", "corsd_v2", *EXITS),
        "corsd, corsd_v2 or a method with exits",
    ),
    Need("relations.triplets_per_image relations.gather", _in_batch, "the method corsd with pairs in_batch"),
    Need("relations.relation_weight", _trains("rkd", "sp", "pkt"), "one of the methods rkd, sp, pkt"),
    Need(
        "relations.exits relations.weights.triplet relations.weights.same_ce relations.weights.same_kl "
        "relations.weights.other_ce relations.weights.other_kl relations.weights.relation "
        "relations.weights.warmup_steps relations.variant.attention",
        _corsd(),
        "the method corsd",
    ),
    Need(
        "relations.weights.logit_relation",
        _corsd(lambda r: r.variant.logit_relation != "off"),
        "the method corsd with relations.variant.logit_relation mean or sum",
    ),
    Need(
        "relations.variant.logit_relation relations.variant.prototype",
        _corsd(lambda r: r.weights.logit_relation > 0),
        "the method corsd with relations.weights.logit_relation above 0",
    ),
    Need(
        "relations.variant.prototype",
        _corsd(lambda r: r.variant.logit_relation != "off"),
        "relations.variant.logit_relation mean or sum",
    ),
    Need(
        "relations.variant.detach_teacher",
        _corsd(lambda r: _kl(r) or r.weights.relation > 0),
        "the method corsd with a weight above 0 of relation, same_kl or other_kl",
    ),
    Need(
        "relations.variant.aux_kl relations.variant.deepest_ce",
        _corsd(_kl),
        "the method corsd with a weight above 0 of same_kl or other_kl",
    ),
    Need(
        "relations.variant.soft_label",
        _corsd(
            lambda r: r.weights.other_ce > 0 or (r.weights.other_kl > 0 and r.variant.deepest_ce == "full")
        ),
        "the method corsd with relations.weights.other_ce above 0",
    ),
    Need(
        "relations.variant.temperature",
        _corsd(lambda r: (_kl(r) and r.variant.aux_kl == "temperature") or _softmaxed(r)),
        "the method corsd with aux_kl temperature and a weight above 0 of same_kl or other_kl, or softmaxed labels",
    ),
    Need(
        "relations.variant.margin",
        _corsd(lambda r: r.weights.triplet > 0),
        "the method corsd with relations.weights.triplet above 0",
    ),
    Need(
        "relational.mixing relational.deep_supervision relational.rows relational.ensemble",
        _version_2(),
        "the method corsd_v2",
    ),
    Need(
        "relational.row_distillation relational.tau relational.embedding",
        _version_2(lambda v: v.rows > 0),
        "the method corsd_v2 with relational.rows above 0",
    ),
    Need(
        "relational.temperature relational.beta",
        _version_2(lambda v: v.ensemble > 0),
        "the method corsd_v2 with relational.ensemble above 0",
    ),
    Need(
        "relational.ramp",
        lambda c: (
            _trains("one")(c)
            or _version_2(lambda v: v.ensemble > 0 or (v.rows > 0 and v.row_distillation > 0))(c)
        ),
        "the method one, or corsd_v2 with relational.ensemble or relational.row_distillation above 0",
    ),
    Need(
        "relational.alpha",
        lambda c: _trains("mixup", "cutmix")(c) or _version_2(lambda v: v.mixing != "off")(c),
        "one of the methods mixup, cutmix, or corsd_v2 with relational.mixing other than off",
    ),
]
