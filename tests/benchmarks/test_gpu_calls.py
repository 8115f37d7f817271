"""A call of the GPU command loses nothing, whatever its processes do: gone through on the CPU, with faults planted and killed at any moment."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="a torch without Triton: its kernels can't be run")

ROOT = Path(__file__).parents[2]
SUITES = ("splice_plan", "layer_norm", "rope")
KERNELS = {"splice_plan.triton", "layer_norm.triton", "rope.triton"}


def _command(out, *more, suites=SUITES):
    return [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(out), "--only", *suites, *more]


def _environment():
    known = {name: value for name, value in os.environ.items() if name != "LMMBLOCKS_CUDA_EMULATION"}
    return {**known, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _called(out, *more, suites=SUITES):
    done = subprocess.run(_command(out, *more, suites=suites), cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def _events(out, *kinds):
    parsed = []
    for line in (out / "journal.jsonl").read_text().splitlines():
        try:
            parsed.append(json.loads(line))
        except ValueError:
            continue  # cut off by a kill
    return [event for event in parsed if event["event"] in kinds]


def _verified(out):
    return {run["kernel"]: run["date"] for run in json.loads((out / "verified.json").read_text())["runs"]}


def _with_old_entries(out, kernels):
    """A record of an earlier day, of the rehearsal's device."""
    out.mkdir(parents=True)
    about = {"device": "old", "capability": [0, 0], "date": "2020-01-01", "versions": {"torch": "2.10"}, "max_error": 0.1}
    (out / "verified.json").write_text(json.dumps({"schema": 1, "runs": [{"kernel": kernel, **about} for kernel in kernels]}))
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed call: its folder, what it printed, and its verdicts."""
    out = tmp_path_factory.mktemp("whole") / "out"
    code, said = _called(out)
    assert code == 0, said
    return out, said


def _items(out):
    return {(event["step"], event["item"]) for event in _events(out, "verdict", "row", "instruction", "built", "ceilings", "profile")}


def test_a_call_says_first_what_it_will_do_and_then_does_all_of_it_in_that_order(whole):
    out, said = whole
    plan = said[: said.index(" ok ")]
    assert "seconds" in plan and "triton: rope" in plan and "no time" not in said and "nothing is missing" in said
    ended = [event["step"] for event in _events(out, "end")]
    order = [ended.index(name) for name in ("ptx", "triton: rope", "ceilings", "times: rope", "more: rope") if name in ended]
    assert order == sorted(order) and len(order) >= 4
    assert set(_verified(out)) == KERNELS
    assert (out / "log.txt").read_text().strip() in said and "predicted" in (out / "report.txt").read_text()


def test_a_rehearsal_tells_of_no_target_as_if_it_had_been_measured(whole):
    out, said = whole
    assert _events(out, "row"), "the stubs' times are in the journal"
    for text in (said, (out / "report.txt").read_text()):
        assert "which need a GPU: a rehearsal measures nothing" in text
        assert "reached" not in text and "MISSED" not in text
        assert not any(re.search(r" to [\d.]+ ms +[\d.]+ ms", line) for line in text.splitlines()), "a prediction beside a stub's time"


def test_a_second_call_makes_nothing_again(whole, tmp_path):
    out, _ = whole
    before, again = _items(out), tmp_path / "again"
    code, said = _called(again, "--resume", str(out))
    assert code == 0 and "done by an earlier call" in said
    assert _items(again) == before and len(_events(again, "verdict")) == len(_events(out, "verdict")) and len(_events(again, "call")) == 2


@pytest.mark.parametrize("moment", [2.0, 5.0, 9.0, 14.0])
def test_killed_at_any_moment_nothing_is_lost_and_the_next_call_goes_on(whole, tmp_path, moment):
    out = _with_old_entries(tmp_path / "out", ["layer_norm.triton", "swiglu.triton"])
    process = subprocess.Popen(_command(out), cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(moment)
    process.kill()
    process.wait()
    time.sleep(0.5)
    made = _items(out) if (out / "journal.jsonl").is_file() else set()
    if (out / "journal.jsonl").is_file():
        size = (out / "journal.jsonl").stat().st_size
        time.sleep(1.0)
        assert (out / "journal.jsonl").stat().st_size == size, "a process outlived its parent"
    assert {"layer_norm.triton", "swiglu.triton"} <= set(_verified(out))
    code, said = _called(out)
    assert code == 0, said
    assert made <= _items(out) == _items(whole[0])
    assert len(_events(out, "verdict")) == len(_events(whole[0], "verdict")), "a check was made twice"
    assert set(_verified(out)) == {*KERNELS, "swiglu.triton"} and _verified(out)["swiglu.triton"] == "2020-01-01"


def test_a_line_that_was_cut_off_costs_only_itself(whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    lines = (whole[0] / "journal.jsonl").read_text().splitlines(keepends=True)
    last = max(index for index, line in enumerate(lines) if '"event": "verdict"' in line)
    (out / "journal.jsonl").write_text("".join(lines[:last]) + lines[last][:40])
    code, said = _called(out)
    assert code == 0 and _items(out) == _items(whole[0]), said


def test_a_sticky_fault_costs_the_check_that_made_it(whole, tmp_path):
    out = _with_old_entries(tmp_path / "out", ["layer_norm.triton", "rope.triton", "swiglu.triton"])
    planted = sorted(item for step, item in _items(whole[0]) if step == "triton: layer_norm")[0]
    code, said = _called(out, "--plant", "sticky", planted)
    problems = {event["item"]: event["problem"] for event in _events(out, "verdict") if event["problem"]}
    assert code == 1 and list(problems) == [planted] and "illegal memory access" in problems[planted], said
    assert _items(out) == _items(whole[0]), "another check or time was lost"
    assert set(_verified(out)) == {"splice_plan.triton", "rope.triton", "swiglu.triton"}
    assert "the device was lost" in said


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_a_process_that_dies_or_hangs_costs_the_item_it_was_at(whole, tmp_path, monkeypatch, fault):
    out = _with_old_entries(tmp_path / "out", ["rope.triton", "swiglu.triton"])
    planted = sorted(item for step, item in _items(whole[0]) if step == "triton: rope")[0]
    code, said = _called(out, "--plant", fault, planted, "--silence-s", "12")
    problems = {event["item"]: event["problem"] for event in _events(out, "verdict") if event["problem"]}
    assert code == 1 and list(problems) == [planted] and ("hung" in problems[planted] or "code 9" in problems[planted]), said
    assert _items(out) == _items(whole[0])
    assert set(_verified(out)) == {"splice_plan.triton", "layer_norm.triton", "swiglu.triton"}


def test_a_hung_time_costs_its_row(whole, tmp_path):
    planted = next(item for step, item in sorted(_items(whole[0])) if step == "more: layer_norm")
    out = tmp_path / "out"
    code, said = _called(out, "--resume", str(_without_times(whole[0], tmp_path / "before")), "--plant", "hang", planted, "--silence-s", "3")
    rows = {event["item"]: event.get("note", "") for event in _events(out, "row") if event["step"] == "more: layer_norm"}
    assert code == 0 and "hung" in rows.pop(planted) and rows and not any(rows.values()), said


def _without_times(out, target):
    target.mkdir()
    lines = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    (target / "journal.jsonl").write_text("".join(line for line in lines if '"event": "row"' not in line))
    return target


def test_what_there_is_no_time_for_is_left_to_the_next_call_and_said(tmp_path):
    out = _with_old_entries(tmp_path / "out", ["rope.triton"])
    code, said = _called(out, "--budget-s", "16", suites=("rope",))
    spent = int(re.search(r"^(\d+) s; results are in", said, re.MULTILINE)[1])
    assert code == 0 and spent <= 16, said
    assert "no time" in said or "out of time" in said
    assert "missing:" in said and _verified(out).keys() == {"rope.triton"}, said
    assert not [event for event in _events(out, "verdict") if event["problem"]]


def test_asked_to_end_it_still_reports(tmp_path):
    process = subprocess.Popen(_command(tmp_path), cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if " ptx: done" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(30) == 128 + signal.SIGTERM and "missing:" in rest and (tmp_path / "report.txt").is_file()


def test_results_of_other_sources_are_not_gone_on_with(whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    text = (whole[0] / "journal.jsonl").read_text()
    source = _events(whole[0], "call")[0]["identity"]["source"]
    (out / "journal.jsonl").write_text(text.replace(source, "another"))
    said = _called(out, "--plan")[1]
    assert "done by an earlier call" not in said


def test_a_rehearsal_is_never_recorded(whole):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--record", "--out", str(whole[0])], cwd=ROOT, env=_environment(), capture_output=True, text=True
    )
    assert done.returncode == 2 and "a rehearsal" in done.stdout
