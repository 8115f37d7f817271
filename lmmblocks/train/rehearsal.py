"""The end of a run, tried in its first minute: what would be saved is loaded, and has to answer as the model does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..generate.decode import Answer, new_cache, read_prompts
from ..generate.options import Options
from ..generate.prompts import Question, as_prompt, user_message
from ..lmm import LMM
from ..spec import LmmError
from ..weights.load import load

_OPTIONS = Options.of({"max_new_tokens": 1})


def check_saved(model: LMM, folder: str | Path) -> None:
    """Load a folder that a model was just saved to and compare: every weight, a prompt's ids, pixels and rows, its logits, the next token, the ends.

    The weights are read to the host; the loaded model then computes with the model's own tensors, so that no device holds them twice.

    Raises:
        LmmError: a difference; all are listed.
    """
    again = load(folder, dtype=model.decoder.table.dtype)
    problems = list(_other_weights(model, again))
    if not problems:
        again.load_state_dict(model.state_dict(), assign=True)
        problems = list(_other_answers(model, again.to(model.device).eval()))
    if problems:
        raise LmmError("the model that would be saved comes back as another one:\n" + "\n".join(f"- {problem}" for problem in problems))


def _other_weights(model: LMM, again: LMM) -> Iterator[str]:
    ours, theirs = model.state_dict(), again.state_dict()
    changed = [name for name in ours if name not in theirs or not torch.equal(ours[name].cpu(), theirs[name])]
    if changed:
        yield f"{len(changed)} tensors have other values, such as {changed[0]}"


def _other_answers(model: LMM, again: LMM) -> Iterator[str]:
    picture = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    question = Question("the rehearsal", [user_message("What is it?", 1)], [picture])
    ours, theirs = (as_prompt(question, each.input_spec) for each in (model, again))
    for name in ("ids", "image_rows", "instructions"):
        if getattr(ours, name) != getattr(theirs, name):
            yield f"{name} of a prompt: {getattr(ours, name)} before, {getattr(theirs, name)} after"
    logits, others = (_logits(each, prompt) for each, prompt in ((model, ours), (again, theirs)))
    if logits.shape != others.shape or not torch.equal(logits, others):
        yield "the logits of the first token of an answer differ"
    ends, other_ends = (Answer(each, _OPTIONS).ends for each in (model, again))
    if ends != other_ends:
        yield f"an answer ends at {sorted(ends)} before, at {sorted(other_ends)} after"


def _logits(model: LMM, prompt: Any) -> torch.Tensor:
    return read_prompts(model, new_cache(model, 1), [prompt], _OPTIONS)
