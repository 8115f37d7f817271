"""The stations of a batch as a picture, ``walks.svg``, and a block's contract, ``contracts.svg``."""

from __future__ import annotations

from svg import FAINT, IMAGE_FILL, LEARNED_FILL, TEXT_FILL, arrow, labelled, picture, text

STEP, WIDE, HIGH = 172, 146, 40


def _chain(y: float, names: list[tuple[str, str]], fills: list[str]) -> list[str]:
    shapes = []
    for place, ((name, shape), fill) in enumerate(zip(names, fills)):
        x = 14 + place * STEP
        shapes.append(labelled(x, y, WIDE, HIGH, name, size=12.5, fill=fill))
        shapes.append(text(x + WIDE / 2, y + HIGH + 15, shape, size=10.5, anchor="middle", fill=FAINT))
        if place:
            shapes.append(arrow(x - (STEP - WIDE), y + HIGH / 2, x - 2, y + HIGH / 2))
    return shapes


def walks_picture() -> str:
    """Return what happens on the host and on the device, station by station."""
    host = [
        ("Sample", "messages, images"),
        ("template.render", "pieces that know if learned"),
        ("tokenize", "ids, labels"),
        ("preprocess.batch", "pixels, grids"),
        ("plan_splice", "source, targets, cu_seqlens"),
        ("Batch", "pixels, grids, plan"),
    ]
    device = [
        ("encoder", "patches (M', C)"),
        ("projector", "rows_MD"),
        ("ops.splice", "embeds_TD"),
        ("decoder", "hidden_TD"),
        ("index_select", "supervised rows: hidden_RD"),
        ("linear_cross_entropy", "loss"),
    ]
    fills = [TEXT_FILL, TEXT_FILL, TEXT_FILL, IMAGE_FILL, "#ffffff", "#ffffff"]
    shapes = [text(14, 22, "On the host, in the loader's process: every length is known here", size=13, bold=True)]
    shapes += _chain(36, host, fills)
    shapes.append(text(14, 132, "On the device: rows are copied and computed, nothing is asked back", size=13, bold=True))
    shapes += _chain(146, device, [IMAGE_FILL, IMAGE_FILL, "#ffffff", TEXT_FILL, LEARNED_FILL, LEARNED_FILL])
    return picture(14 + 6 * STEP, 218, "The stations of a batch, on the host and on the device", shapes)


def contracts_picture() -> str:
    """Return who hands what to whom among the blocks."""
    wide = 190
    names = [
        ("Encoder", ["spec: FeatureSpec", "preprocess", "forward(pixels, need)"], "VisionFeatures"),
        ("Reducer (before)", ["requires", "out_count(grid)", "forward(features, rows, grids)"], "fewer rows"),
        ("Projector", ["requires", "out_grid(grid)", "forward(features)"], "rows_MD"),
        ("Decoder", ["dim, vocab, table", "forward(embeds_TD, ...)", "head(hidden)"], "hidden_TD"),
    ]
    shapes = []
    for place, (name, members, gives) in enumerate(names):
        x = 14 + place * (wide + 84)
        dash = {"dash": "5 4"} if name.startswith("Reducer") else {}
        shapes.append(labelled(x, 40, wide, 96, "", fill=IMAGE_FILL if place < 3 else TEXT_FILL, **dash))
        shapes.append(text(x + wide / 2, 60, name, anchor="middle", bold=True))
        shapes += [text(x + 14, 84 + 18 * row, member, size=11.5) for row, member in enumerate(members)]
        shapes.append(text(x + wide + 4, 76, gives, size=10, fill=FAINT))
        shapes.append(arrow(x + wide + 4, 88, x + wide + 80, 88))
    shapes.append(
        text(
            14,
            24,
            "What each block declares (known before any tensor exists) and what it hands on",
            bold=True,
        )
    )
    says = "A LayerHook stands between the decoder's layers: it reads hidden rows, may drop some, and may look at the images again."
    shapes.append(text(14, 162, says, size=12))
    return picture(14 + 4 * (wide + 84), 178, "The contracts of encoder, reducer, projector and decoder", shapes)


PICTURES = {"walks.svg": walks_picture, "contracts.svg": contracts_picture}
