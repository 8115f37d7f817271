"""How a model is talked to, written for readers of chat templates: the tokenizer that lies in a model's folder.

It is a copy of the model's own, with the model's template as its chat template (`chat_template.jinja`, which tokenizers and processors of
transformers and vLLM read), instead of the one that it had of another model. Processors have the tokenizer put its first token before a
rendered prompt that doesn't begin with it; the copy does so where the template has it there, and nowhere else.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from ..chat import to_jinja
from ..spec import LmmError


def with_chat_template(tokenizer: Any, model: Any, *, images_apart: bool = False) -> Any:
    """Return a copy of a tokenizer that renders and cuts conversations as the model was trained.

    Args:
        tokenizer: the model's, or that with an image token.
        model: its template and its way to tokenise count.
        images_apart: the processor puts images before the prompt itself.

    Warns:
        UserWarning: the template can't be said in a string; the copy has no chat template then.
    """
    made = copy.deepcopy(tokenizer)
    try:
        made.chat_template = to_jinja(model.template, made, mode=model.tokenize_mode, images_apart=images_apart)
    except LmmError as error:
        made.chat_template = None
        warnings.warn(f"{error}: no chat template is written; readers other than lmmblocks have to be given prompts, or ids", stacklevel=2)
        return made
    if not _begins_with_bos(made):
        _begin_with(made, bos=images_apart)
    return made


def _begins_with_bos(tokenizer: Any) -> bool:
    messages = [{"role": "user", "content": "<image>"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)


def _begin_with(tokenizer: Any, *, bos: bool) -> None:
    """Have a tokenizer put its first token before texts, or nothing; and nothing after them."""
    expected = tokenizer("x", add_special_tokens=False).input_ids
    expected = [tokenizer.bos_token_id, *expected] if bos and tokenizer.bos_token is not None else expected
    if tokenizer("x").input_ids == expected:
        return
    from tokenizers.processors import TemplateProcessing

    for key, value in (("add_bos_token", bos), ("add_eos_token", False)):  # tokenizers that have these make the processor anew of them
        if key in tokenizer.init_kwargs or hasattr(tokenizer, key):
            tokenizer.init_kwargs[key] = value
            setattr(tokenizer, key, value)
    first = (tokenizer.bos_token, tokenizer.bos_token_id)
    single, tokens = (f"{first[0]} $A", [first]) if len(expected) > len(tokenizer("x", add_special_tokens=False).input_ids) else ("$A", [])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=tokens)
