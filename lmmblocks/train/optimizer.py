"""What a stage trains: freeze the rest, group the parameters, count them.

Groups are LLaVA's (``train/llava_trainer.py:150-228``): each trained part with its learning rate, split into weights that decay
and weights that don't (biases and the scales of norms). Frozen parts hold no gradient and no optimiser state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn

from ..compose.dtypes import widen
from ..spec import LmmError
from .stage import Stage

if TYPE_CHECKING:
    from ..lmm import LMM


def prepare_parts(model: LMM, stage: Stage, *, bf16: bool = False) -> None:
    """Freeze the parts the stage doesn't name (no gradient, eval mode), wake the others (train mode).

    A named part of which some parameters require a gradient and some don't, such as one with adapters in it, is woken as it is: the others stay
    frozen. One that is frozen or learns as a whole learns as a whole.

    Trained weights become fp32 where they have fewer digits, in which small updates don't vanish. Frozen ones do too, which loses nothing, unless
    they are bf16 and the run computes in it. ``dtypes.dtypes_kept`` gives them their own back.

    Args:
        model: changed in place.
        stage: names the trained parts.
        bf16: the run computes in bf16 autocast.

    Raises:
        LmmError: the model lacks a part, or the part has no parameters.
    """
    problems = [
        f"the model has no part {part!r}, only {', '.join(model.parts)}" if part not in model.parts else f"part {part!r} has no parameters"
        for part in stage.train
        if part not in model.parts or next(model.parts[part].parameters(), None) is None
    ]
    if problems:
        raise LmmError(f"stage {stage.name!r}: " + "; ".join(problems) + ": change 'train'")
    for name, part in model.parts.items():
        trained = name in stage.train
        part.train(trained)
        if not (trained and _has_chosen(part)):
            part.requires_grad_(trained)
        if trained or not bf16 or any(p.dtype == torch.float16 for p in part.parameters()):
            widen(part)


def _has_chosen(part: nn.Module) -> bool:
    """Whether somebody said which parameters of a part learn."""
    return len({parameter.requires_grad for parameter in part.parameters()}) > 1


@contextmanager
def learning_as_before(model: LMM) -> Iterator[None]:
    """Give every parameter its ``requires_grad`` back after the body, so that one stage doesn't forget who learns in the next."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


def forget_sources(model: LMM, stage: Stage) -> None:
    """What is trained is no longer what its source holds, and isn't named after it any more; the tokenizer still is."""
    config = model.config
    if config is None:
        return
    tokenizer = config.tokenizer_source or config.decoder_source
    trained: dict[str, Any] = {f"{part}_source": None for part in ("encoder", "decoder") if part in stage.train}
    model.config = replace(config, **{"tokenizer_source": tokenizer, **trained} if trained else {})


def trained_parameters(model: LMM) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield (part, name in the model's state dict, parameter) of everything that has a gradient, each once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: set[int] = set()
    for part_name, part in model.parts.items():
        for parameter in part.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield part_name, names[id(parameter)], parameter


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, not to the scales of norms (a ``weight`` with one dimension)."""
    last = name.rpartition(".")[2]
    return last != "bias" and not (last == "weight" and parameter.dim() == 1)


def parameter_groups(model: LMM, stage: Stage) -> list[dict[str, Any]]:
    """Return AdamW's groups: part x (decay, no decay), each with its peak learning rate and the names of its parameters."""
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for part, name, parameter in trained_parameters(model):
        key = (part, decays(name, parameter))
        group = groups.setdefault(
            key,
            {
                "params": [],
                "names": [],
                "part": part,
                "peak_lr": stage.train[part],
                "lr": stage.train[part],
                "weight_decay": stage.weight_decay if key[1] else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(model: LMM, stage: Stage) -> torch.optim.AdamW:
    """Return AdamW over the trained parts; one fused kernel, which can also be told on the device to leave a step out."""
    return torch.optim.AdamW(parameter_groups(model, stage), betas=stage.betas, eps=stage.eps, fused=True)


def trainable_table(model: LMM, stage: Stage | None = None) -> str:
    """Return one line per part: parameters, trained parameters and, for a stage, the learning rate."""
    lines = [f"{'part':<10} {'parameters':>14} {'trained':>14}" + ("  learning rate" if stage else "")]
    for name, part in model.parts.items():
        total = sum(p.numel() for p in part.parameters())
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        rate = "" if stage is None else f"  {stage.train[name]:g}" if name in stage.train else "  frozen"
        lines.append(f"{name:<10} {total:>14,} {trained:>14,}{rate}")
    return "\n".join(lines)


def print_trainable(model: LMM, stage: Stage | None = None) -> None:
    """Print :func:`trainable_table`."""
    print(trainable_table(model, stage))
