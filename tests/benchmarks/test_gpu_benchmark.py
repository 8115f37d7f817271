"""The GPU benchmark's own honesty: what it calls right, what it records, and what it says it reached."""

import json

import pytest
import torch

pytest.importorskip("triton", reason="a torch without Triton: its kernels can't be run")

from lmmblocks.kernels.verified import load

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.case import Check, Target
from benchmarks.gpu.correctness import verdicts
from benchmarks.gpu.record import Row, write_csv, write_verified
from benchmarks.gpu.report import reached

CPU = torch.device("cpu")
ABOUT = {"device": "NVIDIA Test", "commit": "abc", "date": "2026-01-31", "torch": "2.11.0", "triton": "3.6.0"}


def _check(run, op="rms_norm"):
    return Check(op, "case", lambda device, toy: {"x": torch.randn(8, 8)}, run)


def _verdict(run):
    return next(verdicts(_check(run), CPU, True, (torch.float32,)))


def test_an_exact_kernel_passes():
    assert _verdict(lambda backend, inputs: (inputs["x"] * 2,)).problem == ""


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_wrong_kernel_fails(wrong):
    assert "error" in _verdict(lambda backend, inputs: (inputs["x"] + (wrong if backend == "triton" else 0),)).problem


def test_a_kernel_that_changes_its_mind_fails():
    calls = iter(range(99))
    problem = _verdict(lambda backend, inputs: (inputs["x"] + (1e-7 * next(calls) if backend == "triton" else 0),)).problem
    assert "not the same bits" in problem


def test_a_kernel_that_crashes_is_a_failure_and_not_the_end():
    def run(backend, inputs):
        raise RuntimeError("out of resource\nsecond line")

    assert _verdict(run).problem == "RuntimeError: out of resource"


def test_only_kernels_without_a_failure_are_recorded(tmp_path):
    path = tmp_path / "verified.json"
    old = {"kernel": "rope.triton", "device": "NVIDIA Test", "capability": [9, 0], "date": "2026-01-01"}
    old |= {"versions": {"torch": "2.10"}, "max_error": 0.1}
    path.write_text(json.dumps({"schema": 1, "runs": [old]}))
    good = list(verdicts(_check(lambda backend, inputs: (inputs["x"],)), CPU, True, (torch.float32,)))
    bad = list(verdicts(_check(lambda backend, inputs: (inputs["x"] + (backend == "triton"),), "rope"), CPU, True, (torch.float32,)))
    assert write_verified(good + bad, ABOUT, (9, 0), path) == ["rms_norm.triton"]
    load.cache_clear()
    assert [(run.kernel, run.capability) for run in load(path)] == [("rms_norm.triton", (9, 0))]


def test_targets_say_what_was_reached_and_nothing_of_what_was_not_measured():
    rows = [
        Row("rms_norm", "big", "fwd", "lmmblocks triton", 2.0, 1.9, 2.1, host_us=12.0, peak_mb=50.0, share_of_copy=0.9),
        Row("rms_norm", "big", "fwd", "peer", 3.0, 2.9, 3.1, peak_mb=40.0),
        Row("rms_norm", "small", "fwd", "lmmblocks triton", note="not measured: out of time"),
    ]
    assert reached(Target("rms_norm", "fwd", "", "peer", 1.5), rows) == [("big", 1.5), ("small", None)]
    assert reached(Target("rms_norm", "fwd", "big", "copy", 0.8), rows) == [("big", 0.9)]
    assert reached(Target("rms_norm", "fwd", "big", "absent", 1.0), rows) == [("big", None)]
    assert reached(Target("rms_norm", "fwd", "big", "peer", 1.0, "peak_mb"), rows) == [("big", 0.8)]
    assert reached(Target("rms_norm", "fwd", "big", "limit", 20.0, "host_us"), rows) == [("big", 12.0)]


def test_csv_says_where_and_when(tmp_path):
    write_csv(tmp_path / "gpu.csv", [Row("rms_norm", "big", "fwd", "peer", 3.0, 2.9, 3.1)], ABOUT)
    head, row = (tmp_path / "gpu.csv").read_text().splitlines()
    cells = dict(zip(head.split(","), row.split(",")))
    assert (cells["device"], cells["date"], cells["versions"], cells["peak_mb"]) == ("NVIDIA Test", "2026-01-31", "torch=2.11.0 triton=3.6.0", "")


def test_command_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2 and "--toy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--toy", "--only", "nothing"])
    assert "choose from" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU only where there is none")
def test_every_suite_passes_its_small_checks_in_the_interpreter(capsys):
    assert main(["--toy"]) == 0, capsys.readouterr().out
