"""The decoder's training: conversations about scenes told in words, so that it can answer what it knows.

Next-token prediction on packed batches through the same plan, template and loss as everything else: answers
count fully, all other text a little. Some documents have no system prompt (more answers per token), some
are a told scene and its caption, as stage 1 will show it with a picture in place of the telling.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from lmmblocks import ops
from lmmblocks.chat import CaptionTemplate, Piece, Template, Tokens, encode_chat, get_template, tokenize
from lmmblocks.decoders.transformer import Transformer, TransformerConfig
from lmmblocks.plan import plan_splice
from lmmblocks.spec import IGNORE_LABEL, LmmError, SplicePlan

from ..scenes.corpus import corpus_messages
from ..scenes.describe import caption, caption_with_boxes
from ..scenes.questions import TASKS
from ..scenes.scene import sample_scene
from .export import export_language
from .initialise import initialise_decoder

LANGUAGE = TransformerConfig(
    dim=192,
    layers=5,
    heads=6,
    kv_heads=2,
    ffn_dim=512,
    vocab=1200,
    rope_theta=10000.0,
    eps=1e-5,
    max_positions=2048,
)
"""The tiny preset's decoder; the vocabulary is the tokenizer's."""

_OTHER_TEXT = 0.15
_CAPTION_SHARE = 0.25
_BARE_SHARE = 0.5
TEMPLATE = get_template("vicuna_v1")
assert isinstance(TEMPLATE, Template)
_BARE_TEMPLATE = replace(TEMPLATE, system="")


class LanguageTask:
    """What `timed.TimedRun` trains for the decoder.

    Args:
        tokenizer_folder: what `save_tokenizer` wrote.
        config: shape of the decoder; its vocabulary is replaced by the tokenizer's. The head shares the embedding
            table while it is trained, so that to copy a rare word is not learned word by word; `export` writes
            two equal matrices.
        batch_tokens: rows of a packed batch.
        seed: of the data; step `n` draws the same batch in every run.
    """

    def __init__(
        self,
        tokenizer_folder: Path,
        config: TransformerConfig = LANGUAGE,
        batch_tokens: int = 2048,
        seed: int = 0,
    ) -> None:
        from transformers import AutoTokenizer

        if not (Path(tokenizer_folder) / "tokenizer.json").is_file():
            command = f"python -m examples.llava15.pretrain tokenizer --out {tokenizer_folder}"
            raise LmmError(f"no tokenizer in {tokenizer_folder}: make it first with `{command}`")
        self.tokenizer_folder, self.batch_tokens, self.seed = Path(tokenizer_folder), batch_tokens, seed
        self.tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
        self.decoder: Transformer = replace(config, vocab=len(self.tokenizer), tied=True).build()
        initialise_decoder(self.decoder)
        self.modules = nn.ModuleDict({"decoder": self.decoder})

    def losses(self, step: int) -> dict[str, Tensor]:
        """The terms of one step's loss: answers, and all other text."""
        rng = random.Random(f"language-{self.seed}-{step}")
        documents: list[Tokens] = []
        while sum(len(document.ids) for document in documents) < self.batch_tokens:
            documents.append(sample_document(rng, self.tokenizer))
        return self.losses_of(documents)

    def losses_of(self, documents: list[Tokens]) -> dict[str, Tensor]:
        """The terms for given documents; their labels say what an answer is."""
        plan, answers_R = plan_all_text(documents)
        losses_R = ops.linear_cross_entropy(
            self.hidden(plan)[plan.target_rows], self.decoder.lm_head.weight, plan.targets, reduction="none"
        )
        other_R = 1 - answers_R
        return {
            "answers": (losses_R * answers_R).sum() / answers_R.sum().clamp_min(1),
            "other": _OTHER_TEXT * (losses_R * other_R).sum() / other_R.sum().clamp_min(1),
        }

    def hidden(self, plan: SplicePlan) -> Tensor:
        """Hidden rows `(T, D)` of a batch without pictures."""
        embeds_TD = self.decoder.embed(plan.source)
        return self.decoder(embeds_TD, positions=plan.positions, segments=plan.segments)

    def evaluate(self) -> dict[str, Any]:
        """Loss and per-task accuracy on told held-out scenes."""
        return evaluate_language(self)

    def export(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write the decoder and its tokenizer."""
        export_language(self.decoder, self.tokenizer_folder, folder, metrics)


def plan_all_text(documents: list[Tokens]) -> tuple[SplicePlan, Tensor]:
    """A plan that supervises every token.

    Returns:
        The plan, and float `(R,)`: 1 where the target is part of an answer.
    """
    ids = [document.ids for document in documents]
    plan = plan_splice(ids, [[]] * len(documents), labels=ids)
    is_answer = [label != IGNORE_LABEL for document in documents for label in document.labels]
    return plan, torch.tensor(is_answer, dtype=torch.float32)[plan.target_rows.long() + 1]


def sample_document(rng: random.Random, tokenizer: Any) -> Tokens:
    """One training document; its labels mark the answers."""
    draw = rng.random()
    if draw < _CAPTION_SHARE:
        return told_caption(rng, tokenizer)
    template = _BARE_TEMPLATE if draw < _CAPTION_SHARE + _BARE_SHARE else TEMPLATE
    return encode_chat(corpus_messages(rng), template, tokenizer)


def told_caption(rng: random.Random, tokenizer: Any) -> Tokens:
    """A scene with its boxes, then its caption: stage 1's document with words in place of the picture."""
    scene = sample_scene(rng, "train")
    template = get_template("plain")
    assert isinstance(template, CaptionTemplate)
    pieces = [
        Piece("bos"),
        Piece("text", caption_with_boxes(scene), "user"),
        Piece("text", caption(scene, rng) + template.end, "assistant", train=True),
    ]
    return tokenize(pieces, tokenizer)


def told_questions(rng: random.Random, per_task: int) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Validation questions: a told held-out scene, one question, and the task's name; `per_task` of each."""
    for name, task in TASKS.items():
        found = 0
        while found < per_task:
            scene = sample_scene(rng, "heldout")
            turn = task(scene, rng)
            if turn is None:
                continue
            told = (
                caption_with_boxes(scene)
                if name in ("box", "region") or rng.random() < 0.5
                else caption(scene, rng)
            )
            question = turn.question if name == "text" else f"{told}\n{turn.question}"
            found += 1
            yield name, [{"role": "user", "content": question}, {"role": "assistant", "content": turn.answer}]


def evaluate_language(task: LanguageTask, per_task: int = 50) -> dict[str, Any]:
    """Scores of a decoder on scenes with held-out combinations, told in words.

    An answer counts when every one of its tokens, the end included, is the likeliest after the right ones
    before it, which is to say when greedy decoding writes exactly it. Captions have several right wordings,
    so theirs stays low.

    Args:
        task: the decoder and its tokenizer.
        per_task: questions of each task.

    Returns:
        `val_loss` (nats per answer token), `exact_match` (task -> share) and their mean without captions.
    """
    right: dict[str, list[bool]] = {}
    loss_sum, targets = 0.0, 0
    questions = list(told_questions(random.Random("validation"), per_task))
    for start in range(0, len(questions), 25):
        chunk = questions[start : start + 25]
        documents = [encode_chat(messages, TEMPLATE, task.tokenizer) for _, messages in chunk]
        plan = plan_splice(
            [d.ids for d in documents], [[]] * len(chunk), labels=[d.labels for d in documents]
        )
        hidden_RD = task.hidden(plan)[plan.target_rows]
        loss_sum += ops.linear_cross_entropy(
            hidden_RD, task.decoder.lm_head.weight, plan.targets, reduction="sum"
        ).item()
        targets += len(plan.targets)
        hits_R = task.decoder.head(hidden_RD).argmax(-1) == plan.targets
        for (name, _), hits in zip(chunk, hits_R.split(plan.target_counts)):
            right.setdefault(name, []).append(bool(hits.all()))
    exact = {name: round(sum(hits) / len(hits), 4) for name, hits in right.items()}
    scored = [value for name, value in exact.items() if name != "caption"]
    return {
        "val_loss": round(loss_sum / targets, 4),
        "exact_match": exact,
        "mean_exact_match": round(sum(scored) / len(scored), 4),
    }
