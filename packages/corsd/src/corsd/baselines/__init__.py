"""Controls that might win: single-network self-distillation in one frame, ``out = method(images, labels, index)``.

Every method trains the same net in place and returns the same :class:`~corsd.distiller.Output`.  Each is one line in
a loop of your own: ``method = baselines.ExitMethod(net, 100, "deep_supervision", example=images)``.

"forwards" is how often the net sees an image of the batch in a step.  Budgets count images that pass through the
net: ``corsd train`` gives every method the same number of them.

| method | paper | forwards | modules while training | what it leaves in the net |
|---|---|---|---|---|
| `CrossEntropy` | cross-entropy; label smoothing, Szegedy et al., CVPR 2016 | 1 | none | nothing |
| `MixedCrossEntropy` "mixup" | Zhang et al., ICLR 2018 | 1, of the mixed image | none | nothing |
| `MixedCrossEntropy` "cutmix" | Yun et al., ICCV 2019 | 1, of the mixed image | none | nothing |
| `ExitMethod` "deep_supervision" | Lee et al., AISTATS 2015 | 1 | an exit per shallow stage | nothing |
| `ExitMethod` "byot" | Zhang et al., ICCV 2019 | 1 | an exit per shallow stage | nothing |
| `ExitMethod` "byot_tpami" | Zhang et al., TPAMI 2022 | 1 | exits, a linear layer each | nothing |
| `ExitMethod` "rkd" | Park et al., CVPR 2019 | 1 | an exit per shallow stage | nothing |
| `ExitMethod` "sp" | Tung and Mori, ICCV 2019 | 1 | an exit per shallow stage | nothing |
| `ExitMethod` "pkt" | Passalis and Tefas, ECCV 2018 | 1 | an exit per shallow stage | nothing |
| `CSKD` | Yun et al., CVPR 2020 | 1, half of them without gradient | none | nothing |
| `PSKD` | Kim et al., ICCV 2021 | 1 | table: images x classes | nothing |
| `DLB` | Shen et al., CVPR 2022 | 1, half of the images repeat | table: batch x classes | nothing |
| `DKS` | Sun et al., CVPR 2019 | 1 | an exit per shallow stage | nothing |
| `ContrastiveSupervision` | Zhang et al., ECCV 2022 | 1 per view | a trunk and a projection per stage | nothing |
| `ONE` | Lan et al., NeurIPS 2018; stages instead of branches | 1 | an exit per shallow stage, a gate | nothing |
| `SLA` | Lee et al., ICML 2020; HSAKD, Yang et al., IJCAI 2021 | 4, a rotation each | a head per stage | nothing |
| `BAKE` | Ge et al., 2021 | 1 | none | nothing |
| `OLS` | Zhang et al., TIP 2021 | 1 | two tables: classes x classes | nothing |
| `MixSKD` | Yang et al., ECCV 2022, simplified | 2, plain and mixed | an exit per shallow stage | nothing |

In the formulas T is a temperature, z_i the logits and f_i the pooled features of exit i, stage S the deepest, whose
logits z are those of the deployed net; teachers are detached.
"""

from corsd.baselines.bake import BAKE
from corsd.baselines.contrastive import ContrastiveSupervision
from corsd.baselines.cross_entropy import CrossEntropy
from corsd.baselines.cskd import CSKD
from corsd.baselines.dks import DKS
from corsd.baselines.dlb import DLB
from corsd.baselines.exit_method import ExitMethod
from corsd.baselines.handcrafted import probabilistic_transfer, rkd, similarity_preserving
from corsd.baselines.mixskd import MixSKD
from corsd.baselines.ols import OLS
from corsd.baselines.one import ONE
from corsd.baselines.pskd import PSKD
from corsd.baselines.sla import SLA
from corsd.mixing import MixedCrossEntropy

__all__ = [
    "BAKE",
    "CSKD",
    "DKS",
    "DLB",
    "OLS",
    "ONE",
    "PSKD",
    "SLA",
    "ContrastiveSupervision",
    "CrossEntropy",
    "ExitMethod",
    "MixSKD",
    "MixedCrossEntropy",
    "probabilistic_transfer",
    "rkd",
    "similarity_preserving",
]
