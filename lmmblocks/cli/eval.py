"""``lmmblocks eval``: ask a model the questions of a LLaVA-format file and score its answers."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Literal

from ..spec import LmmError
from .options import add_device, add_template, device_of, require_tokenizer


def add_cli(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", help="LLaVA-format JSON, one question and its answer a record")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder the image paths are relative to")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a saved model")
    parser.add_argument("--out", metavar="FILE", help="write answers and scores as JSON")
    parser.add_argument("--batch-size", type=int, default=32, help="questions answered side by side (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default: %(default)s)")
    add_template(parser)
    parser.add_argument("--skip-bad", action="store_true", help="leave out records that can't be used, and say how many")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Answer, score, print a table.

    Raises:
        LmmError: a model, a file or an argument that can't be used.
    """
    if args.batch_size < 1 or args.max_new_tokens < 1:
        raise LmmError(f"--batch-size {args.batch_size} and --max-new-tokens {args.max_new_tokens} must be at least 1")
    if not os.path.isdir(args.model):
        raise LmmError(f"no model folder {args.model!r}: give the folder that model.save() or the training wrote")
    out = None if args.out is None else Path(args.out)
    if out is not None and not out.absolute().parent.is_dir():
        raise LmmError(f"--out {args.out!r}: the folder {str(out.absolute().parent)!r} does not exist: create it first")
    if out is not None and out.is_dir():
        raise LmmError(f"--out {args.out!r} is a folder, expected a file to write to: give the name of a file, such as {str(out / 'eval.json')!r}")
    from .. import load
    from ..data.records import load_records
    from ..eval import evaluate, read_questions, summarise

    policy: Literal["skip", "error"] = "skip" if args.skip_bad else "error"
    questions = read_questions(load_records(args.file, args.images, policy=policy, images="decode", way_out="--skip-bad"))
    model = load(args.model, template=args.template, device=device_of(args.device))
    require_tokenizer(model, args.model, "copy the language model's tokenizer files into its folder")
    results = evaluate(model, questions, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens)
    summary = summarise(results)
    print(table(summary))
    if out is not None:
        answers = [{"id": r.question.id, "task": r.question.task, "answer": r.answer, "score": r.score} for r in results]
        out.write_text(json.dumps({**summary, "answers": answers}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(summary: dict[str, Any]) -> str:
    """Return the scores per task as aligned text.

    >>> print(table({"tasks": {"color": {"questions": 2, "score": 0.5, "majority": 1.0}}}))
    task      questions   score  majority
    color             2    0.50      1.00
    """
    width = max(8, *(len(task) for task in summary["tasks"]))
    lines = [f"{'task':<{width}}{'questions':>11}{'score':>8}{'majority':>10}"]
    for task, row in sorted(summary["tasks"].items()):
        lines.append(f"{task:<{width}}{row['questions']:>11}{row['score']:>8.2f}{row['majority']:>10.2f}")
    return "\n".join(lines)
