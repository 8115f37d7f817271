"""The words the tiny world is made of, and the combinations that training never sees."""

from __future__ import annotations

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "green": (36, 150, 56),
    "blue": (38, 72, 222),
    "yellow": (244, 218, 32),
    "purple": (130, 44, 176),
    "orange": (246, 134, 20),
    "cyan": (28, 200, 216),
    "pink": (250, 136, 188),
}
"""Colour name -> sRGB, 8 bits a channel."""

DARK_INK_ON = frozenset({"yellow", "orange", "cyan", "pink"})
"""Sign colours that carry black letters; the others carry white ones."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")

PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}

WORDS = (
    "sun", "cat", "dog", "hat", "cup", "bus", "key", "fox", "pen", "bed", "egg", "fan", "jam", "zip",
    "milk", "moon", "tree", "fish", "bird", "cake", "door", "lamp", "ship", "road", "bell", "frog", "king",
    "wolf", "rain", "nest", "hand", "leaf",
)  # fmt: skip

POSITIONS: dict[tuple[int, int], str] = {
    (0, 0): "top left", (0, 1): "top", (0, 2): "top right",
    (1, 0): "left", (1, 1): "center", (1, 2): "right",
    (2, 0): "bottom left", (2, 1): "bottom", (2, 2): "bottom right",
}  # fmt: skip
"""(row, column) of the 3x3 grid -> its name."""

HELDOUT_SHAPE_PAIRS = frozenset(
    {
        ("red", "square"), ("green", "circle"), ("blue", "diamond"), ("yellow", "cross"),
        ("purple", "star"), ("orange", "triangle"), ("cyan", "square"), ("pink", "circle"),
    }
)  # fmt: skip
"""(colour, shape): every colour once, every shape at least once; each part is trained on in other pairs."""

HELDOUT_WORD_PAIRS = frozenset((word, list(COLORS)[index % len(COLORS)]) for index, word in enumerate(WORDS))
"""(word, sign colour): every word once, every colour four times."""

SHAPE_PAIRS = tuple((color, shape) for color in COLORS for shape in SHAPES)
TRAIN_SHAPE_PAIRS = tuple(pair for pair in SHAPE_PAIRS if pair not in HELDOUT_SHAPE_PAIRS)
WORD_PAIRS = tuple((word, color) for word in WORDS for color in COLORS)
TRAIN_WORD_PAIRS = tuple(pair for pair in WORD_PAIRS if pair not in HELDOUT_WORD_PAIRS)
