"""A template written as a chat template: of the string that it renders, the tokenizer makes the ids and labels that we train with."""

import copy
from dataclasses import dataclass, replace
from functools import cache

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmmblocks.chat import (
    TEMPLATES,
    CaptionTemplate,
    MarkedTemplate,
    Template,
    encode_chat,
    from_jinja,
    to_jinja,
)
from lmmblocks.chat.messages import plain_messages
from lmmblocks.chat.pieces import split_markers
from lmmblocks.chat.text_encoder import text_encoder
from lmmblocks.spec import IGNORE_LABEL, LmmError

MODES = ("pieces", "llava15")
FAMILIES = ("llama", "llama_legacy", "phi", "gpt", "qwen", "ordinary", "unigram")
BRACKETS = {name for name, template in TEMPLATES.items() if "[INST]" in getattr(template, "opening", "") and "[INST]" not in template.tokens}
"""They write as text what is a special token of the tokenizers here, which a string can't tell apart."""

texts = st.text(alphabet="abcXYZ 12.,:;#'\n\t<>|\u732b\u00e9{}%\"\\", max_size=12).filter(lambda text: "<|" not in text and "|>" not in text)
questions = st.lists(texts, min_size=1, max_size=3).map("<image>".join)


@st.composite
def conversations(draw):
    turns = draw(st.integers(1, 3))
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(turns):
        messages.append({"role": "user", "content": draw(questions)})
        messages.append({"role": "assistant", "content": draw(texts).lstrip()})
    prompt = draw(st.booleans())
    return (messages[:-1] if prompt else messages), prompt


def says_image(message):
    """Whether a message holds the word, which a string can't tell from an image."""
    return any("<image>" in text for text in split_markers(plain_messages([message])[0]["content"]))


@pytest.fixture(scope="module")
def programs(make_family):
    """`programs(family, mode)`: a tokenizer with an image token, and the source of every template that can be written for it."""

    @cache
    def make(family, mode):
        tokenizer = make_family(family)
        tokenizer.add_tokens("<image>", special_tokens=True)
        sources, refused = {}, set()
        for name, template in TEMPLATES.items():
            try:
                sources[name] = to_jinja(template, tokenizer, mode=mode)
            except LmmError as error:
                assert "makes other ids of one string" in str(error)
                refused.add(name)
        return tokenizer, sources, refused

    return make


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_a_string_cannot_say_is_refused(programs, family, mode):
    _, sources, refused = programs(family, mode)
    swallowed = {"mistral_v3"} if family == "phi" else set()  # its [/INST] takes the space that we train as the answer's first
    assert refused <= BRACKETS | swallowed and len(sources) >= len(TEMPLATES) - len(BRACKETS) - 1


@pytest.mark.parametrize("mode", MODES)
def test_every_template_can_be_written_where_its_tokens_are_what_it_says(gpt, mode):
    tokenizer = copy.deepcopy(gpt)
    tokenizer.add_tokens("<image>", special_tokens=True)
    written = [name for name in TEMPLATES if name != "mistral_v3" and to_jinja(TEMPLATES[name], tokenizer, mode=mode)]
    assert len(written) == len(TEMPLATES) - 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(conversation=conversations())
def test_the_string_has_our_ids_and_what_we_refuse_is_refused(programs, family, mode, conversation):
    tokenizer, sources, _ = programs(family, mode)
    image = tokenizer.get_vocab()["<image>"]
    swallows = tokenizer.bos_token_id in text_encoder(tokenizer).swallowing
    messages, prompt = conversation
    word = any(says_image(message) for message in messages)
    for name, source in sources.items():
        render = {"chat_template": source, "add_generation_prompt": prompt}
        try:
            expected = encode_chat(messages, TEMPLATES[name], tokenizer, mode=mode, add_generation_prompt=prompt, image_token=image)
        except LmmError:
            expected = None
        if expected is None or word:
            with pytest.raises(jinja2.TemplateError, match="the word <image>|template|conversation" if expected is None else "the word <image>"):
                tokenizer.apply_chat_template(messages, **render)
            continue
        if name == "instructblip" and swallows and not prompt and messages[-1]["content"] and "text" not in asked(messages):
            with pytest.raises(jinja2.TemplateError, match="answer to no question: the tokenizer's begin token swallows the blank"):
                tokenizer.apply_chat_template(messages, **render)
            continue
        found = tokenizer.apply_chat_template(messages, **render, return_dict=True)["input_ids"]
        text = tokenizer.apply_chat_template(messages, **render, tokenize=False)
        assert found == expected.ids, (name, text, tokenizer.convert_ids_to_tokens(found), tokenizer.convert_ids_to_tokens(expected.ids))


def asked(messages):
    """Kinds of what stands before an InstructBLIP answer."""
    return {piece.kind for piece in TEMPLATES["instructblip"].render(messages[:1], add_generation_prompt=True)}


def test_a_blank_that_the_begin_token_swallows_is_refused_and_never_lost(programs):
    tokenizer, sources, _ = programs("gpt", "pieces")
    assert tokenizer.bos_token_id in text_encoder(tokenizer).swallowing
    nothing = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "1"}]
    with pytest.raises(jinja2.TemplateError, match="answer to no question: the tokenizer's begin token swallows the blank"):
        tokenizer.apply_chat_template(nothing, chat_template=sources["instructblip"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_mask_is_our_labels(programs, family):
    tokenizer, sources, _ = programs(family, "pieces")
    messages = [
        {"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And this?"}, {"role": "assistant", "content": "A dog on the mat."},
    ]  # fmt: skip
    image = tokenizer.get_vocab()["<image>"]
    for name, source in sources.items():
        shown = messages if name not in ("plain", "instructblip") else messages[:2]
        tokens = encode_chat(shown, TEMPLATES[name], tokenizer, image_token=image)
        out = tokenizer.apply_chat_template(shown, chat_template=source, return_dict=True, return_assistant_tokens_mask=True)
        assert out["input_ids"] == tokens.ids
        text = tokenizer.apply_chat_template(shown, chat_template=source, tokenize=False)
        assert whole_characters(out["assistant_masks"], text, tokenizer) == [int(label != IGNORE_LABEL) for label in tokens.labels], name


def whole_characters(mask, text, tokenizer):
    """Return a mask with all tokens of a character marked where one is: of the bytes at an answer's end, transformers 4 marks the first alone."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    marked = {span for span, flag in zip(spans, mask, strict=True) if flag}
    return [int(span in marked) for span in spans]


PARTS = {
    "a question": (["What?"], "What?"),
    "two texts": (["What ", "is it?"], "What is it?"),
    "an image in front": ([None, "What?"], "<image>\nWhat?"),
    "images in front": ([None, None, "What?"], "<image>\n<image>\nWhat?"),
    "an image after": (["What?", None], "What?\n<image>"),
    "images between": (["Is ", None, "like", None, "?"], "Is \n<image>\nlike\n<image>\n?"),
    "an image alone": ([None], "<image>"),
}


@pytest.mark.parametrize("parts, text", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["vicuna_v1", "chatml", "plain", "instructblip", "v1_mmtag"])
def test_parts_are_lines_of_one_text(programs, name, mode, parts, text):
    tokenizer, sources, _ = programs("llama", mode)
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    if name == "plain" and None not in parts:
        return
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": c}], chat_template=sources[name], tokenize=False, add_generation_prompt=True)
        for c in (content, text)
    ]
    assert rendered[0] == rendered[1] and rendered[0].count("<image>") == parts.count(None)


@pytest.mark.parametrize(
    "part, message",
    [({"type": "video"}, "content of type video: expected text or image"), ({"type": "text", "text": "a <image>"}, "a text holds the word <image>")],
)
def test_a_part_that_has_no_place_is_refused(programs, part, message):
    tokenizer, sources, _ = programs("gpt", "pieces")
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    with pytest.raises(Exception, match=message):
        tokenizer.apply_chat_template(messages, chat_template=sources["chatml"], add_generation_prompt=True)


MARKED = st.lists(st.sampled_from(["\\", "<image>", "<ima", "ge>", "a", " ", "\n", None]), min_size=1, max_size=8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["vicuna_v1", "chatml", "plain", "instructblip"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=MARKED, listed=st.booleans())
def test_the_word_image_is_never_an_image_and_never_the_other_way_round(programs, name, mode, words, listed):
    tokenizer, sources, _ = programs("gpt", mode)
    parts = [{"type": "image"} if word is None else {"type": "text", "text": word} for word in words]
    messages = [{"role": "user", "content": parts if listed else "".join(word or "<image>" for word in words)}]
    ours = {"mode": mode, "add_generation_prompt": True, "image_token": tokenizer.get_vocab()["<image>"]}
    theirs = {"chat_template": sources[name], "add_generation_prompt": True}
    try:
        expected = encode_chat(messages, TEMPLATES[name], tokenizer, **ours).ids
        found = tokenizer.apply_chat_template(messages, **theirs, return_dict=True)["input_ids"]
    except LmmError:  # plain without an image
        return
    except jinja2.TemplateError as error:
        assert "a text holds the word <image>, which in a string is an image" in str(error)
        assert says_image(messages[0]) or "<image>" in "".join(split_markers(plain_messages(messages)[0]["content"]))
    else:
        assert found == expected and not says_image(messages[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_says_what_it_was_written_from(programs, family, mode):
    tokenizer, sources, _ = programs(family, mode)
    for name, source in sources.items():
        assert from_jinja(source, tokenizer) == (TEMPLATES[name], mode)


def test_a_program_that_was_changed_is_not_what_its_note_says(programs):
    tokenizer, sources, _ = programs("gpt", "pieces")
    odd = replace(TEMPLATES["chatml"], name="odd #} -#}", system="#} {{ x }} -#}")
    source = to_jinja(odd, tokenizer)
    assert from_jinja(source, tokenizer) == (odd, "pieces")
    messages = [{"role": "user", "content": "x"}]
    expected = encode_chat(messages, odd, tokenizer, add_generation_prompt=True).ids
    rendered = {"chat_template": source, "add_generation_prompt": True, "return_dict": True}
    assert tokenizer.apply_chat_template(messages, **rendered)["input_ids"] == expected
    head, _, body = source.partition("\n")
    assert from_jinja(f"{head}\n{body.replace('assistant', 'helper')}", tokenizer) is None
    assert from_jinja(body, tokenizer) is None
    assert from_jinja(head.replace("odd", "o") + "}", tokenizer) is None


@pytest.mark.parametrize(
    "messages, prompt, message",
    [
        ([{"role": "user", "content": "x"}], False, "pass add_generation_prompt=True"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], True, "nothing to answer"),
        ([{"role": "user", "content": "x"}] * 2, True, "user and assistant in turn"),
        ([{"role": "assistant", "content": "x"}], False, "user and assistant in turn"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], True, "user and assistant in turn"),
    ],
)
def test_a_malformed_conversation_is_refused_in_words(programs, messages, prompt, message):
    tokenizer, sources, _ = programs("gpt", "pieces")
    for name in ("vicuna_v1", "chatml", "gemma"):
        with pytest.raises(Exception, match=message):
            tokenizer.apply_chat_template(messages, chat_template=sources[name], add_generation_prompt=prompt)


def test_a_variant_is_written_as_itself(programs):
    tokenizer, _, _ = programs("gpt", "pieces")
    variants = [
        Template("mine", system="Say \"{{ 'x' }}\" \\ {% raw %} \u732b \U0001f642.", roles=("Q", "A{bos}"), seps=("\n", "\r\n\t")),
        replace(TEMPLATES["chatml"], system="", image=("<|im_start|>", "\n")),
        replace(TEMPLATES["gemma"], around_system=None, empty_system=False),
        MarkedTemplate("lines", opening="Q: ", to_answer="\nA:", lead=" ", ending="{eos}", to_question="\nQ: ", empty_system=False),
        CaptionTemplate("caption", end="<end>"),
    ]
    image = tokenizer.get_vocab()["<image>"]
    messages = [{"role": "user", "content": "<image> see?"}]
    for template in variants:
        source = to_jinja(template, tokenizer)
        none = {"chat_template": source, "add_generation_prompt": True, "return_dict": True}
        if not getattr(template, "empty_system", True):
            asked = [{"role": "system", "content": ""}, *messages]
            ids = encode_chat(asked, template, tokenizer, add_generation_prompt=True, image_token=image).ids
            assert tokenizer.apply_chat_template(asked, **none)["input_ids"] == ids
        expected = encode_chat(messages, template, tokenizer, add_generation_prompt=True, image_token=image).ids
        assert tokenizer.apply_chat_template(messages, **none)["input_ids"] == expected


@dataclass(frozen=True)
class Shouting(MarkedTemplate):
    def _content(self, content, role, *, train=False):
        return super()._content(content.upper(), role, train=train)


def test_a_class_that_may_do_anything_is_refused(gpt):
    chatml = TEMPLATES["chatml"]
    own = Shouting("loud", **{field: getattr(chatml, field) for field in ("opening", "to_answer", "ending", "to_question", "tokens")})
    with pytest.raises(LmmError, match="template 'loud' can't be written as a chat template: its class Shouting may do anything"):
        to_jinja(own, gpt)


def test_markup_in_front_of_images_that_a_processor_puts_first_is_refused(gpt):
    with pytest.raises(LmmError, match="'chatml' can't be written as a chat template: the processor puts images before the whole prompt"):
        to_jinja(TEMPLATES["chatml"], gpt, images_apart=True)
