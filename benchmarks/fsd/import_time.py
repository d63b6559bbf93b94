"""How long ``import fsd`` and ``fsd --help`` take, beside ``import torch``, and that they read no diffusion library.

    python -m benchmarks.fsd.import_time --out FILE [--quick]

``import fsd`` reads its modules when a name is first used, so it is measured both as it is and with the name that
everyone uses, ``fsd.FlowScoreDistillation``.  ``heavy_modules`` in the JSON lists which of diffusers and transformers
were read by then, and after all public names were: it ends with an error if there is one.
"""

from benchmarks.core.figures import options, write
from benchmarks.core.import_time import imported, measure

HEAVY = ("diffusers", "transformers")
CODE = {
    "import fsd": "import fsd",
    "fsd.FlowScoreDistillation": "import fsd; fsd.FlowScoreDistillation",
    "all public names": "import fsd; [getattr(fsd, name) for name in fsd.__all__]",
    "fsd --help": "import fsd.cli\ntry: fsd.cli.main(['--help'])\nexcept SystemExit: pass",
}

if __name__ == "__main__":
    given = options(__doc__).parse_args()
    heavy = {what: imported(code, HEAVY) for what, code in CODE.items()}
    if any(heavy.values()):
        raise SystemExit(f"read too early: {heavy}")
    figures = measure("fsd", "FlowScoreDistillation", given.quick)
    write(given.out, given.quick, figures, heavy_modules=heavy)
