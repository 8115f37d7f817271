"""Data files to load and check, each with known faults."""

import json

import numpy as np
import pytest
from PIL import Image


def record(name="r", image="ok.png", question="<image>\nWhat is it?", answer="A cat", **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    fields = {"id": name, "image": image, "conversations": turns, **more}
    return {key: value for key, value in fields.items() if value is not None}


@pytest.fixture
def images(tmp_path):
    """A folder with one sound image, ok.png, 24x16."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(folder / "ok.png")
    return folder


@pytest.fixture
def write(tmp_path):
    """Write records as JSON (or one per line) and return the path."""

    def write(records, name="data.json"):
        path = tmp_path / name
        lines = [json.dumps(entry) for entry in records]
        path.write_text("\n".join(lines) if name.endswith(".jsonl") else json.dumps(records))
        return path

    write.record = record
    return write
