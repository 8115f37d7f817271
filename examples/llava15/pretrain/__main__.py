"""`python -m examples.llava15.pretrain tokenizer|vision|language`: make the tiny preset's pretrained parts.

In this order: `language` needs the tokenizer. Each run is given its minutes, writes checkpoints to --out,
and ships what it has to --export every ten minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmmblocks.cli import exit_code

if TYPE_CHECKING:
    from .timed import TimedRun

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three steps.

    Args:
        arguments: the command line without the program's name; None takes sys.argv.

    Returns:
        The exit code: 0, or 2 with one line on stderr for bad input.
    """
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _STEPS[options.part](options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.llava15.pretrain", description=__doc__)
    parser.add_argument("part", choices=sorted(_STEPS))
    parser.add_argument(
        "--minutes",
        type=float,
        default=65,
        help="training time, resumed parts included (default %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the log, or for the tokenizer")
    parser.add_argument("--export", type=Path, help="folder of the weights (default: those of the repository)")
    parser.add_argument("--tokenizer", type=Path, help="the tokenizer's folder (default: --out of the tokenizer beside --out)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--start", type=Path, help="language: folder of a decoder to go on from (default: random)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    return parser


def _tokenizer(options: argparse.Namespace) -> None:
    from .tokenizer import corpus, save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(corpus(20000, options.seed))
    save_tokenizer(tokenizer, options.out)
    print(f"{tokenizer.get_vocab_size()} tokens -> {options.out}")


def _vision(options: argparse.Namespace) -> None:
    from .contrastive import ContrastiveTask

    run = _timed_run(options, "vision", lr=1.5e-3, muon=True)
    run.train(ContrastiveTask(seed=options.seed), options.resume)


def _language(options: argparse.Namespace) -> None:
    from .language import LanguageTask

    run = _timed_run(options, "language", lr=2e-3, muon=False)
    tokenizer = options.tokenizer or options.out.parent / "tokenizer"
    run.train(LanguageTask(tokenizer, seed=options.seed, start=options.start), options.resume)


def _timed_run(options: argparse.Namespace, name: str, lr: float, muon: bool) -> TimedRun:
    import torch

    from .timed import TimedRun

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    export_to = options.export or WEIGHTS / name
    return TimedRun(options.minutes, options.out, export_to, lr=options.lr or lr, weight_decay=0.05, muon=muon)


_STEPS = {"tokenizer": _tokenizer, "vision": _vision, "language": _language}

if __name__ == "__main__":
    raise SystemExit(main())
