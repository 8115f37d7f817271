"""``lmmblocks data check FILE --images DIR``: find what is wrong with a data file before any training.

Exit codes: 0 fit for training, 1 problems found, 2 the check itself could not run (missing file or folder, wrong option).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from ..data.check import check_file
from ..data.problems import PROBLEM_KINDS
from ..data.sample_reader import Reading, sample_reader
from ..spec import Sample
from .options import add_reader


def add_cli(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``check`` command to the subparsers of ``lmmblocks data``, and return its parser."""
    parser = subparsers.add_parser(
        "check",
        help="find what is wrong with a data file before training",
        description="Check every record and decode every image of a LLaVA JSON file; nothing is changed.",
        epilog="exit codes: 0 fit for training, 1 problems found, 2 the check could not run",
    )
    parser.add_argument("file", metavar="FILE", help="list of records (.json), or one per line (.jsonl)")
    parser.add_argument("--images", metavar="DIR", help="folder the image paths are relative to (default: that of FILE)")
    parser.add_argument(
        "--questions",
        action="store_true",
        help="the file is for lmmblocks eval: one question and its answer a record",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="report samples longer than this")
    add_reader(parser)
    parser.add_argument(
        "--limit",
        type=int,
        default=5,
        metavar="N",
        help="offenders listed per problem (default: %(default)s)",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="CODE",
        help=f"report this problem as a note; may be repeated; codes: {', '.join(PROBLEM_KINDS)}",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run ``lmmblocks data check`` and return its exit code, 0 or 1.

    Raises:
        LmmError: the check can't run.
    """
    report = check_file(
        args.file,
        args.images if args.images is not None else os.path.dirname(args.file) or ".",
        max_tokens=args.max_tokens,
        read=_reader(args),
        limit=args.limit,
        allow=args.allow,
        questions=args.questions,
        progress=_show_progress if sys.stderr.isatty() else None,
    )
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.render())
    return 0 if report.ok else 1


def _reader(args: argparse.Namespace) -> Callable[[Sample], Reading] | None:
    """What reads the records, if it was said how."""
    if args.tokenizer is None and args.template is None:
        return None
    return sample_reader(args.tokenizer, template=args.template, image_rows=args.image_rows)


def _show_progress(done: int, total: int) -> None:
    print(f"\rimages {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
