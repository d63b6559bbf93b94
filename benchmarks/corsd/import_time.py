"""How long ``import corsd`` and ``corsd --help`` take, beside ``import torch``.

    python benchmarks/corsd_import.py --out FILE [--quick]

``import corsd`` reads its modules when a name is first used, so it is measured both as it is and with the name that
everyone uses, ``corsd.Distiller``.
"""

from _figures import options, write
from _import import measure

if __name__ == "__main__":
    given = options(__doc__).parse_args()
    write(given.out, given.quick, measure("corsd", "Distiller", given.quick))
