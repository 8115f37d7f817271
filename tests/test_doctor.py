"""``lmmblocks doctor``: says what each op would run and why not what is faster, on any machine, in seconds."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lmmblocks.kernels.verified import Verification

from lmmblocks.cli import commands as cli
from lmmblocks.cli import machine as doctor
from lmmblocks.cli.doctor import reasons_of_the_machine, text
from lmmblocks.cli.machine import Choice, examine
from lmmblocks.ops import cuda_gate
from lmmblocks.ops.backend import backend
from lmmblocks.ops.dispatch import ENVIRONMENT, consider, ladders, select
from lmmblocks.ops.example_calls import Examples
from lmmblocks.ops.ladders import LADDERS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def report(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    return examine()


def test_every_op_has_an_example_that_can_be_made(report):
    own = [choice for choice in report.choices if choice.op in LADDERS]  # experimental ops may be imported, and have no example
    assert {choice.op for choice in own} == set(LADDERS)
    without = {choice.call: choice.problem for choice in own if choice.problem}
    assert not without, "add a call to lmmblocks/ops/example_calls.py"
    calls = Examples("cpu").calls
    for choice in own:
        assert consider(calls[choice.call]).op == choice.op
        assert choice.ladder == ladders()[choice.op]
        assert choice.taken in choice.ladder and choice.taken not in choice.refused


def test_considering_a_call_says_what_auto_takes_and_runs_nothing():
    before = backend.explain()
    x, weight = torch.ones(2, 8), torch.ones(8)
    found = consider(lambda: doctor.Examples("cpu").calls["rms_norm"]())
    assert found.op == "rms_norm" and dict(found.verdicts)["torch"].startswith("rounds once")
    assert backend.explain() == before and backend.chosen("rms_norm") == "auto"
    assert select("rms_norm", x, weight, 1e-5).name == "torch"


def test_examples_are_calls_that_run_where_they_are_small(monkeypatch):
    """The same calls, made small, give results: their arguments are those of the ops."""
    from lmmblocks.ops import example_calls

    small = {"LENGTHS": (3, 2), "ROWS": 5, "DIM": 8, "FFN": 8, "VOCABULARY": 16, "TOWER": 8, "HEADS": 4, "KV_HEADS": 2, "HEAD": 8}
    for name, value in small.items():
        monkeypatch.setattr(example_calls, name, value)
    for label, call in Examples("cpu", torch.float32).calls.items():
        assert call() is not None, label


@pytest.mark.parametrize("width", [80, 100, 120])
def test_text_keeps_to_its_width_and_names_every_reason(report, width):
    shown = text(report, width)
    assert max(map(len, shown.splitlines())) <= width
    flat = " ".join(shown.split())
    for choice in report.choices:
        assert f"{choice.call}: {choice.taken or 'unknown'}" in flat
        for name in choice.ladder[: choice.ladder.index(choice.taken)] if choice.taken else ():
            assert name in flat and choice.refused[name] in flat
    assert f"torch {torch.__version__}" in flat and "flash_attn not installed" in flat


def test_a_reason_of_the_machine_is_said_once(report):
    """Whatever the op: no device, no extension. Reasons of a call stand where they belong."""
    shown = " ".join(text(report, 120).split())
    shared = reasons_of_the_machine(report.choices)
    assert shared or torch.cuda.is_available()
    for names, reason in shared:
        given = {name for choice in report.choices for name, each in choice.refused.items() if each == reason}
        assert set(names) == given and shown.count(f"{', '.join(names)}: {reason}") == 1
        assert f": {reason}" not in shown.replace(f"{', '.join(names)}: {reason}", "")
    made = [Choice("a", "a", ("x", "y"), "auto", "y", {"x": "no device"}), Choice("b", "b", ("x", "y"), "auto", "y", {"x": "no device"})]
    assert reasons_of_the_machine(made) == [(["x"], "no device")]
    assert reasons_of_the_machine([*made, Choice("c", "c", ("x",), "auto", "x")]) == []
    assert reasons_of_the_machine(made[:1]) == []


@pytest.mark.parametrize("columns", [80, 120])
def test_one_op_is_told_with_every_implementation_and_its_reason(report, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for op in dict.fromkeys(choice.op for choice in report.choices if choice.taken):
        assert cli.main(["doctor", op]) == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= columns
        flat = " ".join(shown.split())
        assert f"{op}, fastest first: {' > '.join(ladders()[op])}" in flat
        for choice in (each for each in report.choices if each.op == op):
            assert f"{choice.call}: {choice.taken}" in flat and f"{choice.taken} auto takes it" in flat
            assert all(f"{name} {reason}" in flat for name, reason in choice.refused.items())


def test_an_unknown_op_gets_the_closest_and_what_is_forced_is_told(capsys, monkeypatch):
    assert cli.main(["doctor", "atention"]) == 2
    assert "there is no op 'atention'; did you mean 'attention'?; ops: " in capsys.readouterr().err
    monkeypatch.setenv(ENVIRONMENT, "rms_norm=torch")
    assert cli.main(["doctor", "rms_norm"]) == 0
    assert ", but set to torch" in capsys.readouterr().out
    assert cli.main(["doctor", "rms_norm", "--json"]) == 0
    assert [each["op"] for each in json.loads(capsys.readouterr().out)] == ["rms_norm"]


def test_json_holds_everything(capsys, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "rms_norm=reference")
    assert cli.main(["doctor", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown) == {"versions", "devices", "extension", "device", "environment", "problems", "verified", "choices"}
    norm = next(choice for choice in shown["choices"] if choice["op"] == "rms_norm")
    assert norm["set_to"] == "reference" and shown["environment"] == "rms_norm=reference" and not shown["problems"]


def test_what_is_set_up_wrongly_is_reported_not_raised(capsys, monkeypatch):
    def damaged():
        raise ValueError("verified.json: expected schema 1")

    monkeypatch.setenv(ENVIRONMENT, "rms_norm=refrence")
    monkeypatch.setattr(doctor, "load", damaged)
    assert cli.main(["doctor"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "did you mean 'reference'" in shown and "verified.json: expected schema 1" in shown


def test_a_broken_op_does_not_hide_the_others(monkeypatch):
    monkeypatch.setattr(doctor, "ladders", lambda: ladders() | {"new_op": ("triton", "reference")})
    monkeypatch.setattr(doctor.backend, "chosen", staticmethod(lambda op: "auto"))
    monkeypatch.setattr("lmmblocks.ops.example_calls.quick_gelu", lambda x: 1 / 0)
    found = {choice.op: choice for choice in examine().choices}
    assert found["quick_gelu"].taken is None and "ZeroDivisionError" in found["quick_gelu"].problem
    assert found["new_op"] == Choice("new_op", "new_op", ("triton", "reference"), "auto", None, {}, "there is no example call")
    assert found["swiglu"].taken is not None


def test_proven_kernels_are_listed_with_their_device(monkeypatch):
    run = Verification("rms_norm.triton", "NVIDIA A100-SXM4-80GB", (8, 0), datetime.date(2026, 1, 31), {"torch": "2.11.0"}, 1.5e-3)
    monkeypatch.setattr(doctor, "load", lambda: (run,))
    shown = " ".join(text(examine(), 100).split())
    assert "rms_norm.triton 8.0 (NVIDIA A100-SXM4-80GB, 2026-01-31, largest error 1.5e-03)" in shown


@pytest.mark.parametrize("recorded", ["LMMBLOCKS_SKIP_CUDA was set\n", "nvcc failed on csrc/a.cu: a.cu(1): error: no\n", "\n", None])
def test_an_extension_that_is_not_built_is_told_with_the_reason_of_the_last_build(monkeypatch, tmp_path, recorded):
    def missing():
        raise ModuleNotFoundError("none", name=cuda_gate.NAME)

    if recorded:
        (tmp_path / cuda_gate.REASON).write_text(recorded)
    monkeypatch.delenv(cuda_gate.EMULATION, raising=False)
    monkeypatch.setattr(cuda_gate, "_loaded", missing)
    monkeypatch.setattr(cuda_gate, "PACKAGE", tmp_path)
    cuda_gate.extension_problem.cache_clear()
    try:
        shown = " ".join(text(examine(), 100).split())
    finally:
        cuda_gate.extension_problem.cache_clear()
    reason = (recorded or "").strip()
    told = f"was not built when lmmblocks was installed: {reason}. Change that" if reason else "is not built: install lmmblocks from its sources"
    assert f"lmmblocks._C lmmblocks._C {told}" in shown
    assert f"cuda_decode: lmmblocks._C {told}" in shown or f"cuda: lmmblocks._C {told}" in shown  # the refusal of every op


def processor_seconds(code):
    """What a Python process takes, its children included, and what it printed to stderr."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    after = os.times()
    assert done.returncode == 0, done.stderr
    return after.children_user + after.children_system - before.children_user - before.children_system, done.stderr.strip()


def test_the_command_costs_little_beside_importing_torch_and_loads_nothing_optional():
    code = "import sys; from lmmblocks.cli import main; main(['doctor'])"
    code += "; print([name for name in ('triton', 'transformers') if name in sys.modules], file=sys.stderr)"
    (seconds, loaded), (torch_seconds, _) = processor_seconds(code), processor_seconds("import torch")
    assert loaded == "[]"
    assert seconds < 3 * torch_seconds, f"{seconds:.1f} s beside {torch_seconds:.1f} s"
