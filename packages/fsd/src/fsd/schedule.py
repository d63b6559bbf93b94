"""When which noise level: functions from progress in [0, 1] to diffusion time t in (0, 1], one value per batch.

Flow score distillation lets t run down once (arXiv 2405.10988); plain score distillation draws it anew at every step.
The shapes are those of the released code of the FSD authors' follow-up (arXiv 2501.05445), HiFA (2305.18766) and
DreamTime (2306.12422).

    >>> t = linear(progress=step / steps)
    >>> t = schedule_named("random")(progress, generator)
"""

import bisect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch

# Progress and the generator of random schedules to t.
Schedule = Callable[[float, torch.Generator | None], float]

# Of the released configurations; the last is reached at the end of the run.
STABLE_DIFFUSION_KNOTS = ((0.0, 0.98), (0.1, 0.692), (0.5, 0.404), (1.0, 0.212))
MVDREAM_KNOTS = ((0.0, 0.98), (0.5, 0.596), (1.0, 0.308))


def linear(
    progress: float, generator: torch.Generator | None = None, t_max: float = 0.98, t_min: float = 0.02
) -> float:
    """From t_max to t_min in equal steps."""
    return t_max - (t_max - t_min) * _checked(progress)


def square_root(
    progress: float, generator: torch.Generator | None = None, t_max: float = 0.98, t_min: float = 0.02
) -> float:
    """t_max - (t_max - t_min) sqrt(progress): fast at first (HiFA, section 3.4)."""
    return t_max - (t_max - t_min) * math.sqrt(_checked(progress))


def piecewise_linear(
    progress: float,
    generator: torch.Generator | None = None,
    knots: Sequence[tuple[float, float]] = STABLE_DIFFUSION_KNOTS,
) -> float:
    """Straight lines through (progress, t); the ends hold outside.  Raises ValueError for knots out of order."""
    places = [place for place, _ in knots]
    if not knots or places != sorted(set(places)):
        raise ValueError(f"knots are {list(knots)}; give (progress, t) in rising order of progress")
    _checked(progress)
    after = bisect.bisect_right(places, progress)
    if after == 0 or after == len(knots):
        return knots[min(after, len(knots) - 1)][1]
    (p0, t0), (p1, t1) = knots[after - 1], knots[after]
    return t0 + (t1 - t0) * (progress - p0) / (p1 - p0)


def dreamtime(
    progress: float,
    generator: torch.Generator | None = None,
    t_max: float = 0.98,
    t_min: float = 0.02,
    centres: tuple[float, float] = (0.8, 0.4),
    widths: tuple[float, float] = (0.1, 0.15),
) -> float:
    """Time spent at t in proportion to a weight W(t) (DreamTime, equation 6).

    W is 1 between the centres and falls like a Gaussian of the given width above the first and below the second.
    """
    times = _dreamtime_times(t_max, t_min, centres, widths)
    place = _checked(progress) * (len(times) - 1)
    below = min(int(place), len(times) - 2)
    return times[below] + (times[below + 1] - times[below]) * (place - below)


def random(
    progress: float, generator: torch.Generator | None = None, t_max: float = 0.98, t_min: float = 0.02
) -> float:
    """Uniform in [t_min, t_max], whatever the progress (DreamFusion, section 3)."""
    _checked(progress)
    if generator is None:
        raise ValueError("a random schedule needs a generator: pass generator=torch.Generator()")
    return t_min + (t_max - t_min) * torch.rand((), generator=generator, device=generator.device).item()


SCHEDULES: dict[str, Callable[..., float]] = {
    "linear": linear,
    "piecewise": piecewise_linear,
    "sqrt": square_root,
    "dreamtime": dreamtime,
    "random": random,
}


def schedule_named(name: str, t_max: float = 0.98, t_min: float = 0.02) -> Schedule:
    """The schedule of this name between t_max and t_min; `piecewise` scales the knots of Stable Diffusion to them.

    Raises ValueError for another name, and unless 0 < t_min <= t_max <= 1.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    if not 0 < t_min <= t_max <= 1:
        raise ValueError(f"t_max={t_max}, t_min={t_min}; it must be 0 < t_min <= t_max <= 1")
    if name != "piecewise":
        return partial(SCHEDULES[name], t_max=t_max, t_min=t_min)
    first, last = STABLE_DIFFUSION_KNOTS[0][1], STABLE_DIFFUSION_KNOTS[-1][1]
    scale = (t_max - t_min) / (first - last)
    return partial(
        piecewise_linear,
        knots=tuple((place, t_min + (t - last) * scale) for place, t in STABLE_DIFFUSION_KNOTS),
    )


@lru_cache
def _dreamtime_times(
    t_max: float, t_min: float, centres: tuple[float, float], widths: tuple[float, float], count: int = 1000
) -> list[float]:
    """t at `count` equal steps of the normalised integral of W from t_max down."""
    high, low = centres
    t = torch.linspace(t_max, t_min, 10 * count, dtype=torch.float64)
    weight = torch.ones_like(t)
    weight = torch.where(t > high, torch.exp(-((t - high) ** 2) / (2 * widths[0] ** 2)), weight)
    weight = torch.where(t < low, torch.exp(-((t - low) ** 2) / (2 * widths[1] ** 2)), weight)
    done = torch.cat([torch.zeros(1, dtype=t.dtype), torch.cumsum((weight[1:] + weight[:-1]) / 2, 0)])
    wanted = torch.linspace(0, 1, count, dtype=t.dtype) * done[-1]
    found = torch.searchsorted(done, wanted).clamp(1, len(t) - 1)
    share = (wanted - done[found - 1]) / (done[found] - done[found - 1])
    return (t[found - 1] + share * (t[found] - t[found - 1])).tolist()


def _checked(progress: float) -> float:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; it is the share of the run that is done, 0 to 1")
    return progress
