"""The decoder's training: conversations about scenes without pictures, so that it can answer what it knows.

Next-token prediction on packed batches through the same plan, splice, template and loss as everything else;
answers count fully, all other text a little. What it reads is in `documents`.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from lmmblocks import ops
from lmmblocks.decoders.transformer import Transformer, TransformerConfig
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, LmmError, SplicePlan
from lmmblocks.weights.sources import load_decoder

from .documents import heldout_questions, sample_document
from .export import export_language
from .initialise import initialise_decoder
from .word_rows import Document, embed_rows

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

_OTHER_TEXT = 0.1
_VOCAB_MULTIPLE = 64
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")


class LanguageTask:
    """What `timed.TimedRun` trains for the decoder.

    Args:
        tokenizer_folder: what `save_tokenizer` wrote.
        config: shape of the decoder; its vocabulary is replaced by the tokenizer's, with spare rows up to a
            multiple of 64. The head shares the embedding table while it is trained, so that to copy a rare word
            is not learned word by word; `export` writes two equal matrices.
        batch_tokens: rows of a packed batch.
        seed: of the data; step `n` draws the same batch in every run.
        start: folder of an exported decoder to go on from; None = random weights.
    """

    def __init__(
        self,
        tokenizer_folder: Path,
        config: TransformerConfig = LANGUAGE,
        batch_tokens: int = 1024,
        seed: int = 0,
        start: Path | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        if not (Path(tokenizer_folder) / "tokenizer.json").is_file():
            command = f"python -m examples.llava15.pretrain tokenizer --out {tokenizer_folder}"
            raise LmmError(f"no tokenizer in {tokenizer_folder}: make it first with `{command}`")
        self.tokenizer_folder, self.batch_tokens, self.seed = Path(tokenizer_folder), batch_tokens, seed
        self.tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
        vocab = -(-len(self.tokenizer) // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
        self.decoder: Transformer = replace(config, vocab=vocab, tied=True).build()
        initialise_decoder(self.decoder)
        if start is not None:
            self._start_from(start)
        self.modules = nn.ModuleDict({"decoder": self.decoder})

    def _start_from(self, folder: Path) -> None:
        """Take an exported decoder's weights; rows that its table lacks stay random."""
        _, state = load_decoder(folder)
        table = self.decoder.model.embed_tokens.weight
        with torch.no_grad():
            table[: len(state["lm_head.weight"])] = state["lm_head.weight"][: len(table)]
        rest = {name: value for name, value in state.items() if name not in _TABLES}
        self.decoder.load_state_dict({name: table for name in _TABLES} | rest)

    def losses(self, step: int) -> dict[str, Tensor]:
        """The terms of one step's loss: answers, and all other text."""
        rng = random.Random(f"language-{self.seed}-{step}")
        documents: list[Document] = []
        while sum(document_rows(document) for document in documents) < self.batch_tokens:
            documents.append(sample_document(rng, self.tokenizer))
        return self.losses_of(documents)

    def losses_of(self, documents: list[Document]) -> dict[str, Tensor]:
        """The terms for given documents; their labels say what an answer is."""
        plan, weights_R = plan_documents(documents)
        losses_R = ops.linear_cross_entropy(
            self.hidden(plan, documents)[plan.target_rows], self.decoder.lm_head.weight, plan.targets, reduction="none"
        )
        other_R = (weights_R == 0).float()
        return {
            "answers": (losses_R * weights_R).sum() / weights_R.sum().clamp_min(1),
            "other": _OTHER_TEXT * (losses_R * other_R).sum() / other_R.sum().clamp_min(1),
        }

    def hidden(self, plan: SplicePlan, documents: list[Document]) -> Tensor:
        """Hidden rows `(T, D)` of planned documents."""
        table_VD = self.decoder.table
        rows_MD = embed_rows([rows for document in documents for rows in document.scenes], table_VD)
        embeds_TD = ops.splice(table_VD, rows_MD, plan)
        return self.decoder(embeds_TD, positions=plan.positions, segments=plan.segments)

    def evaluate(self) -> dict[str, Any]:
        """Loss and per-task accuracy on told held-out scenes."""
        return evaluate_language(self)

    def export(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write the decoder and its tokenizer."""
        export_language(self.decoder, self.tokenizer_folder, folder, metrics)


def plan_documents(documents: list[Document], *, answers_only: bool = False) -> tuple[SplicePlan, Tensor]:
    """Plan documents, with every token supervised or the answers only.

    Returns:
        The plan, and float `(R,)`: the weight of the target as part of an answer, 0 where it is none.
    """
    lengths = [[len(rows) for rows in document.scenes] for document in documents]
    ids = [document.tokens.ids for document in documents]
    labels = [document.tokens.labels if answers_only else _all_text(document.tokens.ids) for document in documents]
    plan = plan_splice(ids, lengths, labels=labels)
    weights: list[float] = []
    for document, counts in zip(documents, lengths):
        left = iter(counts)
        for token, weight in zip(document.tokens.ids, answer_weights(document.tokens.labels)):
            weights += [0.0] * next(left) if token == IMAGE_TOKEN else [weight]
    return plan, torch.tensor(weights, dtype=torch.float32)[plan.target_rows.long() + 1]


def _all_text(ids: list[int]) -> list[int]:
    return [IGNORE_LABEL if token == IMAGE_TOKEN else token for token in ids]


def document_rows(document: Document) -> int:
    """Rows that a document takes in a batch."""
    return len(document.tokens.ids) + sum(len(rows) - 1 for rows in document.scenes)


def answer_weights(labels: list[int]) -> list[float]:
    """Each label's share: an answer of n tokens weighs sqrt(n) in all, so that long ones don't drown a "yes".

    >>> answer_weights([-100, 5, 6, 7, 8, -100, 9])
    [0.0, 0.5, 0.5, 0.5, 0.5, 0.0, 1.0]
    """
    weights: list[float] = []
    for is_answer, run in groupby(labels, key=lambda label: label != IGNORE_LABEL):
        length = len(list(run))
        weights += [length**-0.5 if is_answer else 0.0] * length
    return weights


def evaluate_language(task: LanguageTask, per_task: int = 50) -> dict[str, Any]:
    """Scores of a decoder on scenes with held-out combinations, told in words or in rows of words.

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
    questions = list(heldout_questions(random.Random("validation"), per_task, task.tokenizer))
    torch.manual_seed(0)  # the rows' noise
    for start in range(0, len(questions), 25):
        chunk = questions[start : start + 25]
        documents = [document for _, document in chunk]
        plan, _ = plan_documents(documents, answers_only=True)
        hidden_RD = task.hidden(plan, documents)[plan.target_rows]
        loss_sum += ops.linear_cross_entropy(hidden_RD, task.decoder.lm_head.weight, plan.targets, reduction="sum").item()
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
