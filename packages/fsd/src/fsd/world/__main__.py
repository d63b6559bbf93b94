"""Contact sheets of the world, and the training of its judge.

python -m fsd.world kinds FILE.png       # every kind in every colour
python -m fsd.world sides FILE.png       # kinds with a front, all around
python -m fsd.world judge                # trains the judge, prints its accuracy, writes its weights
"""

import argparse
import time
from pathlib import Path
from random import Random

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from fsd.cameras import place, turntable
from fsd.world.judge import SEED, WEIGHTS, accuracy, load_judge, save_judge, train_judge
from fsd.world.objects import FRONTED, KINDS
from fsd.world.pictures import draw_object, draw_pictures, render
from fsd.world.words import COLOURS


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fsd.world", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("kinds", "sides", "judge"))
    parser.add_argument("file", nargs="?", type=Path, help="a PNG; of the judge, its weights")
    given = parser.parse_args()
    if given.what == "judge":
        _train(given.file or WEIGHTS)
    elif given.file is None:
        parser.error(f"name a PNG: python -m fsd.world {given.what} FILE.png")
    else:
        names, pictures = kinds_in_colours() if given.what == "kinds" else sides()
        _write(pictures, names, given.file)


def kinds_in_colours(size: int = 32) -> tuple[list[str], UInt8[Tensor, "kinds 8 3 h w"]]:
    """A row per kind, a column per colour, each object and camera another."""
    objects = [draw_object(Random(f"{k}-{c}"), k, c) for k in KINDS for c in COLOURS]
    count = len(objects)
    spread = torch.arange(count) * 0.618 % 1
    cameras = place(spread * 300 - 150, 10 + 25 * (torch.arange(count) * 0.414 % 1))
    images = render(objects, torch.arange(count), cameras, size)
    return list(KINDS), images.unflatten(0, (len(KINDS), len(COLOURS)))


def sides(size: int = 32, around: int = 8) -> tuple[list[str], UInt8[Tensor, "kinds around 3 h w"]]:
    """A row per kind with a front, seen from `around` sides; the first is the front."""
    objects = [
        draw_object(Random(k), k, c)
        for k, c in zip(FRONTED, ("green", "blue", "red", "orange", "white"), strict=True)
    ]
    cameras = turntable(around, elevation_deg=20)
    images = [render(objects, torch.full((around,), n), cameras, size) for n in range(len(objects))]
    return list(FRONTED), torch.stack(images)


def _write(
    pictures: UInt8[Tensor, "rows columns 3 h w"], names: list[str], path: Path, zoom: int = 2
) -> None:
    height = pictures.shape[3] * zoom
    rows = torch.cat(list(torch.cat(list(pictures.unbind(1)), 3)), 1).permute(1, 2, 0)
    body = Image.fromarray(rows.numpy())
    body = body.resize((body.width * zoom, body.height * zoom), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (body.width + 72, body.height), "white")
    sheet.paste(body, (72, 0))
    drawing = ImageDraw.Draw(sheet)
    for number, name in enumerate(names):
        drawing.text((6, height * number + height // 2 - 6), name, fill="black")
    sheet.save(path, optimize=True)


def _train(path: Path) -> None:
    start = time.process_time()
    save_judge(train_judge(), path)
    print(f"trained in {time.process_time() - start:.0f} core-seconds; {path.stat().st_size / 1000:.0f} kB")
    kind, colour, view = accuracy(load_judge(path), draw_pictures(6000, SEED - 1))
    print(f"on 6,000 fresh pictures: kind {kind:.2%}, colour {colour:.2%}, view {view:.2%}")


if __name__ == "__main__":
    main()
