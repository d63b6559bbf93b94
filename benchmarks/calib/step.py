"""What a step of calib's game costs against the order of the released code: the same gradients, less work.

    python -m benchmarks.calib.step --out FILE [--quick]

Both sides have the same nets (calibrator of width 4 and 9 blocks, the frozen DTN, both critics), 64 images of each
domain, Adam, one CPU thread, no anomaly mode.  The released order calibrates once for each player, lets the
critics' gradients run back through calibrator and classifier, where nobody uses them, and computes the classifier's
answers to clean images at every step.  Before anything is timed, one step of both in float64 must end in the same
weights.  "without the table" computes the clean answers at every step here too, as for a loader without places; the
table itself, one pass over both domains before the first step, is in neither time.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from calib.calibrator import Calibrator
from calib.critics import FeatureCritic, Patch, PixelCritic, draw_patch
from calib.losses import calibrator_loss, critic_loss
from calib.nets import dtn
from calib.step import Batch, Critics, Game, Weights
from torch import Tensor, nn

from benchmarks.core.figures import interleaved, options, ratio, write
from benchmarks.core.step_time import clock_name, seconds

BATCH, WIDTH, BLOCKS, GOAL = 64, 4, 9, 0.6
WEIGHTS = Weights()


class Players(NamedTuple):
    """The nets of one side."""

    classifier: nn.Module
    calibrator: Calibrator
    critics: Critics


def main() -> None:
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    batch, blocks = (4, 1) if given.quick else (BATCH, BLOCKS)
    gap = largest_difference(players(blocks, dropout=0.0), batch=4)
    if gap > 1e-10:
        raise SystemExit(f"the two orders do not agree: weights differ by {gap} after a step in float64")
    source, target = images(batch, 0), images(batch, 1)
    ours, other, theirs = (players(blocks) for _ in range(3))
    steps = {
        "released order": released_step(theirs, source, target),
        "game": game_step(ours, source, target, table=True),
        "game without the table": game_step(other, source, target, table=False),
    }
    values = interleaved(
        {name: lambda s=step: seconds(s, "cpu") for name, step in steps.items()},
        rounds=2 if given.quick else 15,
    )
    unit = f"s per step, {clock_name('cpu')}"
    size = f"DTN, width {WIDTH} and {blocks} blocks, {batch} images of each domain"
    figures = [
        ratio(
            "step", f"calib.step.Game.play against the released order: {size}", unit,
            values, "game", "released order", goal=GOAL, quick=given.quick,
        ),
        ratio(
            "step without the table", "the same, clean answers computed at every step", unit,
            values, "game without the table", "released order", quick=given.quick,
        ),
    ]  # fmt: skip
    write(given.out, given.quick, figures, float64_difference=gap)


def players(blocks: int, dropout: float = 0.5) -> Players:
    """Classifier (frozen), calibrator and critics, the same at every call; the calibrator is past its start."""
    torch.manual_seed(0)
    classifier = dtn().eval().requires_grad_(False)
    calibrator = Calibrator(3, 0.45, WIDTH, blocks)
    with torch.no_grad():
        # At the start the head is zero and stops every gradient behind it.
        for parameter in calibrator.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return Players(classifier, calibrator, Critics(PixelCritic(3), FeatureCritic(10, dropout=dropout)))


def images(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise in [0, 1] of 3 by 32 by 32 pixels."""
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def patch(step: int = 0) -> Patch:
    """Where the pixel critic looks."""
    return draw_patch(32, 32, 4, 0, step)


def game_step(who: Players, source: Tensor, target: Tensor, table: bool) -> Callable[[], None]:
    """A function that plays one step of calib's game."""
    features = features_of(who.classifier)
    game = Game(who.calibrator, features, who.critics, *optimizers_of(who), WEIGHTS)
    known = features(source), features(target)

    def step() -> None:
        clean = known if table else (features(source), features(target))
        game.play([(Batch(source, target, *clean), patch())])

    return step


def released_step(who: Players, source: Tensor, target: Tensor) -> Callable[[], None]:
    """A function that plays one step in the order of the released code."""
    features, optimizers = features_of(who.classifier), optimizers_of(who)
    return lambda: released_order(who, features, *optimizers, source, target)


def released_order(
    who: Players,
    features: Callable[[Tensor], Tensor],
    calibrator_optimizer: torch.optim.Optimizer,
    critics_optimizer: torch.optim.Optimizer,
    source: Tensor,
    target: Tensor,
) -> None:
    """The critics' step with every graph kept, then the calibrator's with everything computed anew."""
    pixel, feature = who.critics.pixel, who.critics.feature
    assert pixel is not None
    assert feature is not None
    groups = [source, target, who.calibrator(source), who.calibrator(target)]
    loss = critic_loss([pixel(group, patch()) for group in groups])
    loss = loss + critic_loss([feature(features(group)) for group in groups])
    critics_optimizer.zero_grad()
    loss.backward()
    critics_optimizer.step()

    source, target = who.calibrator(source), who.calibrator(target)
    loss = WEIGHTS.pixel * calibrator_loss(pixel(source, patch()), pixel(target, patch()), WEIGHTS.source)
    loss = loss + WEIGHTS.feature * calibrator_loss(
        feature(features(source)), feature(features(target)), WEIGHTS.source
    )
    calibrator_optimizer.zero_grad()
    loss.backward()
    calibrator_optimizer.step()


def largest_difference(who: Players, batch: int) -> float:
    """By how much weights differ after one step of each order from the same start, in float64.

    By plain gradient descent at rate 1, where a step is the gradient.  Expects critics without dropout.
    """
    ours, theirs = (Players(*map(in_float64, who)) for _ in range(2))
    source, target = (images(batch, seed, torch.float64) for seed in (0, 1))
    features = features_of(ours.classifier)
    game = Game(ours.calibrator, features, ours.critics, *optimizers_of(ours, torch.optim.SGD, 1.0), WEIGHTS)
    game.play([(Batch(source, target, features(source), features(target)), patch())])
    sgd = optimizers_of(theirs, torch.optim.SGD, 1.0)
    released_order(theirs, features_of(theirs.classifier), *sgd, source, target)
    mine, others = (
        torch.nn.utils.parameters_to_vector([*p.calibrator.parameters(), *p.critics.parameters()]).detach()
        for p in (ours, theirs)
    )
    start = torch.nn.utils.parameters_to_vector([*who.calibrator.parameters()]).double()
    if bool((mine[: len(start)] == start).all()):
        raise SystemExit("the comparison proves nothing: the calibrator did not move")
    return float((mine - others).abs().max())


def features_of(classifier: nn.Module) -> Callable[[Tensor], Tensor]:
    """What the feature critic sees by default."""
    return lambda x: classifier(x).softmax(1)


def optimizers_of(who: Players, kind: Any = torch.optim.Adam, rate: float = 1e-5) -> tuple[Any, Any]:
    """Calibrator's and critics' optimizer.  Slow: noise that is learned by heart ends in denormal numbers."""
    return kind(who.calibrator.parameters(), rate), kind(who.critics.parameters(), rate)


def in_float64(net: Any) -> Any:
    """A copy of a net in double precision."""
    return copy.deepcopy(net).double()


if __name__ == "__main__":
    main()
