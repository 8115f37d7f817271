"""Templates derived from a tokenizer's own: equal to transformers' rendering and ids, or refused with the reason."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmmblocks.chat import (
    TEMPLATES,
    decode_supervised,
    encode_chat,
    from_tokenizer,
    get_template,
    template_from_dict,
    template_to_dict,
    written,
)
from lmmblocks.spec import LmmError

TURNS = "{% for m in messages %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = TURNS + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}" + PROMPT
OWN_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
SPLIT = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}"
)
ALTERNATES = "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
LLAMA2 = (
    SPLIT + ALTERNATES + "{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}{% if loop.first and s is defined %}"
    "{{ '<<SYS>>\n' + s + '\n<</SYS>>\n\n' }}{% endif %}{{ m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    SPLIT + "{{ bos_token }}" + ALTERNATES + "{% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.first and s is defined %}{{ s + '\n\n' }}{% endif %}"
    "{{ m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}" + TURNS + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PHI3 = (
    TURNS + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}" + SPLIT + ALTERNATES + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{% if loop.first and s is defined %}{{ s + '\n\n' }}{% endif %}{{ m.content + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LAST_SYSTEM = (
    SPLIT + ALTERNATES + "{% if m.role == 'user' %}[INST] {% if loop.last and s is defined %}{{ s }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ZEPHYR = (
    TURNS + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
WORDS_ONLY = TURNS + "{{ m.role + ': ' + m.content + '###' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
EMPTY_IS_NONE = "{% if messages[0].role == 'system' and not messages[0].content %}{% set messages = messages[1:] %}{% endif %}" + CHATML

PUBLISHED = {
    "chatml": CHATML, "qwen2": OWN_SYSTEM + CHATML, "llama2": LLAMA2, "mistral": MISTRAL, "llama3": LLAMA3, "phi3": PHI3, "gemma": GEMMA,
}  # fmt: skip
"""As published, without the trimming of contents."""
DERIVABLE = {
    **PUBLISHED,
    "zephyr": ZEPHYR,
    "gemma without system": NO_SYSTEM + GEMMA,
    "words": WORDS_ONLY,
    "empty": EMPTY_IS_NONE,
}
SETTINGS = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

FRAGMENTS = [
    "</s>",
    "<|im_end|>",
    "<|im_start|>user\n",
    "[/INST]",
    "<|eot_id|>",
    "{{ x }}",
    "&lt;",
    " ",
    "\n",
    "\t",
    "user",
    "猫",
    "🙂",
    "\u200b",
    "\x00",
]
characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(characters, max_size=4)), max_size=5).map("".join)
texts = texts.filter(lambda text: "<image>" not in text and "<0x" not in text)
conversations = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)
words = st.lists(st.sampled_from(["What", "cat", "is", "Black", "7", "no."]), min_size=1, max_size=4).map(" ".join)


def messages_of(turns, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    return messages + [{"role": role, "content": content} for turn in turns for role, content in zip(("user", "assistant"), turn, strict=True)]


def with_template(tokenizer, source):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = source
    return tokenizer


@pytest.fixture(scope="module")
def own_gpt(make_family):
    """Its chat template is set by each test."""
    return make_family("gpt", without=("[INST]", "[/INST]"))


@pytest.mark.parametrize("source", DERIVABLE)
@SETTINGS
@given(turns=conversations, system=st.one_of(st.none(), texts), prompt=st.booleans())
def test_the_text_is_that_of_apply_chat_template(own_gpt, source, turns, system, prompt):
    own_gpt.chat_template = DERIVABLE[source]
    template = from_tokenizer(own_gpt)
    messages = messages_of(turns, None if template.around_system is None else system)
    messages = messages[:-1] if prompt else messages
    expected = own_gpt.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert written(template.render(messages, add_generation_prompt=prompt)) == expected


@pytest.mark.parametrize("source", DERIVABLE)
@SETTINGS
@given(turns=conversations)
def test_answers_and_their_ends_are_learned(own_gpt, source, turns):
    own_gpt.chat_template = DERIVABLE[source]
    tokens = encode_chat(messages_of(turns), "auto", own_gpt)
    assert decode_supervised(tokens, own_gpt, template="auto") == [answer for _, answer in turns]


@pytest.mark.parametrize("source", [name for name in DERIVABLE if name != "words"])
@SETTINGS
@given(
    turns=st.lists(st.tuples(words, words), min_size=1, max_size=3),
    system=st.one_of(st.none(), words),
    prompt=st.booleans(),
)
def test_the_ids_are_those_of_apply_chat_template(any_family, source, turns, system, prompt):
    any_family.chat_template = DERIVABLE[source]
    template = from_tokenizer(any_family)
    messages = messages_of(turns, None if template.around_system is None else system)
    messages = messages[:-1] if prompt else messages
    expected = any_family.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    assert encode_chat(messages, template, any_family, add_generation_prompt=prompt).ids == expected


@pytest.fixture(scope="module", params=["llama", "llama_legacy", "phi"])
def any_family(request, make_family):
    return make_family(request.param, without=("[INST]", "[/INST]"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_librarys_templates_are_the_published_ones(gpt, name):
    """Where the tokenizer's own tokens have no pieces of their own in a derived template, the texts are compared."""
    derived, own = from_tokenizer(with_template(gpt, PUBLISHED[name])), TEMPLATES[name]
    for system in (None, "S", ""):
        for messages, prompt in (
            (messages_of([("q", "a"), ("r", "b")], system), False),
            (messages_of([("q", "")], system)[:-1], True),
        ):
            ours = written(own.render(messages, add_generation_prompt=prompt), bos=gpt.bos_token, eos=gpt.eos_token)
            assert ours == written(derived.render(messages, add_generation_prompt=prompt))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_librarys_templates_have_the_ids_of_the_published_ones(gpt, name):
    tokenizer = with_template(gpt, PUBLISHED[name])
    messages = messages_of([("What is it?", "A cat."), ("Black?", "No, 7.")], "Be brief.")
    assert encode_chat(messages, name, tokenizer).ids == tokenizer.apply_chat_template(messages, return_dict=False)


def test_a_derived_template_is_a_plain_value(gpt):
    template = from_tokenizer(with_template(gpt, OWN_SYSTEM + CHATML))
    assert pickle.loads(pickle.dumps(template)) == template == template_from_dict(json.loads(json.dumps(template_to_dict(template))))
    assert from_tokenizer(with_template(gpt, CHATML), name="chatml") == TEMPLATES["chatml"]
    assert from_tokenizer(with_template(gpt, EMPTY_IS_NONE)).empty_system is False


@pytest.mark.parametrize("source", [NO_SYSTEM + GEMMA, LAST_SYSTEM], ids=["refused", "dropped"])
def test_where_a_system_message_is_refused_or_dropped_there_is_no_place_for_one(gpt, source):
    template = from_tokenizer(with_template(gpt, source))
    assert template.around_system is None
    with pytest.raises(LmmError, match="no place for a system message"):
        template.render(messages_of([("q", "a")], "S"))


def test_auto_is_the_tokenizers_own(gpt):
    tokenizer = with_template(gpt, ZEPHYR)
    messages = messages_of([("<image>What?", "A cat.")])
    assert encode_chat(messages, "auto", tokenizer) == encode_chat(messages, from_tokenizer(tokenizer), tokenizer)
    assert get_template("auto", tokenizer) == replace(from_tokenizer(tokenizer), name="auto")
    tokenizer.chat_template = CHATML
    assert get_template("auto", tokenizer).ending == "<|im_end|>"
    tokenizer.chat_template = {"tool_use": ZEPHYR, "default": CHATML}
    assert get_template("auto", tokenizer).ending == "<|im_end|>"


THINKS = CHATML.replace("m['content']", "(m['content'].split('</think>')[-1] if m.role == 'assistant' else m['content'])")
EMPTY_THOUGHT = CHATML.replace(
    "m['role'] + '\n'",
    "m['role'] + '\n' + ('<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' else '')",
)
REFUSED = {
    "trims": (CHATML.replace("m['content']", "m['content'] | trim"), "it trims the contents of the system's messages.*prompts of 'chatml'"),
    "trims llama3": (LLAMA3.replace("m.content", "m.content | trim"), "it trims.*prompts of 'llama3' are the same"),
    "date": ("{{ strftime_now('%d %b %Y') }}" + CHATML, "depends on today's date.*choose a template by name .plain, vicuna_v1"),
    "reasoning": (THINKS, "it takes reasoning out of the assistant's messages"),
    "empty reasoning": (EMPTY_THOUGHT, "before answers it writes once .* and once '.*<think>.*prompts of 'chatml' are the same"),
    "drops": (CHATML.replace("m['content']", "''"), "it writes a message of the user not at all"),
    "repeats": (CHATML.replace("m['content']", "m['content'] + m['content']"), "writes a message of the user 2 times"),
    "no prompt": (CHATML.removesuffix(PROMPT), "a generation prompt ends with '<.im_end.>\\\\n', but .* stands before an answer"),
    "no end": (CHATML.replace("+ '<|im_end|>'", ""), "no token ends every answer"),
    "escapes": (CHATML.replace("m['content']", "m['content'] | replace('<', '&lt;')"), "in a way of its own"),
    "fails": ("{{ raise_exception('only for tools') }}", "it refuses a conversation .TemplateError: only for tools"),
    "syntax": ("{% if %}", "it refuses a conversation .TemplateSyntaxError"),
    "long": (CHATML.replace("'<|im_start|>' +", "('<|im_start|>' if loop.index < 8 else '>') +"), "conversations of 8 messages don't follow"),
    "soft switch": (CHATML.replace("'<|im_end|>'", "(' ' if m.content.endswith('/no') else '') + '<|im_end|>'"), "it writes '/no' of the"),
    "tools' words": (CHATML.replace("m['content']", "('x' if m.content.startswith('<tool>') else m.content)"), "it writes '<tool>'"),
    "replaces": (CHATML.replace("m['content']", "m.content.replace('http', 'x')"), "it writes 'http' of the"),
    "marks a sentence": (CHATML.replace("m['content']", "(m.content if m.content[-1:] == '?' else m.content + ' ')"), "it writes '.?' of the"),
    "cuts": (CHATML.replace("m['content']", "m.content[:2000]"), "it writes 'a word a word .* of the"),
    "breaks lines": (CHATML.replace("m['content']", "m.content | wordwrap(60)"), "it writes 'a word a word .* of the|it trims"),
    "in a block of what is learned": (
        CHATML.replace("+ m['content']", "}}{% generation %}{{ m.content | replace('/x', '') }}{% endgeneration %}{{ ''"), "it writes '/x' of the"
    ),
    "placeholder": ("{{ '{bos}' }}" + CHATML, "its markup holds '{bos}'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_chat_template_of_another_shape_is_refused_with_the_reason(gpt, case):
    source, says = REFUSED[case]
    with pytest.raises(LmmError, match=f"can't be taken apart into markup and contents: .*(?:{says})"):
        from_tokenizer(with_template(gpt, source))


def test_a_date_that_is_not_written_is_no_reason(gpt):
    unused = "{% if tools %}{{ strftime_now('%d') }}{% endif %}" + CHATML
    assert from_tokenizer(with_template(gpt, unused), "chatml") == TEMPLATES["chatml"]


@pytest.mark.parametrize("case", ["no template", "no tokenizer"])
def test_without_a_chat_template_there_is_nothing_to_derive(gpt, case):
    tokenizer = None if case == "no tokenizer" else with_template(gpt, None)
    with pytest.raises(
        LmmError,
        match="there is no tokenizer: pass" if tokenizer is None else "has no chat template to derive one from",
    ):
        get_template("auto", tokenizer)
