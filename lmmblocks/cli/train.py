"""``lmmblocks train``: one stage, from a preset or a saved model to a saved model."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..spec import LmmError, closest
from .options import add_device, add_dtype, device_of, dtype_of, require_tokenizer

if TYPE_CHECKING:
    from ..lmm import LMM
    from ..train.stage import Stage

SWAPS = ("encoder", "projector", "decoder", "tokenizer")


def add_cli(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from ..train.stage import PARTS, Stage

    parser.add_argument("--model", required=True, help="name of a preset, folder of a saved model, or hub id")
    parser.add_argument("--data", required=True, metavar="FILE", help="LLaVA-format JSON or .jsonl")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder the image paths are relative to")
    parser.add_argument("--stage", required=True, help="stage1, stage2 (LLaVA-1.5's), or a JSON file of settings")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="gets logs, checkpoints and the trained model; resumed if it holds a run",
    )
    parser.add_argument("--format", default="hf", help="of the trained model: hf or native (default: %(default)s)")
    add_device(parser)
    add_dtype(
        parser, ("float32", "bfloat16"), "of the model; its trained weights are float32 while they are trained (default: %(default)s)", "float32"
    )
    for part in SWAPS:
        parser.add_argument(f"--{part}", metavar="X", help=f"swap the preset's {part}: a name, a folder or a hub id")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="change a setting of the stage, such as batch_size=32 or train.projector=5e-4",
    )
    keys = ", ".join(field.name for field in fields(Stage) if field.name != "train")
    parser.epilog = f"KEY is train.PART (the learning rate of {', '.join(PARTS)}), {keys}; lmmblocks.train.Stage explains them."


def run(args: argparse.Namespace) -> None:
    """Train a stage and save the model.

    Raises:
        LmmError: an argument, a setting, the data or the model can't be used.
    """
    from ..data.records import load_records
    from ..train.loop import train
    from ..train.stage_inputs import set_stage_inputs

    stage = read_stage(args.stage, args.settings)
    if not args.out:
        raise LmmError("--out is empty: give a folder, . for the current one")
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise LmmError(f"--out {args.out!r} is a file: give a folder")
    records = load_records(args.data, args.images, policy=stage.bad_samples)
    model = _model(args)
    set_stage_inputs(model, stage)  # as train() does: what is rehearsed is the model as it will be
    _warn_of_random(model, stage, new=_is_preset(args.model))
    _rehearse_saving(model, out, args.format)
    result = train(model, stage, records, out)
    model.save(out / "model", format=args.format)
    print(f"last loss {result.last_loss:.4f} after {result.steps} steps, {result.tokens_per_second:,.0f} tokens/s; model saved in {out / 'model'}")


def read_stage(name: str, settings: list[str] | None = None) -> Stage:
    """Return a stage by name or from a JSON file, with changes.

    Args:
        name: a key of ``STAGES``, or the path of a JSON file.
        settings: ``key=value``; the value is JSON, or a string where it isn't; ``train.part=lr`` sets one learning rate.

    Raises:
        LmmError: no such stage or file, an unknown key, a value that makes no sense.
    """
    from ..train.stage import STAGES, Stage

    if name in STAGES:
        values = STAGES[name]().to_dict()
    elif Path(name).is_file():
        try:
            values = Stage.from_json(Path(name).read_text(encoding="utf-8")).to_dict()
        except (LmmError, UnicodeDecodeError) as error:
            raise LmmError(f"{name}: {error}") from error
    else:
        raise LmmError(f"unknown stage {name!r}{closest(name, STAGES)}; known: {', '.join(STAGES)}, or the path of a JSON file")
    given: dict[str, str] = {}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise LmmError(f"can't read the setting {setting!r}: expected key=value, such as batch_size=32")
        if key in given:
            raise LmmError(f"the setting {key!r} is given twice, {given[key]!r} and {setting!r}: leave one out")
        given[key] = setting
        group, dot, part = key.partition(".")
        if dot and group == "train":
            values["train"][part] = _value(text)
        else:
            values[key] = _value(text)
    return Stage.from_dict(values)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _is_preset(name: str) -> bool:
    from ..presets import PRESETS

    return name in PRESETS


def _model(args: argparse.Namespace) -> LMM:
    from .. import build, load
    from ..presets import PRESETS

    dtype, device = dtype_of(args.dtype), device_of(args.device)
    swaps = {part: getattr(args, part) for part in SWAPS if getattr(args, part) is not None}
    if _is_preset(args.model):
        model = build(args.model, dtype=dtype, **swaps)
        require_tokenizer(model, args.model, "give --tokenizer X, a folder or a hub id")
    elif not os.path.isdir(args.model) and "/" not in args.model:
        raise LmmError(f"unknown model {args.model!r}{closest(args.model, PRESETS)}; presets: {', '.join(PRESETS)}; or give a folder or a hub id")
    elif swaps:
        raise LmmError(f"--{next(iter(swaps))} swaps a part of a preset, and {args.model!r} is a saved model: leave it out")
    else:
        model = load(args.model, dtype=dtype)
        require_tokenizer(model, args.model, "copy the language model's tokenizer files into its folder")
    try:
        return model.to(device)
    except RuntimeError as error:
        raise LmmError(f"the model can't be put on --device {str(device)!r}: {error}") from error


def _warn_of_random(model: LMM, stage: Stage, *, new: bool) -> None:
    """Say on stderr which parts of a new model stay as random as they are made."""
    from ..builder import random_parts

    read = {name for name in ("encoder", "decoder") if model.config is None or name not in random_parts(model.config)}
    for name, part in model.parts.items() if new else ():
        if name in read or name in stage.train or next(part.parameters(), None) is None:
            continue
        source = f"--{name} X (a name that brings weights, a folder or a hub id)"
        give = source if name in ("encoder", "decoder") else "--model FOLDER of a trained one"
        print(
            f"warning: the weights of the {name} are random and stage {stage.name!r} keeps them so: give {give}, or train it: train.{name}=1e-3",
            file=sys.stderr,
        )


def _rehearse_saving(model: LMM, out: Path, format: str) -> None:
    """Save the untrained model once, load it, compare and remove it: what would fail after hours of training fails now."""
    from ..train.leftovers import removing_leftovers
    from ..train.rehearsal import check_saved

    folder = out / "model-rehearsal"
    with removing_leftovers(out):
        try:
            out.mkdir(parents=True, exist_ok=True)
            model.save(folder, format=format)
            check_saved(model, folder)
        except OSError as error:
            raise LmmError(f"can't write to {out}: {error}: make room, or choose another folder") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
