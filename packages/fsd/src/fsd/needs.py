"""Which settings of a run act only beside others; a run with one that does nothing is refused."""

from shared_core.run.idle import Need

from fsd.config import GenerateConfig

FLOW = ("fsd", "cfd", "sds-annealed")
"""Methods whose time runs down, so that schedule, its ends and the weighting are the configuration's."""


def _world_map(c: GenerateConfig) -> bool:
    return c.noise == "worldmap" or (c.noise == "auto" and "fsd" in c.guidance)


def _diffusion(c: GenerateConfig) -> bool:
    return c.prior not in ("bank", "bank-per-view")


NEEDS = [
    Need(
        "beta",
        lambda c: _world_map(c) or c.noise == "constant",
        "noise worldmap or constant, or the method fsd",
    ),
    Need(
        "map_degrees map_background shared released_rows",
        lambda c: _world_map(c) and c.beta > 0,
        "noise worldmap or the method fsd, with beta above 0",
    ),
    Need(
        "t_max t_min",
        lambda c: c.schedule != "auto" or set(c.guidance) & set(FLOW),
        f"a schedule by name, or one of the methods {', '.join(FLOW)}",
    ),
    Need("weighting", lambda c: set(c.guidance) & set(FLOW), f"one of the methods {', '.join(FLOW)}"),
    Need("guidance_scale", lambda c: set(c.guidance) != {"csd"}, "a method other than csd"),
    Need(
        "precision offload slicing image_size view_words perp_neg",
        _diffusion,
        "a prior that is a diffusion model, not the bank",
    ),
    Need("field.resolution", lambda c: c.field.kind == "grid", "field.kind grid"),
    Need("field.log2_size optim.network_rate", lambda c: c.field.kind == "hash", "field.kind hash"),
    Need(
        "optim.background_rate", lambda c: c.field.background != "constant", "field.background learned or map"
    ),
    Need("field.fine_samples", lambda c: not c.field.marching, "field.marching false"),
]
