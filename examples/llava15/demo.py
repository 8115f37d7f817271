"""The whole path on one machine: ``python -m examples.llava15.demo --out demo``.

Draws the data, assembles LLaVA-1.5 (tiny) from blocks, trains both stages, saves, loads what was saved, asks held-out questions with and
without the picture, and writes ``results.json`` and ``report.html``. Stages resume where they were interrupted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmmblocks.cli import exit_code
from lmmblocks.spec import LmmError

TARGETS = {"short_answer": 0.85, "blind_short_answer": 0.45, "format": 0.95, "json_parses": 0.95, "minutes": 15.0, "peak_memory_gb": 4.0}
"""What the demo is meant to reach: at least, but at most for the blind score, the minutes and the memory."""

AT_MOST = ("blind_short_answer", "minutes", "peak_memory_gb")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code: 0, or 2 with one line on stderr for bad input."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.llava15.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the run (default %(default)s)")
    parser.add_argument("--captions", type=_positive, default=24000, help="stage 1 captions (default %(default)s)")
    parser.add_argument("--conversations", type=_positive, default=6000, help="stage 2 conversations (default %(default)s)")
    parser.add_argument("--questions", type=_positive, default=800, help="held-out questions (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the data (default %(default)s)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def _run(options: argparse.Namespace) -> None:
    import lmmblocks as lb
    from lmmblocks.data.records import load_records
    from lmmblocks.train.loop import train

    from .configs import llava15_tiny, tiny_stage1, tiny_stage2
    from .environment import describe_environment, peak_memory_gb
    from .report import write_report

    clock, out = _Clock(), options.out
    data = clock.time("draw the data", lambda: _data(options))
    model = clock.time("assemble", lambda: lb.build(llava15_tiny()))
    runs = {}
    for stage, file in ((tiny_stage1(), "pretrain.json"), (tiny_stage2(), "train.json")):
        records = load_records(data / file, data / "images")
        runs[stage.name] = clock.time(stage.name, lambda: train(model, stage, records, out / stage.name))  # noqa: B023
    clock.time("save", lambda: _save(model, out / "model"))
    model = clock.time("load", lambda: lb.load(out / "model"))
    seen, without = clock.time("evaluate", lambda: _evaluate(model, data))
    results = _results(seen, without, runs, clock, options)
    results["environment"] = describe_environment()
    results["measured"]["peak_memory_gb"] = peak_memory_gb()
    results["reached"] = _reached(results["measured"])
    (out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(out / "report.html", results, seen, {name: out / name / "losses.csv" for name in runs})
    print(summary(results))
    print(f"\n{out / 'results.json'}\n{out / 'report.html'}\ntalk to it: lmmblocks chat --model {out / 'model'} --image {_a_picture(seen)}")


class _Clock:
    """Seconds of each step of the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, run: Callable[[], Any]) -> Any:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        value = run()
        self.seconds[name] = time.perf_counter() - start
        return value


def _data(options: argparse.Namespace) -> Path:
    """Draw the data, or use what an earlier run drew; one with other numbers is left alone."""
    from .scenes.__main__ import main as draw

    folder, note = options.out / "data", options.out / "data.json"
    asked = {"captions": options.captions, "conversations": options.conversations, "questions": options.questions, "seed": options.seed}
    if options.out.exists() and not options.out.is_dir():
        raise LmmError(f"--out {options.out} is a file: name a folder")
    if folder.exists() and not note.is_file():
        raise LmmError(f"{folder} exists but no earlier demo wrote it: remove it, or choose another --out")
    drawn = json.loads(note.read_text()) if note.is_file() else asked
    if drawn != asked:
        raise LmmError(f"{options.out} holds a run with {_listed(drawn)}, asked is {_listed(asked)}: choose another --out, or remove it")
    if folder.is_dir():
        return folder
    numbers = ("--pretrain", options.captions, "--train", options.conversations, "--heldout", options.questions, "--seed", options.seed)
    if draw(["--out", str(folder), *map(str, numbers)]):
        raise LmmError(f"the data could not be drawn into {folder}")
    note.write_text(json.dumps(asked) + "\n")
    return folder


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in numbers.items())


def _save(model: Any, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    model.save(folder, format="hf")


def _evaluate(model: Any, data: Path) -> tuple[list[Any], list[Any]]:
    """Ask every held-out question with its picture, and again with the picture greyed out."""
    from lmmblocks.data.records import load_records
    from lmmblocks.eval import blind, evaluate, read_questions

    from .scenes.draw import grey_out

    questions = read_questions(load_records(data / "heldout.json", data / "images"))
    return evaluate(model, questions), evaluate(model, blind([q for q in questions if q.images], grey_out))


def _results(seen: list[Any], without: list[Any], runs: dict[str, Any], clock: _Clock, options: argparse.Namespace) -> dict[str, Any]:
    from lmmblocks.eval import summarise

    summary_seen, summary_blind = summarise(seen), summarise(without)
    for task, row in summary_seen["tasks"].items():
        row["blind"] = summary_blind["tasks"].get(task, {}).get("score")
    return {
        "measured": {
            "short_answer": summary_seen["short_answer"],
            "blind_short_answer": summary_blind["short_answer"],
            "majority_short_answer": summary_seen["short_answer_majority"],
            "format": summary_seen["format"],
            "json_parses": summary_seen["json_parses"],
            "minutes": sum(clock.seconds.values()) / 60,
        },
        "targets": TARGETS,
        "tasks": summary_seen["tasks"],
        "seconds": clock.seconds,
        "stages": {name: _stage_figures(run) for name, run in runs.items()},
        "settings": {
            "captions": options.captions, "conversations": options.conversations, "questions": options.questions, "seed": options.seed,
        },
    }  # fmt: skip


def _stage_figures(run: Any) -> dict[str, Any]:
    return {
        "steps": run.steps,
        "last_loss": run.last_loss,
        "tokens": run.tokens,
        "tokens_per_second": run.tokens_per_second,
        "padding_fraction": run.padding_fraction,
        "data_wait_share": run.data_wait_share,
    }


def _reached(measured: dict[str, Any]) -> dict[str, bool]:
    return {
        name: (measured[name] <= target if name in AT_MOST else measured[name] >= target)
        for name, target in TARGETS.items()
        if measured.get(name) is not None
    }


def _a_picture(seen: list[Any]) -> str:
    return next((str(r.question.images[0]) for r in seen if r.question.images), "X.png")


def summary(results: dict[str, Any]) -> str:
    """Return the results as the text the demo ends with."""
    lines = ["", f"{'task':<14}{'questions':>10}{'score':>8}{'blind':>8}{'majority':>10}"]
    for task, row in sorted(results["tasks"].items()):
        blind_score = "-" if row["blind"] is None else f"{row['blind']:.2f}"
        lines.append(f"{task:<14}{row['questions']:>10}{row['score']:>8.2f}{blind_score:>8}{row['majority']:>10.2f}")
    lines += ["", f"{'measure':<22}{'found':>8}{'target':>10}"]
    for name, reached in results["reached"].items():
        sign = "<=" if name in AT_MOST else ">="
        lines.append(f"{name:<22}{results['measured'][name]:>8.2f}{sign:>5}{TARGETS[name]:>5.2f}  {'reached' if reached else 'MISSED'}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
