"""Running the decoder with a cache: all prompts in one packed pass, then one row per answer that still grows.

Nothing is padded: prompts of any lengths lie side by side, and a finished answer leaves the cache at once. Only the last row of each
sequence reaches the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..chat import answer_ends, answer_margins, stop_texts
from ..chat.text_encoder import structure_ids
from ..compose.checks import positions_of
from ..compose.dtypes import disagreement
from ..compose.finite import broken_weights
from ..decoders.modes import evaluating
from ..images.pixels import join_pixels
from ..plans.host import plan_splice
from ..spec import Instruction, LmmError, Segments
from .options import Options
from .prompts import Prompt
from .sampling import NotFinite, choose
from .text import AnswerText

if TYPE_CHECKING:
    from ..lmm import LMM


class Answer:
    """One answer while it is generated.

    Args:
        model: whose tokenizer and template say what ends an answer.
        options: of the caller.

    Attributes:
        ids: generated so far, the end-of-sequence token included.
        done: whether it ended.
        ends: tokens that end it.
        generator: its random state.
    """

    def __init__(self, model: LMM, options: Options) -> None:
        self.ids: list[int] = []
        self.done = False
        self.generator = options.generator()
        self._most = options.max_new_tokens
        self.ends, stops = _endings(model, options)
        self._text = AnswerText(model.tokenizer, stops, _margins(model), silent=self.ends | _markup_ids(model))

    def push(self, token: int) -> str:
        """Take the next token; return the text that may be shown now."""
        self.ids.append(token)
        ended = token in self.ends
        text = "" if ended else self._text.push(token)
        over = ended or len(self.ids) >= self._most
        self.done = over or self._text.stopped
        return text if self._text.stopped or not over else text + self._text.finish(ended=ended)


def _endings(model: LMM, options: Options) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the tokens and the strings that end an answer; the string of a special token is that token, which gives no text."""
    given = model.template, model.tokenizer, options.stop
    return answer_ends(*given), stop_texts(*given)


def _markup_ids(model: LMM) -> frozenset[int]:
    """Return the tokens that are markup wherever they stand: the tokenizer's own and the template's."""
    written = (model.tokenizer.backend_tokenizer.token_to_id(text) for text in getattr(model.template, "tokens", ()))
    return structure_ids(model.tokenizer) | {token for token in written if token is not None}


def _margins(model: LMM) -> tuple[str, str]:
    """Return what stands around an answer besides its end: a string that ends it is looked for anyway."""
    before, after = answer_margins(model.template, model.tokenizer, mode=model.tokenize_mode)
    for stop in model.template.stop:
        after = after.removesuffix(stop)
    return before, after


@torch.inference_mode()
def read_prompts(model: LMM, cache: Any, prompts: Sequence[Prompt], options: Options) -> Tensor:
    """Run new prompt rows of every sequence after what the cache holds.

    Args:
        model: the model.
        cache: of the decoder, one sequence per prompt; grows by the rows of the prompts.
        prompts: what is new of each sequence, at least one token.
        options: for the room that the answers need.

    Returns:
        ``logits_SV`` of the token after each prompt.

    Raises:
        LmmError: a prompt and its answer don't fit into the decoder's positions, or parts of the model have several dtypes or devices.
    """
    _check_dtypes(model)
    _check_room(model, cache, prompts, options.max_new_tokens)
    plan = plan_splice(
        [p.ids for p in prompts],
        [p.image_rows for p in prompts],
        bidirectional_images=model.attention == "images",
        names=[p.name for p in prompts],
    )
    positions_T = plan.positions + torch.from_numpy(np.repeat(np.asarray(cache.lengths, np.int32), plan.lengths))
    if plan.kv_end is not None:  # keys of the cache lie in front: those of each row's own sequence, and of all before
        before = np.repeat(np.cumsum(cache.lengths), plan.lengths).astype(np.int32)
        plan = replace(plan, kv_end=plan.kv_end + torch.from_numpy(before))
    pixels = join_pixels([p.pixels for p in prompts]).to(model.device)
    asked = [ids for p in prompts for ids in p.instructions]
    instruction = Instruction.of(asked, device=model.device) if asked else None
    plan = plan.to(model.device)
    with evaluating(model):
        encoded = model.encode_images(pixels, instruction=instruction)
        hidden_TD = model.read(encoded, plan, positions_T=positions_T.to(model.device), cache=cache)
        return model.decoder.head(hidden_TD.index_select(0, plan.cu_seqlens[1:] - 1))


@torch.inference_mode()
def _step(model: LMM, cache: Any, tokens: list[int]) -> Tensor:
    """Run one token of each sequence; return ``logits_SV`` of the next."""
    ids_S, positions_S = torch.tensor([tokens, cache.lengths], dtype=torch.int32).to(model.device)
    segments = Segments.of([1] * len(tokens), device=model.device)
    with evaluating(model):
        return model.decoder.head(model.decode(model.decoder.embed(ids_S), positions_S, segments, cache=cache))


def decode(model: LMM, cache: Any, logits_SV: Tensor, answers: Sequence[Answer], options: Options) -> Iterator[tuple[int, str]]:
    """Generate until every answer ended.

    Args:
        model: the model.
        cache: holds the prompts; finished sequences leave it as long as others go on. The last token of an answer is not in it.
        logits_SV: of the first token of each answer.
        answers: to fill.
        options: how tokens are chosen.

    Yields:
        Index of an answer and text to add to it.
    """
    live = list(range(len(answers)))
    while live:
        try:
            tokens = choose(logits_SV, options, [answers[index].generator for index in live])
        except NotFinite as error:
            raise LmmError(_why_not_finite(model, logits_SV.dtype)) from error
        for index, token in zip(live, tokens):
            text = answers[index].push(token)
            if text:
                yield index, text
        going = [row for row, index in enumerate(live) if not answers[index].done]
        if not going:
            return
        if len(going) < len(live):
            cache.keep(going)
        live = [live[row] for row in going]
        logits_SV = _step(model, cache, [tokens[row] for row in going])


def _why_not_finite(model: LMM, dtype: torch.dtype) -> str:
    """Look before anything is blamed."""
    broken = broken_weights(model)
    if broken is not None:
        return f"the logits are not finite, because weights hold NaN or inf: {broken}: load intact ones"
    wider = "" if dtype == torch.float32 else "convert the model with .to(torch.float32), or "
    return (
        f"the logits are not finite, and all weights are: {dtype} overflows with these weights, or the pixels of a picture are not finite: "
        f"{wider}check what the preprocessing gives, and whether the run that made the weights diverged"
    )


def new_cache(model: LMM, sequences: int) -> Any:
    """Return an empty cache of the model's decoder.

    Raises:
        LmmError: the decoder has none.
    """
    make = getattr(model.decoder, "new_cache", None)
    if make is None:
        raise LmmError(
            f"decoder {type(model.decoder).__name__!r} can't generate: it has no new_cache(sequences), expected one that returns a KVCache "
            f"(lmmblocks.decoders.cache) for its layers"
        )
    return make(sequences)


def _check_dtypes(model: LMM) -> None:
    problem = None if torch.is_autocast_enabled(model.device.type) else disagreement(model.parts)
    if problem:
        raise LmmError(problem)


def _check_room(model: LMM, cache: Any, prompts: Sequence[Prompt], new_tokens: int) -> None:
    most = positions_of(model.decoder)
    for prompt, read in zip(prompts, cache.lengths):
        rows = read + prompt.rows
        if most is None or rows + new_tokens <= most:
            continue
        lower = f", or lower max_new_tokens to {most - rows}" if rows < most else ""
        raise LmmError(
            f"{prompt.name} has {rows} rows and its answer may have {new_tokens} (max_new_tokens): together more than the decoder's "
            f"{most} positions: shorten the conversation{lower}"
        )
