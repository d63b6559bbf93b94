"""Pictures are drawn without a display.  Shapes are checked by `make test` (jaxtyping's option of pytest)."""

import matplotlib

matplotlib.use("Agg")
