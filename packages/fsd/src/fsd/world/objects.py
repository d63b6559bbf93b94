"""Sixteen kinds of objects with random proportions and parts.

An object faces +y and z is up; `build` adds its parts in any size and place, the pictures fit it into the frame.  The
main colour is the caption's; stems, wheels, windows and the like have tones of their own.

    >>> parts = Parts(); KINDS["mushroom"](parts, random.Random(0), (0.85, 0.15, 0.12))
"""

import math
from collections.abc import Callable
from random import Random

from fsd.world.parts import Parts

Colour = tuple[float, float, float]
Build = Callable[[Parts, Random, Colour], None]

CREAM: Colour = (0.93, 0.87, 0.72)
WOOD: Colour = (0.47, 0.31, 0.18)
DARK: Colour = (0.13, 0.13, 0.15)
GLASS: Colour = (0.62, 0.8, 0.9)
DOUGH: Colour = (0.8, 0.6, 0.36)
COFFEE: Colour = (0.28, 0.17, 0.1)
CARROT: Colour = (0.95, 0.48, 0.08)
ROOF: Colour = (0.42, 0.28, 0.25)
PALE: Colour = (0.97, 0.95, 0.8)


def _deep(colour: Colour, by: float = 0.65) -> Colour:
    return (colour[0] * by, colour[1] * by, colour[2] * by)


def _against(colour: Colour) -> Colour:
    """What can be seen on it: dark on light and light on dark."""
    return DARK if sum(colour) > 0.9 else PALE


def _cube(parts: Parts, rng: Random, main: Colour) -> None:
    parts.box((0, 0, 0), (1, 1, rng.uniform(0.9, 1.1)), main)


def _ball(parts: Parts, rng: Random, main: Colour) -> None:
    parts.ball((0, 0, 0), (1, 1, rng.uniform(0.93, 1.07)), main)


def _cone(parts: Parts, rng: Random, main: Colour) -> None:
    parts.tube((0, 0, 0), (0, 0, rng.uniform(1.7, 2.5)), 1, 0.02, main)


def _cylinder(parts: Parts, rng: Random, main: Colour) -> None:
    parts.tube((0, 0, 0), (0, 0, rng.uniform(1.9, 3.0)), 1, 1, main)


def _donut(parts: Parts, rng: Random, main: Colour) -> None:
    thick = rng.uniform(0.36, 0.5)
    parts.ring((0, 0, 0), 1, thick, DOUGH)
    parts.ring((0, 0, 0.14), 1, thick * 0.98, main)
    if rng.random() < 0.6:
        start = rng.uniform(0, 60)
        for k in range(rng.randint(6, 9)):
            x, y = _round(start + 40 * k, 1 + 0.2 * (-1) ** k)
            parts.ball((x, y, 0.12 + thick * 0.9), 0.11, _against(main))


def _mug(parts: Parts, rng: Random, main: Colour) -> None:
    tall, foot = rng.uniform(1.7, 2.4), rng.uniform(0.75, 1.0)
    parts.tube((0, 0, 0), (0, 0, tall), foot, 1, main)
    parts.tube((0, 0, tall), (0, 0, tall + 0.01), 0.85, 0.85, COFFEE)
    big = tall * rng.uniform(0.27, 0.34)
    parts.ring(((foot + 1) / 2 + 0.1, 0, tall * 0.52), big, rng.uniform(0.13, 0.19), main, axis=(0, 1, 0))


def _table(parts: Parts, rng: Random, main: Colour) -> None:
    tall, thick = rng.uniform(0.9, 1.3), rng.uniform(0.07, 0.12)
    legs = rng.choice((_deep(main), WOOD))
    if rng.random() < 0.35:
        parts.tube((0, 0, tall), (0, 0, tall + 2 * thick), 1.0, 1.0, main)
        parts.tube((0, 0, 0), (0, 0, tall), 0.14, 0.14, legs)
        parts.tube((0, 0, 0), (0, 0, 0.1), 0.55, 0.45, legs)
        return
    wide, long = rng.uniform(0.7, 0.9), rng.uniform(1.0, 1.35)
    parts.box((0, 0, tall + thick), (long, wide, thick), main)
    for x in (-1, 1):
        for y in (-1, 1):
            parts.box((x * (long - 0.13), y * (wide - 0.13), tall / 2), (0.1, 0.1, tall / 2), legs)


def _chair(parts: Parts, rng: Random, main: Colour) -> None:
    seat, wide, back = rng.uniform(0.65, 0.9), rng.uniform(0.58, 0.72), rng.uniform(0.8, 1.1)
    legs = rng.choice((_deep(main), WOOD))
    parts.box((0, 0, seat), (wide, 0.6, 0.11), main)
    for x in (-1, 1):
        for y in (-0.5, 0.5):
            parts.box((x * (wide - 0.1), y, seat / 2), (0.1, 0.1, seat / 2), legs)
    if rng.random() < 0.6:
        parts.box((0, -0.56, seat + back / 2), (wide, 0.1, back / 2), main, tilt=rng.uniform(0, 8))
    else:
        for x in (-1, 1):
            parts.box((x * (wide - 0.09), -0.54, seat + back / 2), (0.09, 0.08, back / 2), legs)
        for height in (0.45, 0.88):
            parts.box((0, -0.54, seat + back * height), (wide, 0.06, 0.16), main)
    if rng.random() < 0.3:
        for x in (-1, 1):
            parts.box((x * wide, 0, seat + 0.42), (0.08, 0.56, 0.06), main)
            parts.box((x * wide, 0.46, seat + 0.2), (0.06, 0.06, 0.2), legs)


def _house(parts: Parts, rng: Random, main: Colour) -> None:
    wide, deep, tall = rng.uniform(0.85, 1.15), rng.uniform(0.8, 1.0), rng.uniform(0.65, 0.9)
    parts.box((0, 0, tall), (wide, deep, tall), main)
    roof = rng.uniform(0.25, 0.42)
    form = rng.choice(((0.0, 1.0), (1.0, 0.0), (0.1, 0.1)))
    parts.box((0, 0, 2 * tall + roof), (wide + 0.12, deep + 0.12, roof), ROOF, top=form)
    door = rng.choice((-0.4, 0.0, 0.4)) * wide
    parts.box((door, deep, tall * 0.55), (0.23, 0.04, tall * 0.55), _deep(_against(main), 0.8))
    for x in (-0.6, 0.6, 0.0):
        if abs(x * wide - door) > 0.45:
            parts.box((x * wide, deep, tall * 1.2), (0.2, 0.03, 0.22), GLASS)
    # One window on either side and none behind tell the back from the sides.
    for x in (-wide, wide):
        parts.box((x, rng.uniform(-0.15, 0.15), tall * 1.15), (0.03, 0.22, 0.24), GLASS)
    if rng.random() < 0.6:
        parts.box((wide * 0.55, -deep * 0.4, 2 * tall + roof * 1.2), (0.13, 0.13, roof), _deep(ROOF, 0.7))


def _mushroom(parts: Parts, rng: Random, main: Colour) -> None:
    stem, thick, cap = rng.uniform(0.75, 1.25), rng.uniform(0.22, 0.38), rng.uniform(0.6, 1.0)
    parts.tube((0, 0, 0), (0, 0, stem), thick * rng.uniform(1.0, 1.4), thick, CREAM)
    parts.tube((0, 0, stem - 0.05), (0, 0, stem), 0.94, 0.97, _deep(CREAM, 0.85))
    parts.ball((0, 0, stem), (1, 1, cap), main, low=0.0)
    if rng.random() < 0.7:
        start = rng.uniform(0, 90)
        for k in range(rng.randint(4, 7)):
            lean = (32.0, 62.0)[k % 2] if k else 5.0
            x, y = _round(start + 62 * k, math.sin(math.radians(lean)))
            parts.ball(
                (x, y, stem + cap * math.cos(math.radians(lean))), 0.15, PALE if sum(main) < 2.2 else WOOD
            )


def _tree(parts: Parts, rng: Random, main: Colour) -> None:
    trunk, thick = rng.uniform(0.6, 1.0), rng.uniform(0.14, 0.22)
    parts.tube((0, 0, 0), (0, 0, trunk + 0.5), thick * 1.25, thick * 0.8, WOOD)
    form = rng.choice(("round", "fir", "cloud"))
    if form == "round":
        parts.ball((0, 0, trunk + 0.75), (0.85, 0.85, rng.uniform(0.75, 1.05)), main)
    elif form == "fir":
        layers = rng.randint(2, 3)
        for k in range(layers):
            bottom = trunk * 0.8 + 0.55 * k
            parts.tube((0, 0, bottom), (0, 0, bottom + 0.95), 0.8 - 0.16 * k, 0.02, main)
    else:
        parts.ball((0, 0, trunk + 1.05), 0.6, main)
        start = rng.uniform(0, 120)
        for k in range(3):
            x, y = _round(start + 120 * k, 0.5)
            parts.ball((x, y, trunk + 0.55 + rng.uniform(0, 0.2)), rng.uniform(0.5, 0.62), main)


def _lamp(parts: Parts, rng: Random, main: Colour) -> None:
    pole, shade, metal = rng.uniform(0.8, 1.4), rng.uniform(0.7, 0.95), rng.choice((DARK, WOOD))
    parts.tube((0, 0, 0), (0, 0, 0.14), rng.uniform(0.42, 0.55), 0.4, metal)
    if rng.random() < 0.4:
        parts.ball((0, 0, pole * 0.45), (0.3, 0.3, pole * 0.4), metal)
    parts.tube((0, 0, 0), (0, 0, pole + 0.2), 0.1, 0.1, metal)
    parts.tube((0, 0, pole), (0, 0, pole + shade), 0.85, rng.uniform(0.4, 0.6), main)
    parts.ball((0, 0, pole), 0.26, PALE)


def _car(parts: Parts, rng: Random, main: Colour) -> None:
    long, wide, low = rng.uniform(1.1, 1.4), rng.uniform(0.66, 0.76), rng.uniform(0.28, 0.36)
    wheel = rng.uniform(0.29, 0.36)
    body = wheel + low * 0.8
    parts.box((0, 0, body), (wide, long, low), main)
    cabin, half = -rng.uniform(0.15, 0.35), rng.uniform(0.6, 0.75)
    glass = GLASS if sum(main) < 2.2 else DARK
    parts.box((0, cabin, body + low + 0.26), (wide * 0.95, half, 0.26), glass, top=(0.85, 0.7))
    parts.box((0, cabin, body + low + 0.55), (wide * 0.82, half * 0.72, 0.06), main)
    for x in (-1, 1):
        for y in (-0.6, 0.6):
            at = x * wide
            parts.tube((at - 0.1 * x, y * long, wheel), (at + 0.08 * x, y * long, wheel), wheel, wheel, DARK)
        parts.ball(
            (x * wide * 0.66, long, body + 0.08), (0.17, 0.08, 0.14), PALE if sum(main) < 2.2 else DARK
        )
        parts.box((x * wide * 0.75, -long, body + 0.12), (0.13, 0.05, 0.1), (0.6, 0.05, 0.08))


def _rocket(parts: Parts, rng: Random, main: Colour) -> None:
    tall, nose, wide = rng.uniform(1.5, 2.0), rng.uniform(0.55, 0.85), rng.uniform(0.45, 0.56)
    second = DARK if sum(main) > 2.2 or (rng.random() < 0.4 and sum(main) > 0.6) else PALE
    parts.tube((0, 0, 0.2), (0, 0, tall), wide * 0.92, wide, main)
    parts.tube((0, 0, tall), (0, 0, tall + nose), wide, 0.03, second)
    parts.tube((0, 0, 0.0), (0, 0, 0.2), 0.36, 0.26, COFFEE)
    turn = rng.choice((0.0, 45.0))
    for k in range(4):
        x, y = _round(turn + 90 * k, 1.0)
        foot = ((wide + 0.5) * x, (wide + 0.5) * y, 0.0)
        parts.fan((0.6 * wide * x, 0.6 * wide * y, 0.62), foot, (0.07, 0.3), (0.06, 0.12), second)
        if tall > 1.65:
            parts.ball((x * wide * 0.88, y * wide * 0.88, tall * 0.72), 0.21, GLASS)


def _fish(parts: Parts, rng: Random, main: Colour) -> None:
    thin, tall = rng.uniform(0.34, 0.48), rng.uniform(0.6, 0.8)
    fin = _deep(main, 0.7) if sum(main) > 0.6 else (0.4, 0.4, 0.42)
    parts.ball((0, 0, 0), (thin, 1.1, tall), main)
    # The tail: a wedge that opens backwards.
    parts.fan((0, -0.9, 0), (0, -1.5, 0), (0.06, 0.1), (0.06, rng.uniform(0.5, 0.65)), fin)
    parts.fan((0, -0.1, tall * 0.8), (0, -0.35, tall + 0.3), (0.05, 0.45), (0.04, 0.2), fin)
    for x in (-1, 1):
        parts.fan(
            (x * thin * 0.9, 0.15, -0.1), (x * (thin + 0.35), -0.15, -0.3), (0.05, 0.2), (0.04, 0.12), fin
        )
        parts.ball((x * thin * 0.72, 0.7, 0.16), 0.15, PALE)
        parts.ball((x * (thin * 0.72 + 0.09), 0.76, 0.17), 0.085, DARK)
    parts.ball((0, 1.06, -0.1), (0.16, 0.1, 0.07), _against(main))


def _snowman(parts: Parts, rng: Random, main: Colour) -> None:
    low, middle, head = rng.uniform(0.75, 0.9), rng.uniform(0.52, 0.62), rng.uniform(0.4, 0.48)
    waist = low * 1.55 + middle * 0.5
    top = waist + middle * 0.75 + head * 0.75
    parts.ball((0, 0, low), low, main)
    parts.ball((0, 0, waist), middle, main)
    parts.ball((0, 0, top), head, main)
    nose = CARROT if main[0] - main[2] < 0.6 or main[1] < 0.3 else DARK
    parts.tube((0, head * 0.8, top), (0, head + rng.uniform(0.35, 0.5), top), 0.15, 0.02, nose)
    for x in (-1, 1):
        parts.ball((x * head * 0.4, head * 0.83, top + head * 0.35), 0.09, _against(main))
        reach = (x * (middle + 0.65), 0.1, waist + rng.uniform(0.1, 0.5))
        parts.tube((x * middle * 0.8, 0, waist + 0.1), reach, 0.08, 0.06, WOOD)
    for z in (-0.1, 0.3):
        parts.ball((0, middle * 0.95, waist + z * middle), 0.09, _against(main))
    if rng.random() < 0.6:
        parts.tube((0, 0, top + head * 0.72), (0, 0, top + head * 0.85), head * 1.05, head * 1.05, DARK)
        parts.tube((0, 0, top + head * 0.8), (0, 0, top + head * 1.7), head * 0.7, head * 0.7, DARK)


def _round(degrees: float, radius: float) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


KINDS: dict[str, Build] = {
    "cube": _cube,
    "ball": _ball,
    "cone": _cone,
    "cylinder": _cylinder,
    "donut": _donut,
    "mug": _mug,
    "table": _table,
    "chair": _chair,
    "house": _house,
    "mushroom": _mushroom,
    "tree": _tree,
    "lamp": _lamp,
    "car": _car,
    "rocket": _rocket,
    "fish": _fish,
    "snowman": _snowman,
}
# Kinds whose sides differ: only they have words for the side that is seen.
FRONTED = ("chair", "house", "car", "fish", "snowman")
