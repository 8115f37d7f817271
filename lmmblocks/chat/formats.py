"""Response-format prompts: one line after the question that says what kind of answer is wanted.

Training data and evaluation take them from here, so a model is always asked the way it was taught.

Source: LLaVA-1.5 (arXiv 2310.03744), Tables 7 and 8; the wording of the region prompts is that of the
released `llava_v1_5_mix665k.json`. `json` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..spec import LmmError, closest

_SHORT_ANSWER = "Answer the question using a single word or phrase."

FORMAT_PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "none": "",
        "short_answer": _SHORT_ANSWER,
        "option_letter": "Answer with the option's letter from the given choices directly.",
        "option_letter_cn": "请直接回答选项字母。",
        "caption": "Provide a one-sentence caption for the provided image.",
        "unanswerable": "When the provided information is insufficient, respond with 'Unanswerable'.\n" + _SHORT_ANSWER,
        "region_description": "Please provide a short description for this region:",
        "region_box": "Please provide the bounding box coordinate of the region this sentence describes:",
        "json": "Answer with JSON only.",
    }
)

_LEADS_THE_QUESTION = ("region_description", "region_box")
"""Prompts that end in a colon and are followed by the box or the sentence on the same line."""


def with_format(question: str, fmt: str) -> str:
    """Ask `question` with the response-format prompt named `fmt`.

    The prompt goes on a new line after the question. The two region prompts are questions themselves: they
    stand before their box or sentence, on the same line. An empty question gives the prompt alone.

    Args:
        question: the question, or the box (`[0.10, 0.20, 0.50, 0.60]`) or sentence of a region prompt.
        fmt: a key of `FORMAT_PROMPTS`.

    Returns:
        The text of the user's turn.

    Raises:
        LmmError: `fmt` is not a known name.

    Example:
        >>> with_format("What colour is the cat?", "short_answer")
        'What colour is the cat?\\nAnswer the question using a single word or phrase.'
        >>> with_format("[0.00, 0.64, 0.30, 0.76]", "region_description")
        'Please provide a short description for this region: [0.00, 0.64, 0.30, 0.76]'
    """
    if fmt not in FORMAT_PROMPTS:
        raise LmmError(f"unknown response format {fmt!r}{closest(str(fmt), FORMAT_PROMPTS)}; known: {', '.join(FORMAT_PROMPTS)}")
    prompt = FORMAT_PROMPTS[fmt]
    if not prompt or not question:
        return prompt or question
    if fmt not in _LEADS_THE_QUESTION:
        return f"{question}\n{prompt}"
    return f"{prompt} {question}"
