"""The conversation in a terminal: a line in, an answer out as it is generated."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..images.load import load_image
from ..spec import LmmError, closest

if TYPE_CHECKING:
    from ..lmm import LMM

HELP = """\
Write a question and press Enter. Ctrl-C stops an answer.
  /image PATH  show another picture with the next question
  /reset       forget the conversation; the last pictures go with the next question again
  /help        print this
  /quit        leave (so does the end of the input)
  //...        ask a question that begins with a command's name"""


class Repl:
    """Reads questions and commands from the standard input until it ends or says ``/quit``.

    Answers go to the standard output. An error is printed to the standard error and the conversation goes on.

    Args:
        model: an ``LMM`` with a tokenizer.
        images: pictures that go with the first question, see ``load_image``.
        system: the system prompt; None = the template's own.
        options: keyword arguments of ``generate``.
    """

    def __init__(self, model: LMM, images: list[Any], system: str | None, options: dict[str, Any]) -> None:
        from ..generate.conversation import Conversation

        self._conversation = Conversation(model, system)
        self._options = options
        self._shown: list[Any] = []
        self._waiting = list(images)
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/reset": self._reset,
            "/help": self._help,
        }

    def run(self) -> None:
        """Talk until the input ends."""
        interactive = sys.stdin.isatty()
        if interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  arrow keys and history in input()
            print(HELP)
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return
            except UnicodeDecodeError as error:
                raise LmmError(f"the input is not {error.encoding} text ({error.reason}): convert it") from error
            if line == "/quit":
                return
            try:
                self._take(line)
            except LmmError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if line.startswith("//"):
            self._ask(line[1:])
        elif not re.fullmatch(r"/\w+", command):  # a path or a fraction begins a question
            self._ask(line)
        elif command in self._commands:
            self._commands[command](rest.strip())
        else:
            known = [*self._commands, "/quit"]
            raise LmmError(f"unknown command {command!r}{closest(command, known)}; known: {', '.join(known)}; to ask it, write /{line}")

    def _ask(self, text: str) -> None:
        if not text:
            return
        try:
            print_pieces(self._conversation.stream(text, self._waiting, **self._options))
        except KeyboardInterrupt:
            print("(stopped, this turn is forgotten)", file=sys.stderr, flush=True)
            return
        self._shown, self._waiting = self._waiting or self._shown, []

    def _image(self, path: str) -> None:
        paths = given_paths(path)
        if not paths:
            raise LmmError("/image needs the path of a picture: /image cat.jpg")
        for each in paths:
            load_image(each)  # told at once if it is bad; the model reads it its own way
        self._waiting += paths

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._waiting = self._waiting or self._shown

    def _help(self, _: str) -> None:
        print(HELP, flush=True)


def given_paths(text: str) -> list[str]:
    """Return the paths that somebody typed or dropped on a terminal: with ``~``, blanks, quotes or escaped blanks; several, if quoted or escaped.

    >>> given_paths("'my cat.jpg'"), given_paths(r"my\\ cat.jpg dog.jpg"), given_paths("my cat.jpg")
    (['my cat.jpg'], ['my cat.jpg', 'dog.jpg'], ['my cat.jpg'])
    """
    plain = os.path.expanduser(text.strip())
    if not plain or os.path.exists(plain):
        return [plain] if plain else []
    try:
        words = [os.path.expanduser(word) for word in shlex.split(text)]
    except ValueError:  # a quote that isn't closed
        return [plain]
    quoted = any(sign in text for sign in "'\"\\")
    return words if quoted or (words and all(map(os.path.exists, words))) else [plain]


def print_pieces(pieces: Any) -> None:
    """Print text as it comes, and end the line whatever happens."""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)
