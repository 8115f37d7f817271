"""The three walks of docs/life_of_a_batch.md are so: each function is called, and first called in the order of the page."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks import ops
from lmmblocks.data.records import load_records
from lmmblocks.ops.triton_gate import triton_installed
from lmmblocks.train import Stage, train

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "life_of_a_batch.md").read_text(encoding="utf-8")
STEP = re.compile(r"^\| `([\w/]+\.py):([\w.]+)` \|", re.MULTILINE)


def steps_of(heading: str) -> list[tuple[str, str]]:
    """Return the functions that a section lists, each with its file."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    steps = STEP.findall(section)
    return steps if sys.version_info >= (3, 11) else [(path, name.rpartition(".")[2]) for path, name in steps]


def called(walk: Callable[[], Any]) -> list[tuple[str, str]]:
    """Run something and return the checkout's functions that it called, in the order of their first calls."""
    order: dict[tuple[str, str], None] = {}

    def note(frame: Any, event: str, arg: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(f"{ROOT}/"):
            order.setdefault((path[len(str(ROOT)) + 1 :], name_of(frame)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        walk()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return list(order)


def name_of(frame: Any) -> str:
    """Return the qualified name of a function; Python 3.10 knows its own only."""
    return getattr(frame.f_code, "co_qualname", frame.f_code.co_name)


def assert_walked(heading: str, found: list[tuple[str, str]]) -> None:
    listed = steps_of(heading)
    places = {step: place for place, step in enumerate(found)}
    assert len(listed) > 10 and not [step for step in listed if step not in places], "these aren't called"
    order = [places[step] for step in listed]
    late = [listed[at + 1] for at, (this, next_) in enumerate(zip(order, order[1:])) if next_ < this]
    assert not late, "these are called before the line above them"


@pytest.fixture
def model(make_tiny_model):
    return make_tiny_model()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cat.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


def test_pixels_to_rows(model, picture):
    turns = [{"role": "user", "content": "<image>\nWhat color?"}, {"role": "assistant", "content": "Red"}]
    sample = lb.Sample(turns, [str(picture)])
    assert_walked("From pixels to rows", called(lambda: model.loss(lb.collate([sample], model))))


def test_a_conversation_to_the_loss(model, picture, tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat color?"}, {"from": "gpt", "value": "Red"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": n, "image": picture.name, "conversations": turns} for n in range(4)]))
    stage = Stage(name="walk", train={"projector": 1e-3}, batch_size=2, micro_batch_samples=1)
    found = called(lambda: train(model, stage, load_records(tmp_path / "data.json", tmp_path), tmp_path / "out"))
    assert_walked("From a conversation to the loss", found)


@pytest.mark.skipif(not triton_installed(), reason="Triton is not installed")
def test_a_query_to_the_kernel():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (torch.randn(5, heads, 32, device=device) for heads in (4, 2, 2))
    segments = lb.Segments.of([3, 2], device=device)
    found = called(lambda: ops.attention(q, k, v, segments, backend="triton"))
    if device == "cuda":  # compiled, not interpreted: what runs on the device isn't called here
        found += [step for step in steps_of("From a query to the kernel")[-2:]]
    assert_walked("From a query to the kernel", found)
    automatic = called(lambda: ops.attention(q, k, v, segments))
    assert {("lmmblocks/ops/dispatch.py", "_walk"), ("lmmblocks/ops/dispatch.py", "_verdict")} <= set(automatic)
