"""Write docs/gallery.md: every block of the registry with what it costs, built on the meta device.

    python docs/write_gallery.py

A test holds the page to this script. A block that is registered and has no line in the tables of options below is an error that says so.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from lmmblocks import registry  # noqa: E402
from lmmblocks.compose.image_rows import out_grid_of  # noqa: E402
from lmmblocks.compose.recipes import recipe  # noqa: E402
from lmmblocks.config import Block  # noqa: E402
from lmmblocks.decoders.catalogue import DECODERS  # noqa: E402
from lmmblocks.encoders.catalogue import ENCODERS  # noqa: E402
from lmmblocks.encoders.clip import CLIPConfig  # noqa: E402
from lmmblocks.encoders.fused import FusedConfig  # noqa: E402
from lmmblocks.encoders.tiled import TiledConfig  # noqa: E402
from lmmblocks.presets import PRESETS  # noqa: E402
from lmmblocks.spec import FeatureSpec, Grid, LmmError, image_count  # noqa: E402

PAGE = Path(__file__).with_name("gallery.md")
DECODER_WIDTH = 4096
PICTURES_PX = ((336, 336), (672, 672), (1000, 600), (2000, 500))
PROJECTORS: dict[str, dict[str, Any]] = {
    "adaptive_pool": {"grid": 12},
    "image_token": {"token": 32000},
    "ldpv2": {"grid": 12},
    "resampler": {"grid": 8},
    "token_packer": {"layers": 4},
}
"""Options of projectors that have no default for them; all others are as they come."""
SAME_WIDTH = ("identity",)
"""Projectors that need a decoder of the encoder's width."""
ENCODERS_OWN = {
    "fused": "towers of its own, below",
    "tiled": "the tower's, once a tile, below",
    "open_clip": "as its architecture",
    "timm": "as its architecture",
}
"""Encoders that wrap others, and so have no size of their own."""
REDUCERS: dict[str, dict[str, Any]] = {"prumerge": {"keep": 64}}
HOOKS: dict[str, dict[str, Any]] = {
    "gated_cross_attention": {
        "layers": [0, 4, 8, 12, 16, 20, 24, 28],
        "resampler": {"latents": 64, "depth": 6},
    }
}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """Return the whole page."""
    sections = (_head, _projectors, _reducers, _hooks, _encoders, _encoders_around_others, _decoders, _templates, _presets)
    return "\n".join(line for section in sections for line in section()) + "\n"


def _head() -> Iterator[str]:
    yield "# Gallery of blocks"
    yield ""
    yield "Every block that is registered, with what it costs: how many rows of the decoder an image becomes, and how many parameters it has."
    yield "Written by `docs/write_gallery.py` from the registry, built on the meta device; nothing is downloaded."


def _projectors() -> Iterator[str]:
    tower = _on_meta(CLIPConfig().build).spec
    grid = _grid(tower)
    wide = Grid(grid.h // 2, grid.w)
    yield from _section(
        "Projectors",
        f"After CLIP-L/14-336 ({grid} patches of width {tower.dim}) before a decoder of width {DECODER_WIDTH}, with default options where the "
        f"block has them, else those shown. The last column: rows of an image of half the height ({wide}), for encoders of any size.",
        ("name", "options", f"rows of {grid}", f"rows of {wide}", "parameters", "reads"),
    )
    for name in registry.built_in("projector"):
        width = tower.dim if name in SAME_WIDTH else DECODER_WIDTH
        projector = _made("projector", name, PROJECTORS.get(name, {}), tower, width)
        rows = [_rows(projector.out_grid, grid) for grid in (_grid(tower), wide)]
        yield _row(
            f"`{name}`",
            _options(PROJECTORS.get(name, {})),
            *rows,
            _count(projector),
            ", ".join(sorted(projector.requires)),
        )


def _reducers() -> Iterator[str]:
    tower = _on_meta(CLIPConfig().build).spec
    yield from _section(
        "Reducers",
        f"Drop or merge rows of an image, here of CLIP-L/14-336 with the projector `mlp` ({image_count(_grid(tower))} rows).",
        ("name", "options", "rows left", "parameters", "reads", "where"),
    )
    mlp = _made("projector", "mlp", {}, tower)
    for name in registry.built_in("reducer"):
        reducer = _made("reducer", name, REDUCERS.get(name, {}), tower)
        where = "before the projector" if getattr(reducer, "before_projector", False) else "after the projector"
        rows = image_count(out_grid_of(mlp, (reducer,))(_grid(tower)))
        yield _row(
            f"`{name}`",
            _options(REDUCERS.get(name, {})),
            str(rows),
            _count(reducer),
            ", ".join(sorted(reducer.requires)),
            where,
        )


def _hooks() -> Iterator[str]:
    tower = _on_meta(CLIPConfig().build).spec
    yield from _section(
        "Layer hooks",
        f"Between the layers of a decoder of width {DECODER_WIDTH}.",
        ("name", "options", "parameters", "reads"),
    )
    for name in registry.built_in("hook"):
        hook = _made("hook", name, HOOKS.get(name, {}), tower)
        yield _row(f"`{name}`", _options(HOOKS.get(name, {})), _count(hook), ", ".join(sorted(hook.requires)))


def _encoders() -> Iterator[str]:
    yield from _section(
        "Encoders",
        "As their configs come, without options.",
        ("name", "image", "patches", "width", "layers", "prefix", "parameters"),
    )
    for name in registry.built_in("encoder"):
        if name in ENCODERS_OWN:
            yield _row(f"`{name}`", ENCODERS_OWN[name], *[""] * 5)
            continue
        config = registry.resolve("encoder", name)()
        yield _row(f"`{name}`", *_of_encoder(config))
    yield from _section(
        "Encoders by one word",
        "`build(encoder=WORD)` reads these weights from the hub or its cache.",
        ("word", "image", "patches", "width", "layers", "prefix", "parameters", "weights"),
    )
    for word, (config, source) in ENCODERS.items():
        yield _row(f"`{word}`", *_of_encoder(config), source)


def _encoders_around_others() -> Iterator[str]:
    clip, dino = (ENCODERS[word][0] for word in ("clip-vit-l-336", "dinov2-large"))
    fused = _on_meta(FusedConfig((clip, dino)).build)
    yield from _section(
        "Several towers, and tiles",
        "Two examples of encoders around others. Tiles of one image become more rows than the image alone: here with the projector `mlp`.",
        ("encoder", "image", "rows", "width", "parameters"),
    )
    side = _grid(fused.spec)
    yield _row("`fused`: CLIP-L/14-336 and DINOv2-L side by side", f"{fused.spec.image_size} px", str(side.rows), str(fused.spec.dim), _count(fused))
    tiled = _on_meta(TiledConfig(clip).build)
    for width_px, height_px in PICTURES_PX:
        rows = tiled.arrangement.rows_of(tiled.preprocess.grid(width_px, height_px), lambda grid: grid)
        yield _row("`tiled`: LLaVA-NeXT's", f"{width_px} x {height_px} px", str(rows), str(tiled.spec.dim), _count(tiled))


def _of_encoder(config: Any) -> tuple[str, ...]:
    encoder = _on_meta(config.build)
    spec = encoder.spec
    image = f"{spec.image_size} px" if spec.image_size else "any"
    return (
        image,
        str(_grid(spec)) if spec.image_size else "follows the image",
        str(spec.dim),
        str(config.layers),
        str(spec.prefix),
        _count(encoder),
    )


def _decoders() -> Iterator[str]:
    yield from _section(
        "Decoders",
        "The kinds: " + ", ".join(f"`{name}`" for name in registry.built_in("decoder")) + ". By one word:",
        ("word", "width", "layers", "heads", "key heads", "vocabulary", "parameters", "weights"),
    )
    for word, (config, source) in DECODERS.items():
        shape = [str(getattr(config, field)) for field in ("dim", "layers", "heads", "kv_heads", "vocab")]
        yield _row(f"`{word}`", *shape, _count(_on_meta(config.build)), source)


def _templates() -> Iterator[str]:
    """One line: they cost nothing."""
    yield from (
        "",
        "## Chat templates",
        "",
        ", ".join(f"`{name}`" for name in registry.built_in("template")) + ".",
    )


def _presets() -> Iterator[str]:
    yield from _section(
        "Presets",
        "Whole models, as `build(NAME)` makes them.",
        ("name", "rows of an image", "parameters: encoder", "decoder"),
    )
    for name, preset in PRESETS.items():
        config = preset()
        encoder, decoder = _on_meta(config.encoder.build), _on_meta(config.decoder.build)
        tower = encoder.spec
        made = _made("projector", config.projector.type, _without_files(config.projector.options), tower, decoder.dim)
        rows = str(image_count(out_grid_of(made, ())(_grid(tower))))
        tiles = " a tile" if config.encoder.__class__.__name__ == "TiledConfig" else ""
        yield _row(f"`{name}`", f"{rows}{tiles}", _count(encoder), _count(decoder))


def _grid(spec: FeatureSpec) -> Grid:
    """Return the patches of an encoder of fixed size."""
    assert spec.image_size is not None
    side = spec.image_size // spec.patch
    return spec.grid or Grid(side, side)


def _without_files(options: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(options).items() if key != "tokenizer"}


def _made(kind: str, name: str, options: dict[str, Any], tower: Any, width: int = DECODER_WIDTH) -> Any:
    try:
        return _on_meta(lambda: recipe(kind, Block(name, options)).make(tower, width))
    except LmmError as error:
        raise LmmError(f"{kind} {name!r} can't be made without options: add some to the table in docs/write_gallery.py ({error})") from error


def _on_meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def _rows(out_grid: Callable[[Grid], Grid | int], grid: Grid) -> str:
    try:
        found = out_grid(grid)
    except LmmError:
        return "refused"
    return f"{image_count(found)}" + (f" ({found})" if isinstance(found, Grid) else "")


def _count(module: Any) -> str:
    """Return the number of parameters, each counted once."""
    number = sum(p.numel() for p in module.parameters()) if isinstance(module, nn.Module) else 0
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in options.items())


def _section(title: str, says: str, columns: tuple[str, ...]) -> Iterator[str]:
    yield from ("", f"## {title}", "", says, "", _row(*columns), "|" + "---|" * len(columns))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
