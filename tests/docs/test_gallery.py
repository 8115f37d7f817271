"""docs/gallery.md is what the registry gives, and its figures are those of blocks that are built."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import lmmblocks as lb
from lmmblocks import registry

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("write_gallery", DOCS / "write_gallery.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_the_page_is_what_the_script_writes(gallery: ModuleType) -> None:
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == gallery.page(), "run: python docs/write_gallery.py"


def test_every_registered_block_has_a_line(gallery: ModuleType) -> None:
    page = gallery.page()
    kinds = ("encoder", "projector", "reducer", "hook", "decoder", "template")
    assert not [name for kind in kinds for name in registry.built_in(kind) if f"`{name}`" not in page]


def test_rows_and_parameters_are_those_of_a_model_that_runs(gallery: ModuleType) -> None:
    """The line of one projector, recomputed: rows that come out of a real image, parameters counted one by one."""
    model = lb.build("llava15-tiny", projector="pixel_shuffle", weights="random")
    rows, counts = model.encode(torch.zeros(1, 3, 112, 112))
    made = gallery._made("projector", "pixel_shuffle", {}, model.encoder.spec, model.decoder.dim)
    assert gallery._rows(made.out_grid, gallery._grid(model.encoder.spec)) == f"{rows.shape[0]} (4x4)" and counts == (16,)
    assert gallery._count(made) == gallery._count(model.projector)
    assert gallery._count(torch.nn.Linear(1000, 1500)) == "1.50 M" and gallery._count(torch.nn.Linear(2, 3)) == "9"


def test_rows_of_tiles_are_those_counted_by_hand(gallery: ModuleType) -> None:
    page = gallery.page()
    overview, square = 24 * 24, 48 * (48 + 1)  # four tiles, a learned row at the end of each line
    assert f"| 672 x 672 px | {overview + square} |" in page
    wide = 18 * (72 + 1)  # 2000 x 500 px in three tiles is 1008 x 252 px: 72 x 18 patches, the padding left out
    assert f"| 2000 x 500 px | {overview + wide} |" in page
