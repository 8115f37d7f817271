"""A Llama-style tokenizer for the tiny world: BPE, byte fallback, "▁" for a space, digits on their own.

As in Llama: ids 0, 1, 2 are `<unk>`, `<s>`, `</s>`, then the 256 bytes, then the learned pieces; a space is
put before the first text only (`legacy=False`); nothing is normalised; unknown characters become
bytes. Two things are chosen for short boxes and clean copying: the "0." that opens a fraction is one token,
so that `[0.12, 0.34, 0.56, 0.78]` is 16 tokens, and words, punctuation, newlines and Chinese characters
never merge with each other.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmmblocks.chat import FORMAT_PROMPTS, get_template, write_tokenizer

from ..scenes.corpus import corpus_text

SPECIALS = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
VOCABULARY = 1200
_PIECES = r"▁?\[?[01]\.(?=[0-9])|[0-9]|▁?[A-Za-z]+|[\u4e00-\u9fff]|\n|▁?[^▁\n0-9A-Za-z\u4e00-\u9fff]+|▁"
"""What may become one token: the start of a fraction, a digit, a word, a Chinese character, punctuation."""


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """Learn the pieces.

    Args:
        texts: the corpus.
        vocabulary: most tokens, the specials and bytes included.

    Returns:
        A `tokenizers.Tokenizer`.
    """
    from tokenizers import Tokenizer, models, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer()
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary - len(SPECIALS) - len(BYTES),
            min_frequency=2,
            initial_alphabet=["▁", "\n", *string.ascii_letters, *string.digits, *string.punctuation],
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    return _assemble([*SPECIALS, *BYTES, *sorted(learned["vocab"], key=learned["vocab"].get)], learned["merges"])


def _pre_tokenizer() -> Any:
    from tokenizers import Regex, pre_tokenizers

    spaces = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return pre_tokenizers.Sequence([spaces, pre_tokenizers.Split(Regex(_PIECES), "isolated")])


def _assemble(tokens: list[str], merges: list[Any]) -> Any:
    """The whole pipeline around a vocabulary in id order."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = _bos_in_front()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def _bos_in_front() -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", SPECIALS.index("<s>"))])


def corpus(documents: int, seed: int = 0) -> Iterator[str]:
    """What the tokenizer learns from: conversations, captions, and every prompt a template may bring."""
    rng = random.Random(f"tokenizer-{seed}")
    yield from (corpus_text(rng) for _ in range(documents))
    prompts = [
        *FORMAT_PROMPTS.values(),
        *(getattr(get_template(n), "system", "") for n in ("vicuna_v1", "llava_v1")),
    ]
    for prompt in prompts:  # often enough that each of their words becomes one token
        yield from [prompt] * max(1, documents // 100)


def save_tokenizer(tokenizer: Any, folder: str | Path, max_positions: int = 2048) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for AutoTokenizer.

    Args:
        tokenizer: what `train_tokenizer` returned.
        folder: created when missing.
        max_positions: the decoder's longest sequence.
    """
    from transformers import PreTrainedTokenizerFast

    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_positions,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **names,
    )
    write_tokenizer(wrapped, folder)
