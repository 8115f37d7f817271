"""`python -m examples.llava15.pretrain tokenizer|vision|language`: make the tiny preset's pretrained parts.

In this order: `language` needs the tokenizer. Each run is given its minutes, writes checkpoints to --out,
and ships what it has to --export every ten minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lmmblocks.spec import LmmError

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three steps.

    Args:
        arguments: the command line without the program's name; None takes sys.argv.

    Returns:
        The exit code: 0, or 2 with one line on stderr for bad input.
    """
    options = _parser().parse_args(arguments)
    try:
        _STEPS[options.part](options)
    except (LmmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.llava15.pretrain", description=__doc__)
    parser.add_argument("part", choices=sorted(_STEPS))
    parser.add_argument(
        "--minutes",
        type=float,
        default=65,
        help="training time, resumed parts included (default %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the checkpoint and the log, or for the tokenizer"
    )
    parser.add_argument(
        "--export", type=Path, help="folder of the weights (default: those of the repository)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="the tokenizer's folder (default: --out of the tokenizer beside --out)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
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
    import torch

    from .contrastive import ContrastiveTask
    from .timed import TimedRun

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    export_to = options.export or WEIGHTS / "vision"
    run = TimedRun(options.minutes, options.out, export_to, lr=options.lr or 1.5e-3, weight_decay=0.05)
    run.train(ContrastiveTask(seed=options.seed), options.resume)


def _language(options: argparse.Namespace) -> None:
    import torch

    from .language import LanguageTask
    from .timed import TimedRun

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    export_to = options.export or WEIGHTS / "language"
    tokenizer = options.tokenizer or options.out.parent / "tokenizer"
    run = TimedRun(options.minutes, options.out, export_to, lr=options.lr or 2e-3, weight_decay=0.05)
    run.train(LanguageTask(tokenizer, seed=options.seed), options.resume)


_STEPS = {"tokenizer": _tokenizer, "vision": _vision, "language": _language}

if __name__ == "__main__":
    raise SystemExit(main())
