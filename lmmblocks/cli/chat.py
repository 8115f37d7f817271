"""``lmmblocks chat``: questions about pictures in a terminal, or one question and its answer."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from ..spec import LmmError
from .options import add_device, add_dtype, add_template, device_of, dtype_of, require_tokenizer

if TYPE_CHECKING:
    from ..lmm import LMM

DTYPES = ("float32", "bfloat16", "float16")


def add_cli(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a saved model, or a hub id")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="picture to ask about; repeat it for several",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="answer this one question and leave; without it, questions are read line by line",
    )
    add_template(parser)
    parser.add_argument("--system", metavar="TEXT", help="system prompt (default: the template's own)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 = always the most likely token (default: %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample among the tokens of this probability (default: %(default)s)",
    )
    parser.add_argument("--top-k", type=int, default=0, help="sample among this many tokens; 0 = all (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="makes sampled answers repeatable")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default: %(default)s)")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end an answer before this text; may be repeated",
    )
    add_device(parser)
    add_dtype(parser, DTYPES, "of the weights (default: as they are stored)")


def run(args: argparse.Namespace) -> None:
    """Answer questions.

    Raises:
        LmmError: an argument, the model or a picture that can't be used. In a conversation, mistakes are printed and it goes on.
    """
    if args.prompt is not None and not args.prompt.strip():
        raise LmmError("--prompt is empty: write a question, or leave it out to ask line by line")
    from ..images.load import load_image

    images = [os.path.expanduser(path) for path in args.image]
    for path in images:
        load_image(path)  # a bad one is told before the model is loaded; the model reads it its own way
    options = _options(args)
    model = _load(args)
    from .repl import Repl, print_pieces

    if args.prompt is None:
        Repl(model, images, args.system, options).run()
        return
    from ..generate.conversation import Conversation

    print_pieces(Conversation(model, args.system).stream(args.prompt, images, **options))


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of ``generate``, checked before anything slow happens."""
    from ..generate.options import Options

    names = ("temperature", "top_p", "top_k", "seed", "max_new_tokens", "stop")
    options = {name: getattr(args, name) for name in names}
    Options.of(options)
    return options


def _load(args: argparse.Namespace) -> LMM:
    from .. import load

    model = load(args.model, template=args.template, dtype=dtype_of(args.dtype), device=device_of(args.device))
    require_tokenizer(model, args.model, "copy the language model's tokenizer files into its folder")
    return model
