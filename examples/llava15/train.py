"""Train LLaVA-1.5 from parts, both stages: ``python -m examples.llava15.train --size 7b ...``.

The whole recipe is here to be read and changed: which blocks, which stage trains what, on which data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmmblocks.cli import exit_code

SIZES = ("7b", "13b", "tiny")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both stages; returns the exit code: 0, or 2 with one line on stderr for bad input."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.llava15.train", description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="tiny", help="default %(default)s")
    parser.add_argument("--vision", help="folder or hub id of the CLIP vision tower (default: the size's own)")
    parser.add_argument("--language", help="folder or hub id of the language model (default: the size's own)")
    parser.add_argument("--captions", required=True, metavar="FILE", help="stage 1: LLaVA-format JSON of captions")
    parser.add_argument("--caption-images", required=True, metavar="DIR", help="folder of its pictures")
    parser.add_argument("--conversations", required=True, metavar="FILE", help="stage 2: LLaVA-format JSON of conversations")
    parser.add_argument("--conversation-images", required=True, metavar="DIR", help="folder of its pictures")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="checkpoints, logs and the model go here")
    parser.add_argument("--policy", choices=("error", "skip"), default="error", help="records that can't be used (default %(default)s)")
    parser.add_argument("--device", help="default: cuda where there is one")
    return parser


def _run(options: argparse.Namespace) -> None:
    from lmmblocks.data.records import load_records
    from lmmblocks.train.loop import train

    from .configs import STAGES

    caption_records = load_records(options.captions, options.caption_images, policy=options.policy)
    conversations = load_records(options.conversations, options.conversation_images, policy=options.policy)
    model = assemble(options.size, options.vision, options.language, options.device)
    connector, instruct = (stage() for stage in STAGES[options.size])
    train(model, connector, caption_records, options.out / connector.name)
    train(model, instruct, conversations, options.out / instruct.name)
    model.save(options.out / "model", format="hf")
    print(f"model: {options.out / 'model'}")


def assemble(size: str, vision: str | None = None, language: str | None = None, device: str | None = None) -> Any:
    """Put LLaVA-1.5 together: an encoder, a two-layer MLP, a decoder.

    Args:
        size: ``7b``, ``13b`` or ``tiny``.
        vision: folder or hub id of the vision tower; None = the size's own.
        language: folder or hub id of the language model; None = the size's own.
        device: None = cuda where there is one.

    Returns:
        The ``LMM``, its towers pretrained and its connector new.
    """
    import torch

    import lmmblocks as lb

    from .configs import MODELS

    model = lb.build(MODELS[size](vision, language))
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    raise SystemExit(main())
