"""The sanitizer step: its calls are right, its output is understood, and where it can't run it says so."""

import pytest
import torch

from benchmarks.gpu.record import accused
from benchmarks.gpu.report import line_of
from benchmarks.gpu.sanitize import TOOLS, Outcome, find_tool, outcomes_as_fields, outcomes_of, sanitize
from benchmarks.gpu.sanitized_calls import CALLS, TOLERANCE, differences

HEAD = ["========= COMPUTE-SANITIZER"]
RACE = [
    "========= Error: Race reported between Write access at attention_decode_kernel+0x10",
    "=========     and Read access [3 hazards]",
    "=========",
]


def _said(*between, summary="========= ERROR SUMMARY: 0 errors", ended=4):
    """The output of a tool: what it says while each kernel runs; only the first so many kernels end."""
    lines = list(HEAD)
    for index, kernel in enumerate(CALLS):
        lines += [f"begin: {kernel}", *(between[index] if index < len(between) else []), *([f"done: {kernel}"] if index < ended else [])]
    return [*lines, *([summary] if summary else [])]


@pytest.mark.parametrize("kernel", CALLS)
def test_the_calls_give_what_the_reference_gives(cuda_emulation, kernel):
    found = list(differences(CALLS[kernel], kernel, torch.device("cpu")))
    assert found and max(found) < TOLERANCE / 2, found


def test_a_wrong_result_is_seen(cuda_emulation):
    calls = lambda device, backend: iter([[torch.full((4,), 1.0 + (backend == "cuda"))]])  # noqa: E731
    assert list(differences(calls, "splice.cuda", torch.device("cpu"))) == [1.0]


def test_silence_is_ok():
    assert outcomes_of("memcheck", _said()) == [Outcome("memcheck", kernel) for kernel in CALLS]
    assert outcomes_of("racecheck", _said(summary="========= RACECHECK SUMMARY: 0 hazards displayed"))[0].text == "ok"


def test_a_complaint_is_that_kernels_between_whose_words_it_stands():
    said = _said([], [], RACE, summary="========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)")
    texts = {outcome.kernel: outcome.text for outcome in outcomes_of("racecheck", said)}
    assert [kernel for kernel, text in texts.items() if text != "ok"] == ["attention.cuda_decode"]
    assert "Race reported between Write access at attention_decode_kernel" in texts["attention.cuda_decode"]


def test_a_wrong_result_is_a_complaint_too():
    found = outcomes_of("initcheck", _said(["wrong: result 2 is nan of the largest value from the reference's"]))
    assert "result 2 is nan" in found[0].problem and not found[1].problem


def test_errors_that_are_only_counted_are_held_against_all():
    found = outcomes_of("memcheck", _said(summary="========= ERROR SUMMARY: 2 errors"))
    assert all("2 complaints" in outcome.problem for outcome in found)


def test_what_did_not_end_is_not_ok():
    """The third kernel's crash takes the process with it; a tool that refuses the device says why before any kernel."""
    said = _said([], [], ["========= Invalid __global__ write of size 4 bytes"], summary="========= ERROR SUMMARY: 1 error", ended=2)
    first, second, third, fourth = outcomes_of("memcheck", said)
    assert first.text == second.text == "ok" and "Invalid __global__ write" in third.problem and fourth.text.startswith("not run: ")
    refused = outcomes_of("memcheck", [*HEAD, "========= Error: Device not supported. Please refer to the documentation"])
    assert all(outcome.text.startswith("not run: Error: Device not supported") for outcome in refused)


def test_tools_run_side_by_side_and_one_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    lines = "\n".join(f"echo '{line}'" for line in _said())
    tool.write_text(f"#!/bin/sh\n[ $2 = initcheck ] && exec sleep 60\n{lines}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_tool() == str(tool)
    found = sanitize(str(tool), seconds=2)
    texts = {outcome.tool: outcome.text for outcome in found}
    assert texts == {"memcheck": "ok", "racecheck": "ok", "initcheck": "not run: it took longer than 2 s"}
    assert len(found) == len(TOOLS) * len(CALLS)


def test_outcomes_are_printed_and_accuse():
    said = outcomes_as_fields([Outcome("memcheck", "splice.cuda"), Outcome("racecheck", "splice.cuda", problem="1 complaints")])
    event = {"event": "sanitized", "outcomes": said}
    assert [line.split() for line in line_of(event).splitlines()] == [
        ["memcheck", "splice.cuda", "ok"],
        ["racecheck", "splice.cuda", "1", "complaints"],
    ]
    assert accused([event]) == {"splice.cuda"} and not accused([{"event": "sanitized", "outcomes": said[:1]}])
