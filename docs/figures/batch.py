"""One batch as a picture: ``source.svg``, the splice plan of two short conversations, made by ``plan_splice`` itself."""

from __future__ import annotations

from svg import FAINT, IMAGE_FILL, INK, LEARNED_FILL, TEXT_FILL, box, labelled, picture, text

from lmmblocks import plan_splice
from lmmblocks.spec import IMAGE_TOKEN

WORDS = {1: "<s>", 11: "USER", 12: "What?", 13: "BOT", 21: "A", 22: "cat", 2: "</s>", 14: "Hi", 23: "Hello"}
SAMPLES = [([1, 11, IMAGE_TOKEN, 12, 13, 21, 22, 2], [3]), ([1, 11, 14, 13, 23, 2], [])]
LEARNED = {21, 22, 2, 23}
CELL, LEFT, HIGH = 47, 132, 30


def source_picture() -> str:
    """Return the picture: the rows of the batch, what ``source`` says of each, where it is taken from, and which rows predict."""
    labels = [[token if token in LEARNED else -100 for token in ids] for ids, _ in SAMPLES]
    plan = plan_splice([ids for ids, _ in SAMPLES], [counts for _, counts in SAMPLES], labels=labels)
    source, targets = plan.source.tolist(), dict(zip(plan.target_rows.tolist(), plan.targets.tolist()))
    width = LEFT + CELL * len(source) + 16
    shapes = [
        text(
            8,
            22,
            "Two conversations, one with a picture of three rows, packed into one batch of 16 rows, without padding",
            size=13,
            bold=True,
        )
    ]
    rows = {
        "row of the batch": [str(row) for row in range(len(source))],
        "says": [WORDS[value] if value >= 0 else f"img {-(value + 1)}" for value in source],
        "source": [str(value) for value in source],
        "positions": [str(value) for value in plan.positions.tolist()],
        "predicts (targets)": [WORDS[targets[row]] if row in targets else "" for row in range(len(source))],
    }
    y = 44
    for name, cells in rows.items():
        shapes.append(text(8, y + 20, name, size=12.5, bold=name == "source"))
        for row, content in enumerate(cells):
            shapes.append(_cell(name, row, content, source[row], y))
        y += HIGH + 8
    bounds = plan.cu_seqlens.tolist()
    for first, last, name in zip(bounds, bounds[1:], ("segment 0", "segment 1")):
        x, wide = LEFT + first * CELL, (last - first) * CELL - 6
        shapes.append(f'<path d="M{x},{y + 2} v8 h{wide} v-8" fill="none" stroke="{INK}"/>')
        shapes.append(text(x + wide / 2, y + 26, name, size=12, anchor="middle"))
    shapes.append(text(8, y + 14, "cu_seqlens", size=12.5))
    shapes.append(text(8, y + 30, str(bounds), size=11.5, fill=FAINT))
    y += 46
    return picture(width, y + 92, "The field source of a splice plan", [*shapes, *_legend(y)])


def _cell(name: str, row: int, content: str, value: int, y: float) -> str:
    x = LEFT + row * CELL
    if name == "row of the batch":
        return text(x + (CELL - 6) / 2, y + 20, content, size=11, anchor="middle", fill=FAINT)
    if name == "predicts (targets)":
        return labelled(x, y, CELL - 6, HIGH, content, size=11, fill=LEARNED_FILL) if content else box(x, y, CELL - 6, HIGH, stroke="#e4e7eb")
    if name == "positions":
        return labelled(x, y, CELL - 6, HIGH, content, size=11, stroke="#cbd2d9")
    return labelled(x, y, CELL - 6, HIGH, content, size=11, fill=TEXT_FILL if value >= 0 else IMAGE_FILL)


def _legend(y: float) -> list[str]:
    lines = [
        (TEXT_FILL, "source >= 0: this row is row `source` of the embedding table (the token's id)"),
        (
            IMAGE_FILL,
            "source < 0: this row is image row -(source + 1), counted over all images of the batch: -1 is row 0, -2 is row 1, -3 is row 2",
        ),
        (
            LEARNED_FILL,
            "the row before a learned token predicts it: target_rows are these rows, targets the tokens; no other row reaches the head",
        ),
    ]
    shapes = []
    for number, (fill, says) in enumerate(lines):
        shapes += [box(8, y + number * 26, 18, 18, fill=fill), text(34, y + 14 + number * 26, says, size=12)]
    return shapes


PICTURES = {"source.svg": source_picture}
