"""What else one could do with unlabelled images of a new domain: the rows beside the calibrator's.

| method | formula | classifier | source |
|---|---|---|---|
| `source_only` | F(x) | nothing | |
| `moment_matching` | F((x - mu_t) sigma_s / sigma_t + mu_s) | nothing | |
| `random_correction` | F(clip(x + epsilon sign(n))) | nothing | |
| `surest_view` | the surest answers to 8 views of x, weighed by entropy | nothing | :mod:`calib.views` |
| `neighbours` | what 4 views of x and its 10 neighbours in the target agree on | nothing | :mod:`calib.neighbours` |
| `bn_adapt` | batch norm's mean and variance from the target | buffers | arXiv 1603.04779 |
| `tent` | min H(p(x_t)) over batch norm's weights, online | batch-norm weights | arXiv 2006.10726 |
| `deep_coral` | min CE + w/(4 d^2) norm(C_s - C_t)^2 | new model | arXiv 1607.01719 |
| `dann` | min_F max_D CE + w log-likelihood of D | new model | arXiv 1505.07818 |
| `adda` | max_D log D(M_s) + log(1 - D(M_t)), min_M_t -log D(M_t) | new model | arXiv 1702.05464 |
| `shot_im` | min mean H(p) - H(mean p), head frozen | new model | arXiv 2002.08546 |
| `target_supervised` | min CE on target labels: the bound | new model | |

>>> adapted = METHODS["dann"](classifier, Labelled(images, labels), target_images, Settings(), seed=0)
>>> adapted.predict(test_images).argmax(1), adapted.touched

Each is one function (classifier, source, target, settings, seed) that leaves the given classifier as it is and works
on a copy; `target_supervised` takes (classifier, labelled target, settings, seed) and is not in METHODS.
All draws are pure functions of the seed; there is no augmentation.  Classifiers may answer with dicts, tuples and
dataclasses, and with probabilities: `Settings(output=, outputs=)`; `predict` always gives logits.
No method communicates: among several processes each computes what one would, and a run deals the methods out.
"""

from collections.abc import Callable

from torch import Tensor, nn

from calib.baselines.alignment import dann, deep_coral
from calib.baselines.encoders import adda, shot_im
from calib.baselines.form import Adapted, Labelled, NotApplicableError, Settings
from calib.baselines.frozen import (
    moment_matching,
    neighbours,
    random_correction,
    source_only,
    surest_view,
    target_supervised,
)
from calib.baselines.statistics import bn_adapt, tent

__all__ = ["METHODS", "Adapted", "Labelled", "NotApplicableError", "Settings", "target_supervised"]

METHODS: dict[str, Callable[[nn.Module, Labelled, Tensor, Settings, int], Adapted]] = {
    "source_only": source_only,
    "moment_matching": moment_matching,
    "random_correction": random_correction,
    "surest_view": surest_view,
    "neighbours": neighbours,
    "bn_adapt": bn_adapt,
    "tent": tent,
    "deep_coral": deep_coral,
    "dann": dann,
    "adda": adda,
    "shot_im": shot_im,
}
