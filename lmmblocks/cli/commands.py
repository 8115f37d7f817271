"""The command line: finds the command, one file of this folder each, and turns its errors into exit codes.

A command's module offers ``add_cli``, which must not need torch, and ``run(args) -> int | None``. Only the chosen command's module is
imported, so ``--help`` answers at once. ``add_cli(parser)`` declares the arguments; in a group such as ``data``, it is
``add_cli(subparsers)`` and returns the parser it added.

Exit codes: 0 done, 1 what was checked is not in order, 2 a mistake in the arguments, files or settings, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..spec import LmmError, closest
from ..spec.versions import refuse_older_versions

MISTAKE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


@dataclass(frozen=True)
class Command:
    """One command: a line for ``--help``, where its ``add_cli`` and ``run`` are (None: in this file), and whether it runs beside older versions."""

    help: str
    module: str | None = None
    run: Callable[[argparse.Namespace], int | None] | None = None
    beside_older: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: words after the program's name; None = those of the process.

    Returns:
        The exit code. Mistakes in the usage leave with ``SystemExit(2)``, as argparse does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _run(words), debug="--debug" in words)


def exit_code(run: Callable[[], int | None], *, debug: bool = False) -> int:
    """Run a program's body; mistakes become one line on stderr and exit code 2, no traceback.

    Args:
        run: the body; None counts as 0.
        debug: print the traceback as well.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("once", UserWarning)
            warnings.showwarning = _said_in_a_line(warnings.showwarning)
            return run() or 0
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; a last flush into the pipe must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (LmmError, OSError, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        interrupted = isinstance(error, KeyboardInterrupt)
        print("interrupted" if interrupted else f"error: {error}", file=sys.stderr)
        return INTERRUPTED if interrupted else MISTAKE


def _said_in_a_line(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Return how a program says a warning: in one line, without the place in the code. What isn't for users is shown as Python does."""

    def say(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if category is UserWarning:
            print(f"warning: {message}", file=sys.stderr)
        else:
            otherwise(message, category, *place)

    return say


def _run(words: list[str]) -> int:
    top = _top_parser()
    first = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    top.parse_args(words[:first])
    name, rest = _command_of(top, words[first:])
    command = COMMANDS[name]
    module: Any = importlib.import_module(command.module) if command.module else None
    parser = _parser(f"{top.prog} {name}", command, module)
    args = parser.parse_args(rest)
    run = command.run or module.run
    if not command.beside_older:
        refuse_older_versions()
    try:
        code = run(args) or 0
    except LmmError as error:
        said = in_options(str(error), parser)
        if said == str(error):
            raise
        raise LmmError(said) from error
    sys.stdout.flush()
    return code


def _parser(name: str, command: Command, module: Any) -> argparse.ArgumentParser:
    """Return the parser of a command. One of a group adds itself to the group's subparsers, any other is given its parser."""
    group, _, _ = name.rpartition(" ")
    if module is not None and " " in group:
        parser = module.add_cli(argparse.ArgumentParser(prog=group, allow_abbrev=False).add_subparsers())
    else:
        parser = argparse.ArgumentParser(prog=name, description=command.help, allow_abbrev=False)
        if module is not None:
            module.add_cli(parser)
    _add_debug(parser)
    return parser


def in_options(message: str, parser: argparse.ArgumentParser) -> str:
    """Return what the library says about its arguments in words of the command line: those of a parser's options become these.

    >>> parser = argparse.ArgumentParser()
    >>> action = parser.add_argument("--format", metavar="NAME")
    >>> in_options("save with format='native'; base='x' stays", parser), in_options("give save(..., format=...)", parser)
    ("save with --format native; base='x' stays", 'give --format NAME')
    """
    options = {action.dest: action for action in parser._actions if action.option_strings and action.nargs != 0}
    return _ARGUMENT.sub(lambda found: _as_option(found, options.get(found["name"])), message)


_ARGUMENT = re.compile(
    r"""(?P<call>\w+\(\.\.\., )?(?<![\w.-])(?P<name>[a-z]\w*)=(?P<value>\.\.\.|'[^']*'|"[^"]*"|-?\d+)(?(call)\)|(?: to \w+\(\))?)"""
)
"""How messages write an argument: ``format='native'``, ``tokenizer=... to build()``, ``load(..., base=...)``."""


def _as_option(found: re.Match[str], action: argparse.Action | None) -> str:
    if action is None:
        return found[0]
    placeholder = action.metavar or action.dest.upper()
    return f"{action.option_strings[0]} {placeholder if found['value'] == '...' else found['value'].strip(chr(34) + chr(39))}"


def _command_of(top: argparse.ArgumentParser, words: list[str]) -> tuple[str, list[str]]:
    """Split words into the name of a command, one or two words, and its arguments; leaves with 2 when there is none."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in COMMANDS:
            return name, words[length:]
    if not words:
        top.error("expected a command, found none; 'lmmblocks --help' lists them")
    group = [name for name in COMMANDS if name.split()[0] == words[0]]
    if group and words[1:2] in (["-h"], ["--help"]):
        print("\n".join(["commands:", *_command_lines(group)]))
        raise SystemExit(0)
    if group and len(words) == 1:
        top.error(f"{words[0]!r} is a group of commands: {', '.join(group)}")
    found = " ".join(words[:2]) if group else words[0]
    top.error(f"unknown command {found!r}{closest(found, COMMANDS)}; known: {', '.join(COMMANDS)}")


def _top_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lmmblocks",
        usage="%(prog)s [--help] [--version] [--debug] COMMAND ...",
        description="Large multimodal models from interchangeable blocks.",
        epilog="\n".join(["commands:", *_command_lines(COMMANDS), "", "lmmblocks COMMAND --help explains one command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lmmblocks {__version__}")
    _add_debug(parser)
    return parser


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error as well")


def _command_lines(names: Sequence[str] | dict[str, Command]) -> list[str]:
    width = max(map(len, COMMANDS))
    return [f"  {name:<{width}}  {COMMANDS[name].help}" for name in names]


def _run_version(args: argparse.Namespace) -> None:
    print(f"lmmblocks {__version__}\npython {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "transformers", "safetensors", "numpy", "pillow"):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package} is not installed")


COMMANDS = {
    "chat": Command("answer questions about pictures with a trained model", "lmmblocks.cli.chat"),
    "data check": Command("find mistakes in a LLaVA-format data file before training", "lmmblocks.cli.data_check"),
    "data show": Command("print one sample as training reads it: text, image rows, what is learned", "lmmblocks.cli.data_show"),
    "doctor": Command("say what this machine has, what each op would run on it, and why not a faster one", "lmmblocks.cli.doctor", beside_older=True),
    "eval": Command("score a model's answers to questions with known answers", "lmmblocks.cli.eval"),
    "inspect": Command("say what a model folder holds, without loading it", "lmmblocks.cli.inspect"),
    "train": Command("train one stage of a model, or resume it", "lmmblocks.cli.train"),
    "version": Command("print the versions of lmmblocks and of what it runs on", run=_run_version, beside_older=True),
}
