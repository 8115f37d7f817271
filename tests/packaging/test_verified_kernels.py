"""The record of kernels proven on GPUs: exact answers, and a damaged record is refused with the place named."""

from __future__ import annotations

import datetime
import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from lmmblocks.kernels import verified

RUN = {
    "kernel": "rms_norm.triton",
    "device": "NVIDIA A100-SXM4-80GB",
    "capability": [8, 0],
    "date": "2026-01-31",
    "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    "max_error": 0.0015,
}


def write(folder: Path, runs: list[Any], schema: int = 1) -> Path:
    path = folder / "verified.json"
    path.write_text(json.dumps({"schema": schema, "runs": runs}))
    return path


def test_the_shipped_record_is_readable_and_names_only_kernels_that_exist() -> None:
    for run in verified.load():
        op, _ = run.kernel.split(".")
        assert list(Path(verified.__file__).parent.glob(f"*{op}*")), f"{run.kernel} is verified, but kernels/ holds no {op}"


def test_an_entry_is_read_with_types(tmp_path: Path) -> None:
    (run,) = verified.load(write(tmp_path, [RUN]))
    assert (run.kernel, run.capability, run.max_error) == ("rms_norm.triton", (8, 0), 0.0015)
    assert run.date == datetime.date(2026, 1, 31)
    assert run.versions == {"torch": "2.11.0", "triton": "3.6.0"}


def test_a_kernel_is_verified_for_exactly_the_capability_it_ran_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = verified.load(write(tmp_path, [RUN]))
    monkeypatch.setattr(verified, "load", lambda: runs)
    assert verified.is_verified("rms_norm.triton", (8, 0))
    assert not verified.is_verified("rms_norm.triton", (9, 0))
    assert not verified.is_verified("rms_norm.cuda", (8, 0))
    assert not verified.is_verified("rms_norm", (8, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "rms_norm"}, "kernel must be '<op>.<implementation>', found 'rms_norm'"),
        ({"capability": "8.0"}, "capability must be [major, minor], found '8.0'"),
        ({"capability": [8]}, "capability must be [major, minor], found [8]"),
        ({"versions": {}}, "versions must name at least torch"),
        ({"date": "yesterday"}, "date must be YYYY-MM-DD"),
        ({"max_error": None}, "max_error a number"),
        ({"gpu": "A100"}, "expected exactly the fields"),
    ],
)
def test_a_bad_entry_is_refused_by_its_place_and_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        verified.load(write(tmp_path, [RUN, {**RUN, **change}]))
    assert "verified.json: run 1: " in str(caught.value) and message in str(caught.value)


def test_a_record_of_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected {'schema': 1"):
        verified.load(write(tmp_path, [], schema=2))


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(verified) == (0, 1)
