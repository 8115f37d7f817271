"""``generate``: questions in, answers out; one, many, or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..spec import LmmError
from .decode import Answer, decode, new_cache, read_prompts
from .options import Options
from .prompts import Question, as_prompt, as_questions, tell_of_questions_left_out

if TYPE_CHECKING:
    from ..lmm import LMM


def generate(
    model: LMM,
    prompts: Any,
    images: Any = None,
    *,
    stream: Callable[[str], Any] | None = None,
    **options: Any,
) -> str | list[str]:
    """Answer one prompt or many.

    Prompts of a list are decoded side by side, packed; each gets the answer it would get alone.

    Args:
        model: an ``LMM`` with a tokenizer.
        prompts: a text (one question), a list of messages (``{"role", "content"}``, ending with the user's), or a list of these. In a text
            without ``<image>`` the images go in front; messages mark each image.
        images: for one prompt, an image (path or PIL) or a list of images; for a list of prompts, a list with one such entry (or None) each.
        stream: called with each piece of text as it is generated; for one prompt.
        **options: ``max_new_tokens=128, temperature=0.0, top_p=1.0, top_k=0, stop=(), seed=None``; see ``Options``.

    Returns:
        The answer, or a list of answers for a list of prompts: without the end-of-sequence token and its leading space, cut before a
        stop string.

    Raises:
        LmmError: an option, a prompt or an image that can't be used, or a conversation longer than the decoder's positions.

    Example:
        ``model.generate(["What is it?", "Hello"], images=[["cat.jpg"], None], temperature=0.2)``
    """
    settings = Options.of(options)
    questions, single = as_questions(prompts, images)
    if stream is not None and not single:
        raise LmmError("stream takes the text of one prompt, found a list of prompts: leave stream out, or ask one by one")
    texts = [""] * len(questions)
    for index, text in _answers(model, questions, settings):
        texts[index] += text
        if stream is not None:
            stream(text)
    return texts[0] if single else texts


def generate_stream(model: LMM, prompt: Any, images: Any = None, **options: Any) -> Iterator[str]:
    """Answer one prompt piece by piece.

    Args:
        model: an ``LMM`` with a tokenizer.
        prompt: a text or a list of messages.
        images: an image or a list of images.
        **options: as for ``generate``.

    Returns:
        Pieces of text; joined, they are what ``generate`` returns. They hold whole characters and nothing of a stop string.

    Raises:
        LmmError: as ``generate``, and before the first piece.
    """
    settings = Options.of(options)
    questions, single = as_questions(prompt, images)
    if not single:
        raise LmmError("generate_stream answers one prompt, found a list of prompts: use generate, or ask one by one")
    return (text for _, text in _answers(model, questions, settings))


def _answers(model: LMM, questions: list[Question], options: Options) -> Iterator[tuple[int, str]]:
    """Read the prompts now; return an iterator over (question, text) that generates."""
    spec = model.input_spec
    prompts = [as_prompt(question, spec) for question in questions]
    if not prompts:
        return iter(())
    tell_of_questions_left_out(questions, spec.template)
    answers = [Answer(model, options) for _ in prompts]
    cache = new_cache(model, len(prompts))
    return decode(model, cache, read_prompts(model, cache, prompts, options), answers, options)
