"""How long ``import corsd`` and ``corsd --help`` take, beside ``import torch``.

    python -m benchmarks.corsd.import_time --out FILE [--quick]

``import corsd`` reads its modules when a name is first used, so it is measured both as it is and with the name that
everyone uses, ``corsd.Distiller``.
"""

from benchmarks.core.figures import options, write
from benchmarks.core.import_time import measure

if __name__ == "__main__":
    given = options(__doc__).parse_args()
    write(given.out, given.quick, measure("corsd", "Distiller", given.quick))
