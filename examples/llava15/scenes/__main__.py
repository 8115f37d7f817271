"""`python -m examples.llava15.scenes --out DIR`: write the tiny data set (train, pretrain and held-out)."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lmmblocks.cli import exit_code
from lmmblocks.spec import LmmError

from .dataset import write_dataset, write_pretrain


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the data set as a whole or not at all.

    Args:
        arguments: the command line without the program's name; None takes sys.argv.

    Returns:
        The exit code: 0, or 2 with one line on stderr for bad input.
    """
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _write(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.llava15.scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to create; must not exist or be empty")
    parser.add_argument("--train", type=int, default=6000, help="stage 2 conversations (default %(default)s)")
    parser.add_argument("--pretrain", type=int, default=4000, help="stage 1 captions (default %(default)s)")
    parser.add_argument("--heldout", type=int, default=800, help="held-out questions (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    return parser


def _write(options: argparse.Namespace) -> None:
    out: Path = options.out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LmmError(f"--out {options.out} exists and is not an empty folder: delete it or name another")
    for name in ("train", "pretrain", "heldout"):
        if getattr(options, name) < 0:
            raise LmmError(f"--{name} {getattr(options, name)}: give 0 (leave it out) or more")
    if not options.train + options.pretrain + options.heldout:
        raise LmmError("--train, --pretrain and --heldout are all 0: nothing to write")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        if options.pretrain:
            write_pretrain(unfinished, options.pretrain, options.seed)
        if options.train:
            write_dataset(unfinished, "train", options.train, options.seed)
        if options.heldout:
            write_dataset(unfinished, "heldout", options.heldout, options.seed)
        unfinished.chmod(0o755)
        if out.exists():
            out.rmdir()  # empty, as checked above
        unfinished.replace(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


if __name__ == "__main__":
    raise SystemExit(main())
