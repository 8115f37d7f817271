"""What a picture shows: one to four items on a 3x3 grid, held-out combinations only where they belong."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from .glyphs import digit_instances, sign_size_px
from .vocabulary import (
    COLORS,
    HELDOUT_SHAPE_PAIRS,
    HELDOUT_WORD_PAIRS,
    SHAPES,
    TRAIN_SHAPE_PAIRS,
    TRAIN_WORD_PAIRS,
)

Split = Literal["train", "heldout"]
SPLITS = ("train", "heldout")

CANVASES_PX = ((112, 112), (112, 112), (128, 96), (96, 128), (144, 108), (108, 144), (128, 112), (112, 128))
VIEW_PX = 112  # side of the padded picture once scaled for the encoder: item sizes are chosen there


@dataclass(frozen=True)
class Item:
    """One thing in a picture.

    Args:
        kind: "shape" (has color and shape), "digit" (has digit and digit_instance) or "word" (has word; color
            is its sign's).
        cell: row and column in the 3x3 grid, of the item's centre.
        box_px: x0, y0, x1, y1 in pixels of the unpadded picture; x1 and y1 are one past the last pixel.
        inverted: for a digit, light ink on a dark plate.
        size_px: side of a shape or digit, height of a word's capitals.
    """

    kind: Literal["shape", "digit", "word"]
    cell: tuple[int, int]
    box_px: tuple[int, int, int, int]
    size_px: int
    color: str | None = None
    shape: str | None = None
    digit: int | None = None
    digit_instance: int | None = None
    word: str | None = None
    inverted: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn; `seed` fixes its texture and shades. `items` are in reading order."""

    width_px: int
    height_px: int
    background: tuple[int, int, int]
    items: tuple[Item, ...]
    seed: int


@dataclass
class _Canvas:
    """A picture being filled: its size and the grid cells still free."""

    width_px: int
    height_px: int
    free: set[tuple[int, int]] = field(default_factory=lambda: {(r, c) for r in range(3) for c in range(3)})

    def scaled(self, view_px: float) -> int:
        """Pixels here that become `view_px` once the padded picture is scaled to the encoder's size."""
        return round(view_px * max(self.width_px, self.height_px) / VIEW_PX)


def is_heldout(item: Item) -> bool:
    """Whether an item is a combination that training never sees."""
    if item.kind == "shape":
        return (item.color, item.shape) in HELDOUT_SHAPE_PAIRS
    if item.kind == "word":
        return (item.word, item.color) in HELDOUT_WORD_PAIRS
    return item.digit_instance in digit_instances()["heldout"][item.digit or 0]


def split_of(scene: Scene) -> Split:
    """The split a scene belongs to, from its content: held out as soon as one item is."""
    return "heldout" if any(is_heldout(item) for item in scene.items) else "train"


def sample_scene(rng: random.Random, split: Split) -> Scene:
    """Draw a scene at random.

    Args:
        rng: source of randomness; the same state gives the same scene.
        split: "train" scenes hold no held-out combination; every "heldout" scene holds at least one held-out
            (colour, shape) or (word, colour) pair, and only held-out digit instances.

    Returns:
        A scene of one to four items in distinct cells.

    Raises:
        ValueError: on an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {SPLITS}")
    canvas = _Canvas(*rng.choice(CANVASES_PX))
    kinds = _sample_kinds(rng, split)
    theme = _sample_theme(rng)
    pair_expected = split == "heldout"  # the first shape or word of a held-out scene has to be a held-out pair
    items = []
    for kind in sorted(kinds, key=lambda kind: kind != "word"):  # signs are wide: they choose their row first
        if kind == "digit":
            items.append(_place_digit(rng, canvas, split))
            continue
        held = pair_expected or (split == "heldout" and rng.random() < 0.5)
        pair_expected = False
        items.append(_place_word(rng, canvas, held) if kind == "word" else _place_shape(rng, canvas, held, theme))
    base, spread = (rng.randint(214, 240), 8) if rng.random() < 0.5 else (rng.randint(22, 48), 10)
    background = tuple(base + rng.randint(-spread, spread) for _ in range(3))
    ordered = tuple(sorted(items, key=lambda item: item.cell))
    return Scene(canvas.width_px, canvas.height_px, background, ordered, rng.getrandbits(32))  # type: ignore[arg-type]


def _sample_kinds(rng: random.Random, split: Split) -> list[str]:
    count = rng.randint(1, 4)
    shapes_only = rng.random() < 0.3
    kinds: list[str] = []
    while len(kinds) < count:
        kind = "shape" if shapes_only else rng.choices(("shape", "digit", "word"), (0.46, 0.27, 0.27))[0]
        if kind == "shape" or kinds.count(kind) < 2:
            kinds.append(kind)
    if split == "heldout" and all(kind == "digit" for kind in kinds):
        kinds[0] = rng.choice(("shape", "word"))
    return kinds


def _sample_theme(rng: random.Random) -> tuple[str, str] | None:
    """What the shapes of a scene tend to share, as (field, value), so that there is something to count."""
    return rng.choice((None, ("color", rng.choice(list(COLORS))), ("shape", rng.choice(SHAPES))))


def _place_in_cell(rng: random.Random, canvas: _Canvas, width_px: int) -> tuple[tuple[int, int], tuple[int, ...]]:
    row, column = cell = rng.choice(sorted(canvas.free))
    canvas.free.discard(cell)
    corner = []
    for index, length in ((column, canvas.width_px), (row, canvas.height_px)):
        low, high = index * length // 3 + 1, (index + 1) * length // 3 - 1
        corner.append(rng.randint(low, max(low, high - width_px)))
    return cell, (corner[0], corner[1], corner[0] + width_px, corner[1] + width_px)


def _cell_side(canvas: _Canvas) -> int:
    return min(canvas.width_px, canvas.height_px) // 3 - 2


def _place_shape(rng: random.Random, canvas: _Canvas, held: bool, theme: tuple[str, str] | None) -> Item:
    pairs = sorted(HELDOUT_SHAPE_PAIRS) if held else list(TRAIN_SHAPE_PAIRS)
    if theme is not None and not held and rng.random() < 0.75:
        pairs = [pair for pair in pairs if pair[0 if theme[0] == "color" else 1] == theme[1]]
    color, shape = rng.choice(pairs)
    size = min(_cell_side(canvas), canvas.scaled(rng.uniform(22, 32)))
    cell, box = _place_in_cell(rng, canvas, size)
    return Item("shape", cell, box, size, color=color, shape=shape)  # type: ignore[arg-type]


def _place_digit(rng: random.Random, canvas: _Canvas, split: Split) -> Item:
    digit = rng.randrange(10)
    instance = rng.choice(digit_instances()[split][digit])
    size = min(_cell_side(canvas), canvas.scaled(rng.uniform(25, 30)))
    cell, box = _place_in_cell(rng, canvas, size)
    inverted = rng.random() < 0.5
    return Item("digit", cell, box, size, digit=digit, digit_instance=instance, inverted=inverted)  # type: ignore[arg-type]


def _place_word(rng: random.Random, canvas: _Canvas, held: bool) -> Item:
    word, color = rng.choice(sorted(HELDOUT_WORD_PAIRS) if held else TRAIN_WORD_PAIRS)
    capital = canvas.scaled(rng.uniform(13.5, 15.5))
    width, height = sign_size_px(word, capital)
    rows = [row for row in range(3) if all((row, column) in canvas.free for column in range(3))]
    row = rng.choice(rows)
    side_fits = width / 2 + 4 < canvas.width_px / 3  # its centre would lie in the outer column, not beyond
    column = rng.choice((0, 1, 2)) if side_fits else 1
    slack = 2 if column != 1 else canvas.scaled(4)
    left = {0: 1, 1: (canvas.width_px - width) // 2 - slack, 2: canvas.width_px - width - 1 - slack}[column]
    x0 = left + rng.randint(0, slack if column != 1 else 2 * slack)
    y0 = row * canvas.height_px // 3 + 1
    y0 += rng.randint(0, max(0, canvas.height_px // 3 - 2 - height))
    for blocked in range(3):
        if x0 < (blocked + 1) * canvas.width_px // 3 and x0 + width > blocked * canvas.width_px // 3:
            canvas.free.discard((row, blocked))
    return Item("word", (row, column), (x0, y0, x0 + width, y0 + height), capital, color=color, word=word)
