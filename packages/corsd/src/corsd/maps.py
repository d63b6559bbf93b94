"""Which axis of a stage's output is what, and the output as a channels-first map.

Two image sizes tell: of a second output, for images of twice the height, the axis that changed is the height (of
tokens: the places).  A net that takes one size only is read by the shape of the image: a map of H x W images has
about the ratio H : W.  What fits two readings is not guessed.
"""

import math
from typing import Literal, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor

Layout = Literal["map", "map_last", "tokens", "vector"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
MOST_PREFIX_TOKENS = 5
"""More class and register tokens than that are not looked for: nets in use have up to five."""


class Reading(NamedTuple):
    """``grid``: rows and columns of the patch tokens; ``prefix``: how many other tokens stand before them."""

    layout: Layout
    channels: int
    grid: tuple[int, int] | None = None
    prefix: int = 0


def read_layout(
    shape: tuple[int, ...],
    taller: tuple[int, ...] | None,
    image: tuple[int, int] | None,
    layout: Layout | None = None,
    prefix: int | None = None,
) -> Reading | str:
    """How to read an output of this shape, or a sentence that says why that cannot be told.

    Args:
        taller: its shape for images of twice the height; None where the net does not take them.
        image: height and width of the images of ``shape``; None where the input is no image.
        layout, prefix: what the user says; None leaves it to the shapes.
    """
    if taller is not None and len(taller) != len(shape):
        taller = None
    if layout is None:
        read = _layout(shape, taller, image)
        if read not in LAYOUTS:
            return read
        layout = read  # pyright: ignore[reportAssignmentType]
    assert layout is not None
    wanted = {"map": 4, "map_last": 4, "tokens": 3, "vector": 2}[layout]
    if len(shape) != wanted:
        return f"layout={layout!r} has {wanted} axes"
    if layout in ("map", "vector"):
        return Reading(layout, shape[1])
    if layout == "map_last":
        return Reading(layout, shape[3])
    found = _grid(shape, taller, image, prefix)
    return found if isinstance(found, str) else Reading("tokens", shape[2], *found)


def as_map(
    feature: Float[Tensor, "batch ..."],
    layout: Layout,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """A stage's output as a channels-first map.

    Tokens become the ``grid`` (rows, columns) of their patches, or one of the same ratio where images have
    another size; without a grid the largest square that they fill.  What stands before the patches (``prefix``
    class and register tokens) is averaged and added to every patch, because a transformer keeps its verdict
    there.

    Raises:
        ValueError: the number of axes does not fit the layout, or the tokens no grid of that ratio.
    """
    wanted = {"map": 4, "map_last": 4, "tokens": 3, "vector": 2}[layout]
    if feature.dim() != wanted:
        raise ValueError(
            f"layout={layout!r} has {wanted} axes; got an output of shape {tuple(feature.shape)}"
        )
    if layout == "map":
        return feature
    if layout == "map_last":
        return feature.permute(0, 3, 1, 2)
    if layout == "vector":
        return feature[:, :, None, None]
    tokens = feature.shape[1]
    if grid is None:
        side = math.isqrt(tokens if prefix is None else tokens - prefix)
        grid = (side, side)
    if prefix is None:
        prefix = tokens - grid[0] * grid[1]
    rows, columns = _same_ratio(tokens - prefix, grid)
    patches = feature[:, prefix:]
    if prefix:
        patches = patches + feature[:, :prefix].mean(1, keepdim=True)
    return patches.transpose(1, 2).unflatten(2, (rows, columns))


def _same_ratio(count: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of ``count`` patches: the grid itself, or the one nearest to its ratio."""
    if grid[0] * grid[1] == count:
        return grid
    sizes = _grids(count)
    ratio = grid[0] / grid[1]
    best = min(sizes, key=lambda size: abs(math.log(size[0] / size[1] / ratio)), default=(0, 0))
    if not sizes or abs(math.log(best[0] / best[1] / ratio)) > math.log(1.5):
        raise ValueError(
            f"{count} patch tokens are no grid like the {grid[0]} x {grid[1]} of the example: give an example of "
            "the size of the images"
        )
    return best


def _layout(shape: tuple[int, ...], taller: tuple[int, ...] | None, image: tuple[int, int] | None) -> str:
    """The layout, or why it is ambiguous."""
    if len(shape) == 2:
        return "vector"
    if len(shape) == 3:
        if taller is not None and taller[1] == shape[1] and taller[2] != shape[2]:
            return "its last axis changes with the size of the images, as if channels came before the tokens"
        if taller == shape and shape[1] > 1:
            return "its tokens do not change with the size of the images, so they are no grid of patches"
        return "tokens"
    moved = [axis for axis in (1, 2, 3) if taller is not None and taller[axis] != shape[axis]]
    if moved:
        if moved == [2]:
            return "map"
        if moved == [1]:
            return "map_last"
        return f"of axes 1 to 3 it is {moved} that change with the height of the images"
    first, last = _fits(shape[2:], image), _fits(shape[1:3], image)
    if first != last:
        return "map" if first else "map_last"
    # Maps of one place, or of a fixed size such as after adaptive pooling: square ones tell by themselves.
    if shape[2] == shape[3] != shape[1]:
        return "map"
    if shape[1] == shape[2] != shape[3]:
        return "map_last"
    return "channels may come first or last"


def _fits(size: tuple[int, ...], image: tuple[int, int] | None) -> bool:
    """Whether a map of this size may be one of the image: its ratio, within the rounding of strides."""
    if image is None:
        return size[0] == size[1]
    stride = max(image[0] / size[0], image[1] / size[1])
    return all(math.floor(i / stride) <= s <= math.ceil(i / stride) for i, s in zip(image, size, strict=True))


def _grid(
    shape: tuple[int, ...],
    taller: tuple[int, ...] | None,
    image: tuple[int, int] | None,
    prefix: int | None,
) -> tuple[tuple[int, int], int] | str:
    """Rows and columns of the patch tokens, and the number of tokens before them, or why not."""
    tokens, size = shape[1], image or (1, 1)
    if prefix is not None:
        counts = [tokens - prefix]
    else:
        counts = list(range(tokens, max(tokens - MOST_PREFIX_TOKENS, 1) - 1, -1))
        # Twice the height is twice the patches, while the other tokens stay.
        if taller is not None and tokens < taller[1] <= 2 * tokens:
            counts = [taller[1] - tokens, *counts]
    # A grid of exactly the image's ratio first, then one that strides round to.
    for fits in (_same_shape, _rounded_shape):
        for count in counts:
            if fits is _rounded_shape and prefix is None and tokens - count > 1:
                continue  # many pairs of a rounded grid and a number of tokens fit
            for grid in _grids(count):
                if fits(grid, size):
                    return grid, tokens - count
    what = f"its {tokens} tokens" if prefix is None else f"its {counts[0]} tokens behind {prefix} others"
    return f"{what} fill no grid of an image of {size[0]} x {size[1]}"


def _grids(count: int) -> list[tuple[int, int]]:
    low = [rows for rows in range(1, math.isqrt(max(count, 0)) + 1) if count % rows == 0]
    return [grid for rows in low for grid in ((rows, count // rows), (count // rows, rows))]


def _same_shape(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    return grid[0] * image[1] == grid[1] * image[0]


def _rounded_shape(grid: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether one stride cuts the image into this grid, rounding down or up; a square one into squares only."""
    if image[0] == image[1]:
        return False
    # n rows come of strides above i / (n + 1) up to i / n, rounding down, and from there to i / (n - 1), rounding up
    sides = list(zip(image, grid, strict=True))
    down = max(i / (n + 1) for i, n in sides) < min(i / n for i, n in sides)
    return down or max(i / n for i, n in sides) < min(i / (n - 1) if n > 1 else math.inf for i, n in sides)
