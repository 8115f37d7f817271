"""Every template of the library with every kind of tokenizer: the text it writes, and what is learned of it."""

import json
import pickle
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmmblocks import registry
from lmmblocks.chat import (
    TEMPLATES,
    MarkedTemplate,
    Piece,
    answer_ends,
    answer_margins,
    decode_supervised,
    encode_chat,
    stop_texts,
    template_from_dict,
    template_to_dict,
    tokenize,
    written,
)
from lmmblocks.chat.text_encoder import text_encoder
from lmmblocks.spec import LmmError

IM = "<|im_start|>{0}\n{1}<|im_end|>\n".format
HEADER = "<|start_header_id|>{0}<|end_header_id|>\n\n{1}<|eot_id|>".format
V0 = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to "
    "the human's questions."
)
MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language.The visual content will be provided with the following "
    "format: <Image>visual content</Image>."
)
LLAVA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the "
    "user with a variety of tasks using natural language."
)
MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

TWO_TURNS = {
    "chatml": IM("user", "<image>q") + IM("assistant", "a") + IM("user", "r") + IM("assistant", "b"),
    "qwen2": IM("system", "You are a helpful assistant.") + IM("user", "<image>q") + IM("assistant", "a") + IM("user", "r") + IM("assistant", "b"),
    "qwen2_5": IM("system", QWEN) + IM("user", "<image>q") + IM("assistant", "a") + IM("user", "r") + IM("assistant", "b"),
    "llama2": "<s>[INST] <image>q [/INST] a </s><s>[INST] r [/INST] b </s>",
    "llama3": "<s>" + HEADER("user", "<image>q") + HEADER("assistant", "a") + HEADER("user", "r") + HEADER("assistant", "b"),
    "mistral": "<s>[INST] <image>q [/INST] a</s>[INST] r [/INST] b</s>",
    "mistral_v3": "<s>[INST] <image>q[/INST] a</s>[INST] r[/INST] b</s>",
    "phi3": "<|user|>\n<image>q<|end|>\n<|assistant|>\na<|end|>\n<|user|>\nr<|end|>\n<|assistant|>\nb<|end|>\n</s>",
    "gemma": "<s><start_of_turn>user\n<image>q<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n"
    "<start_of_turn>user\nr<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n",
    "vicuna_v0": f"<s>{V0}###Human: <image>q###Assistant: a###Human: r###Assistant: b###",
    "llava_v0": f"<s>{V0}###Human: <image>q###Assistant: a###Human: r###Assistant: b###",
    "v0_mmtag": f"<s>{MMTAG}###Human: <Image><image></Image>q###Assistant: a###Human: r###Assistant: b###",
    "v1_mmtag": f"<s>{MMTAG} USER: <Image><image></Image>q ASSISTANT: a</s>USER: r ASSISTANT: b</s>",
    "llava_llama_2": f"<s>[INST] <<SYS>>\n{LLAVA_2}\n<</SYS>>\n\n<image>q [/INST] a </s><s>[INST] r [/INST] b </s>",
    "mistral_instruct": "<s>[INST] <image>q [/INST] a </s>[INST] r [/INST] b </s>",
    "mpt": f"<|im_start|>system\n{MPT}<|im_end|><|im_start|>user\n<image>q<|im_end|><|im_start|>assistant\na<|im_end|>"
    "<|im_start|>user\nr<|im_end|><|im_start|>assistant\nb<|im_end|>",
    "chatml_direct": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>q<|im_end|><|im_start|>assistant\na<|im_end|>"
    "<|im_start|>user\nr<|im_end|><|im_start|>assistant\nb<|im_end|>",
}
WITH_SYSTEM = {
    "chatml": IM("system", "S") + IM("user", "q") + "<|im_start|>assistant\n",
    "qwen2": IM("system", "S") + IM("user", "q") + "<|im_start|>assistant\n",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nq [/INST]",
    "llama3": "<s>" + HEADER("system", "S") + HEADER("user", "q") + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] S\n\nq [/INST]",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\nq<|end|>\n<|assistant|>\n",
    "gemma": "<s><start_of_turn>user\nS\n\nq<end_of_turn>\n<start_of_turn>model\n",
    "vicuna_v0": "<s>S###Human: q###Assistant:",
    "v1_mmtag": "<s>S USER: q ASSISTANT:",
}
CHATS = [template for name, template in TEMPLATES.items() if name not in ("plain", "instructblip")]
MARKED = [template for template in CHATS if isinstance(template, MarkedTemplate)]


def messages_of(turns, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    return messages + [{"role": role, "content": content} for turn in turns for role, content in zip(("user", "assistant"), turn, strict=True)]


def test_every_template_of_markup_has_its_text_in_the_table():
    assert set(TWO_TURNS) == {template.name for template in MARKED}
    assert set(TEMPLATES) == set(registry.built_in("template")) and all(TEMPLATES[name].name == name for name in TEMPLATES)


@pytest.mark.parametrize("name", TWO_TURNS)
def test_the_text_is_that_of_the_published_format(name):
    pieces = TEMPLATES[name].render(messages_of([("<image>q", "a"), ("r", "b")]))
    assert written(pieces, bos="<s>", eos="</s>") == TWO_TURNS[name]


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_a_system_message_stands_where_the_format_has_it(name):
    pieces = TEMPLATES[name].render(messages_of([("q", "a")], "S")[:-1], add_generation_prompt=True)
    assert written(pieces, bos="<s>", eos="</s>") == WITH_SYSTEM[name]


@pytest.mark.parametrize("template", MARKED, ids=lambda template: template.name)
def test_a_template_survives_pickle_and_json(template):
    assert pickle.loads(pickle.dumps(template)) == template
    assert template_from_dict(json.loads(json.dumps(template_to_dict(template)))) == template


FRAGMENTS = [
    "</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>assistant\n", "<|eot_id|>", "<end_of_turn>", "<|end|>", "[/INST]", " [INST] ", "<<SYS>>",
    "###", " ASSISTANT: ", "user", "system\n", " ", "\n", "\t", "7", " cat", "猫", "。", "🙂", "é", "e\u0301", "\u200b", "\x00", "\x1c", "Ω", "{bos}",
    "{eos}",
]  # fmt: skip
SLOW_OK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(characters, max_size=4)), max_size=6).map("".join)
texts = texts.filter(lambda text: "<image>" not in text and "<0x" not in text)
questions = st.lists(st.one_of(texts, st.just("<image>")), max_size=4).map("".join)
conversations = st.lists(st.tuples(questions, texts), min_size=1, max_size=3)
systems = st.one_of(st.none(), texts)


@settings(SLOW_OK, max_examples=80)
@given(
    template=st.sampled_from(CHATS),
    mode=st.sampled_from(["pieces", "llava15"]),
    turns=conversations,
    system=systems,
)
def test_what_is_learned_is_the_answers_and_one_end_each(family, template, mode, turns, system):
    tokens = encode_chat(messages_of(turns, system), template, family, mode=mode)
    assert decode_supervised(tokens, family, template=template, mode=mode) == [answer for _, answer in turns]
    if not set(template.stop) - set(getattr(template, "tokens", ())):
        ends = answer_ends(template, family)
        assert sum(label in ends for label in tokens.labels) == len(turns)
    assert all(label in (-100, token) for token, label in zip(tokens.ids, tokens.labels, strict=True))
    assert tokens.ids.count(-200) == sum(question.count("<image>") for question, _ in turns) + (system or "").count("<image>")


@SLOW_OK
@given(
    template=st.sampled_from(CHATS),
    mode=st.sampled_from(["pieces", "llava15"]),
    turns=conversations,
    system=systems,
)
def test_a_prompt_and_its_answer_are_the_conversation(family, template, mode, turns, system):
    messages = messages_of(turns, system)
    whole = encode_chat(messages, template, family, mode=mode)
    first = len(messages) - 2 * len(turns)
    for end in range(first + 1, len(messages), 2):
        prompt = encode_chat(messages[:end], template, family, mode=mode, add_generation_prompt=True)
        said = len(prompt.ids)
        assert whole.ids[:said] == prompt.ids and set(prompt.labels[-1:]) == {-100}
        while said < len(whole.ids) and whole.labels[said] != -100:
            said += 1
        alone = encode_chat(messages[: end + 1], template, family, mode=mode)
        assert alone.ids[:said] == whole.ids[:said] and alone.labels[:said] == whole.labels[:said]
        assert set(alone.labels[said:]) <= {-100}, "nothing is learned after the end of the last answer"


@SLOW_OK
@given(template=st.sampled_from(CHATS), turns=conversations, system=systems)
def test_contents_never_become_special_tokens(family, template, turns, system):
    messages = messages_of(turns, system)
    vocabulary = family.backend_tokenizer
    kinds = {"bos": family.bos_token_id, "eos": family.eos_token_id}
    expected = [
        kinds.get(piece.kind, vocabulary.token_to_id(piece.text)) for piece in template.render(messages) if piece.kind not in ("text", "image")
    ]
    special = {index for index, token in family.added_tokens_decoder.items() if token.special}
    special |= {vocabulary.token_to_id(token) for token in getattr(template, "tokens", ())} | {*kinds.values()} - {None}
    found = [index for index in encode_chat(messages, template, family).ids if index in special]
    assert found == [index for index in expected if index is not None]


@SLOW_OK
@given(template=st.sampled_from(CHATS), turns=conversations, system=systems)
def test_the_same_holds_with_llamas_own_tokenizer(llama_with_markup, template, turns, system):
    messages = messages_of(turns, system)
    tokens = encode_chat(messages, template, llama_with_markup)
    assert decode_supervised(tokens, llama_with_markup, template=template) == [answer for _, answer in turns]
    prompt = encode_chat(messages[:-1], template, llama_with_markup, add_generation_prompt=True)
    assert tokens.ids[: len(prompt.ids)] == prompt.ids


@pytest.mark.parametrize("template", MARKED, ids=lambda template: template.name)
def test_word_pieces_are_those_of_the_answer_alone(template):
    """A tokenizer that loses spaces can't give the text back; its ids are still those of the answer and the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"abcdefghijklmnopqrstuvwxyz#:",
        *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
        "the",
        "cat",
    ]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]")
    tokenizer.add_special_tokens({"additional_special_tokens": list(template.tokens)})
    tokens = encode_chat(messages_of([("<image>the cat", "a cat"), ("the", "")]), template, tokenizer)
    ends = [*answer_ends(template, tokenizer)] if template.tokens else [tokenizer.eos_token_id]
    learned = [label for label in tokens.labels if label not in (-100, *ends)]
    text_end = "" if set(template.stop) <= set(template.tokens) else template.ending
    encode = text_encoder(tokenizer).encode
    assert learned == [*encode(f"a cat{text_end}"), *encode(text_end)]


def test_margins_are_what_the_model_says_around_an_answer(qwen):
    expected = {
        "vicuna_v1": (" ", ""),
        "llama2": (" ", " "),
        "chatml": ("", ""),
        "gemma": ("", ""),
        "vicuna_v0": (" ", "###"),
        "plain": ("", "\n"),
        "instructblip": (" ", ""),
    }
    assert {name: answer_margins(TEMPLATES[name], qwen) for name in expected} == expected


def test_an_answer_behind_a_token_that_swallows_the_newline_begins_with_the_tokenizers_space(phi):
    assert answer_margins(TEMPLATES["phi3"], phi) == (" ", "")
    tokens = [phi.convert_ids_to_tokens(index) for index in encode_chat(messages_of([("the cat", "the cat")]), "phi3", phi).ids]
    assert tokens.count("<0x0A>") == 0 and tokens[:2] == ["<|user|>", "▁the"]


def test_what_is_learned_keeps_the_newline_behind_a_token_that_swallows_it(phi):
    pieces = [Piece("special", "<|assistant|>"), Piece("text", "\nthe", "assistant", train=True)]
    assert "\n" in phi.decode(tokenize(pieces, phi).ids)
    assert "\n" not in phi.decode(tokenize([pieces[0], Piece("text", "\nthe", "user")], phi).ids)


def test_of_two_tokens_of_which_one_begins_the_other_the_longer_is_found():
    template = replace(TEMPLATES["chatml"], ending="<|im_end|>!", tokens=("<|im_start|>", "<|im_end|>", "<|im_end|>!"))
    assert template.stop == ("<|im_end|>!",)


def test_a_stop_string_that_is_a_token_is_not_looked_for_as_text(qwen):
    assert stop_texts(TEMPLATES["chatml"], qwen) == ()
    assert stop_texts(TEMPLATES["chatml"], qwen, ("<|im_end|>", "###")) == ("###",)


def test_a_default_system_prompt_is_a_variant():
    pirate = replace(TEMPLATES["gemma"], system="You are a pirate.")
    assert written(pirate.render(messages_of([("q", "a")])[:1], add_generation_prompt=True)).startswith("<start_of_turn>user\nYou are a pirate.\n\nq")
    assert written(TEMPLATES["chatml"].render(messages_of([("q", "a")], ""))).startswith("<|im_start|>system\n<|im_end|>\n")
    skipping = replace(pirate, empty_system=False)
    assert written(skipping.render(messages_of([("q", "a")], ""))).startswith("<start_of_turn>user\nq<end")


def test_all_tokens_that_the_tokenizer_lacks_are_named_with_what_to_do(tiny_llama):
    with pytest.raises(
        LmmError,
        match=r"'<\|im_start\|>', '<\|im_end\|>', which the tokenizer does not have: choose another.*add_special_tokens.*a row",
    ):
        encode_chat(messages_of([("q", "a")]), "chatml", tiny_llama)


GOOD = {"name": "mine", "opening": "Q: ", "to_answer": "\nA:", "ending": "{eos}", "to_question": "\nQ: "}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ending": ""}, "ending is empty, so a model would never learn to stop"),
        ({"ending": "{eos}\n"}, "goes on after the token that ends an answer"),
        ({"system": "S"}, "system is given without around_system"),
        ({"opening": None, "tokens": "<a>"}, "opening must be a string, found None; tokens must be strings"),
        ({"around_system": ("a", "b", "c")}, "around_system must be a pair of strings or None"),
        ({"image": ("a",)}, "image must be a pair of strings, found"),
        ({"empty_system": 1}, "empty_system must be true or false"),
    ],
)
def test_markup_that_makes_no_template_is_refused(change, says):
    with pytest.raises(LmmError, match=f"template 'mine': .*{says}"):
        MarkedTemplate(**{**GOOD, **change})


def test_a_template_without_a_place_for_a_system_message_says_so():
    with pytest.raises(LmmError, match="template 'mine' has no place for a system message"):
        MarkedTemplate(**GOOD).render(messages_of([("q", "a")], "S"))
