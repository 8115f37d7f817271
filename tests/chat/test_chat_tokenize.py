import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmmblocks.chat import (
    TEMPLATES,
    Piece,
    Template,
    decode_supervised,
    encode_chat,
    load_tokenizer,
    tokenize,
)
from lmmblocks.spec import LmmError

HUMAN = Template("human", "Be kind.", roles=("Human", "Assistant"))
CHATS = [TEMPLATES["vicuna_v1"], TEMPLATES["llava_v1"], HUMAN]
MODES = ["pieces", "llava15"]
FRAGMENTS = [
    "</s>", "<s>", "<unk>", "<|end|>", "<|begin|>", " ASSISTANT: ", "USER:", "Assistant:", "###",
    " ", "\n", "\t", "7", "0.25", "cat", " cat", "猫", "。", "🙂", "é", "e\u0301", "\u200b", "\x00", "{\"a\": 1}", "Ω",
]  # fmt: skip
SLOW_OK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(characters, max_size=4)), max_size=6).map("".join)
texts = texts.filter(lambda text: "<image>" not in text and "<0x" not in text)
questions = st.lists(st.one_of(texts, st.just("<image>")), max_size=4).map("".join)
conversations = st.lists(st.tuples(questions, texts), min_size=1, max_size=3)


def messages_of(turns):
    return [{"role": role, "content": content} for turn in turns for role, content in zip(("user", "assistant"), turn, strict=True)]


@settings(SLOW_OK, max_examples=100)
@given(template=st.sampled_from(CHATS), mode=st.sampled_from(MODES), turns=conversations)
def test_supervised_tokens_are_the_answers_and_their_ends(tiny, template, mode, turns):
    tokens = encode_chat(messages_of(turns), template, tiny, mode=mode)
    assert decode_supervised(tokens, tiny) == [answer for _, answer in turns]
    assert tokens.labels.count(tiny.eos_token_id) == len(turns)
    assert len(tokens.ids) == len(tokens.labels)
    assert all(label in (-100, token) for token, label in zip(tokens.ids, tokens.labels, strict=True))


@pytest.mark.parametrize("mode", MODES)
@SLOW_OK
@given(caption=texts, images=st.integers(1, 3))
def test_supervised_tokens_of_plain_are_caption_and_newline(tiny, mode, caption, images):
    messages = messages_of([("Describe it. " + "<image>" * images, caption)])
    tokens = encode_chat(messages, "plain", tiny, mode=mode)
    prompt = encode_chat(messages[:1], "plain", tiny, mode=mode, add_generation_prompt=True)
    at_start, after_special = _adds_a_space(tiny)
    separator = " " if after_special or (at_start and mode == "llava15") else ""
    assert decode_supervised(tokens, tiny, separator=separator) == [caption + "\n"]
    assert tokens.ids[: len(prompt.ids)] == prompt.ids
    assert prompt.ids.count(-200) == images
    assert tokens.labels[: len(prompt.ids)] == [-100] * len(prompt.ids)


def _adds_a_space(tokenizer):
    """Whether the tokenizer itself puts a space before text: at the start, after a special token."""
    strings = ("c", tokenizer.eos_token + "c")
    tokens = [tokenizer.convert_ids_to_tokens(tokenizer(string).input_ids) for string in strings]
    return tuple("▁" in "".join(token) for token in tokens)


@pytest.mark.parametrize("mode", MODES)
@SLOW_OK
@given(turns=conversations)
def test_each_prompt_is_a_prefix_of_the_conversation_it_leads_to(tiny, mode, turns):
    messages = messages_of(turns)
    whole = encode_chat(messages, "vicuna_v1", tiny, mode=mode)
    for end in range(1, len(messages), 2):
        prompt = encode_chat(messages[:end], "vicuna_v1", tiny, mode=mode, add_generation_prompt=True)
        assert whole.ids[: len(prompt.ids)] == prompt.ids
        assert whole.labels[len(prompt.ids)] == whole.ids[len(prompt.ids)] != -100, "the answer begins here"
        answered = encode_chat(messages[: end + 1], "vicuna_v1", tiny, mode=mode)
        assert whole.ids[: len(answered.ids)] == answered.ids


@SLOW_OK
@given(turns=conversations)
def test_text_never_becomes_a_special_token_and_images_come_from_markers_only(tiny, turns):
    tokens = encode_chat(messages_of(turns), "vicuna_v1", tiny)
    specials = {id for id, token in tiny.added_tokens_decoder.items() if token.special}
    expected = [] if tiny.bos_token_id is None else [tiny.bos_token_id]
    expected += [tiny.eos_token_id] * len(turns)
    assert [id for id in tokens.ids if id in specials] == expected
    assert tokens.ids.count(-200) == sum(question.count("<image>") for question, _ in turns)


words = st.lists(st.sampled_from(["What", "cat", "is", "Black", "7", "猫", "no."]), min_size=1, max_size=5).map(" ".join)


@SLOW_OK
@given(turns=st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_pieces_of_ordinary_text_equal_the_tokenizer_on_the_whole_string(tiny, turns):
    rounds = (f"USER: {question} ASSISTANT: {answer}{tiny.eos_token}" for question, answer in turns)
    string = f"{TEMPLATES['vicuna_v1'].system} {''.join(rounds)}"
    tokens = encode_chat(messages_of(turns), "vicuna_v1", tiny)
    bos = [] if tiny.bos_token_id is None else [tiny.bos_token_id]
    assert tokens.ids == bos + tiny(string, add_special_tokens=False).input_ids


BREAKS_LLAVA = {
    "answer with the separator": ("<image>\nhi", "say ASSISTANT: x"),
    "answer with </s>": ("<image>\nhi", "a</s>b"),
    "empty answer": ("<image>\nhi", ""),
    "question with <unk>": ("<image>\nwhat is <unk>?", "nothing"),
    "answer with <unk>": ("<image>\nhi", "an <unk> token"),
    "digits": ("<image>\nhow many?", "7"),
    "CJK": ("<image>\nwhat?", "猫"),
    "newline": ("<image>\nwhat?", "\nA cat"),
}


@pytest.mark.parametrize("roles", [("USER", "ASSISTANT"), ("Human", "Assistant")], ids="-".join)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", list(BREAKS_LLAVA))
def test_what_masks_a_whole_sample_in_llava_is_supervised_in_full(tiny, case, mode, roles):
    template = replace(TEMPLATES["vicuna_v1"], roles=roles)
    turns = [BREAKS_LLAVA[case], ("And now?", "Black")]
    tokens = encode_chat(messages_of(turns), template, tiny, mode=mode)
    assert decode_supervised(tokens, tiny) == [answer for _, answer in turns]
    assert tokens.labels.count(tiny.eos_token_id) == 2


def test_ordinary_added_tokens_stay_tokens(tiny):
    tiny_size = len(tiny)
    if "<tool_call>" not in tiny.get_vocab():
        tiny = type(tiny)(tokenizer_object=tiny.backend_tokenizer, bos_token=tiny.bos_token, eos_token=tiny.eos_token)
        tiny.add_tokens(["<tool_call>"])
        assert len(tiny) == tiny_size + 1
    tokens = encode_chat(messages_of([("hi", "<tool_call>")]), "vicuna_v1", tiny)
    assert tiny.convert_tokens_to_ids("<tool_call>") in tokens.labels


def test_tokens_added_after_the_first_use_are_seen():
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_whitespace_tokenizer(), eos_token="</s>", unk_token="<unk>")
    messages = messages_of([("a", "new")])
    assert tokenizer.unk_token_id in encode_chat(messages, "vicuna_v1", tokenizer).labels
    tokenizer.add_tokens(["new"])
    assert tokenizer.convert_tokens_to_ids("new") in encode_chat(messages, "vicuna_v1", tokenizer).labels


@pytest.mark.parametrize("way", ["given", "loaded"])
def test_a_tokenizer_with_dropout_cuts_a_text_in_one_way(tmp_path, way):
    """Dropout of merges is saved in ``tokenizer.json``, and would be followed in every answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(["a question, an answer"] * 9, trainer)
    messages = messages_of([("a question", "an answer")])
    expected = encode_chat(messages, "vicuna_v1", PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    backend.model.dropout = 0.9
    for _ in range(5):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
        if way == "loaded":
            tokenizer.save_pretrained(tmp_path)
            assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["dropout"]
            tokenizer = load_tokenizer(tmp_path)
            assert len({tuple(tokenizer("a question, an answer").input_ids) for _ in range(5)}) == 1
        assert encode_chat(messages, "vicuna_v1", tokenizer) == expected


def _whitespace_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@dataclass
class ChatML:
    """A user's template with the tokenizer's own special tokens."""

    name: str = "chatml"
    stop: tuple[str, ...] = ()

    def render(self, messages, *, add_generation_prompt=False):
        pieces = []
        for message in messages:
            train = message["role"] == "assistant"
            pieces += [Piece("special", "<|begin|>"), Piece("text", f"{message['role']}\n")]
            pieces += [
                Piece("text", message["content"], train=train),
                Piece("special", "<|end|>", train=train),
            ]
        return pieces


def test_own_templates_place_special_tokens(tiny_llama):
    messages = messages_of([("hi <|end|>", "there")])
    with pytest.raises(LmmError, match=r"special token '<\|begin\|>', which the tokenizer does not have"):
        encode_chat(messages, ChatML(), tiny_llama)
    tokenizer = type(tiny_llama)(tokenizer_object=tiny_llama.backend_tokenizer, eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|begin|>", "<|end|>"]})
    begin, end = tokenizer.convert_tokens_to_ids(["<|begin|>", "<|end|>"])
    tokens = encode_chat(messages, ChatML(), tokenizer)
    assert [id for id in tokens.ids if id in (begin, end)] == [begin, end, begin, end]
    assert tokens.labels[-1] == end and tokens.labels.count(end) == 1


def test_adjacent_texts_are_encoded_as_one(tiny_llama):
    halves = [Piece("text", "The as", "system"), Piece("text", "sistant", "user")]
    assert tokenize(halves, tiny_llama) == tokenize([Piece("text", "The assistant")], tiny_llama)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", ["bos", "image"])
def test_a_text_without_letters_changes_nothing_of_the_next(tiny_llama, before, mode):
    pieces = [Piece("bos"), Piece(before), Piece("text", "", "user"), Piece("text", "cat", "assistant", train=True)]
    assert tokenize(pieces, tiny_llama, mode=mode) == tokenize([pieces[0], pieces[1], pieces[3]], tiny_llama, mode=mode)


def test_an_image_in_the_middle_of_a_question_stands_in_front_as_in_llava(tiny_llama):
    middle, front = (encode_chat(messages_of([(text, "a")]), "vicuna_v1", tiny_llama, mode="llava15") for text in ("see <image>", "<image>\nsee"))
    assert middle == front
    assert encode_chat(messages_of([("see <image>", "a")]), "vicuna_v1", tiny_llama) != front


def test_images_are_never_targets(tiny_llama):
    tokens = tokenize([Piece("image", train=True), Piece("eos", train=True)], tiny_llama, image_token=-7)
    assert tokens.ids == [-7, tiny_llama.eos_token_id]
    assert tokens.labels == [-100, tiny_llama.eos_token_id]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mode": "llava"}, "unknown tokenising mode 'llava'.*did you mean 'llava15'"),
        ({"template": "vicuna"}, "did you mean 'vicuna_v1'"),
        ({"tokenizer": object()}, "object has no `backend_tokenizer`"),
        ({"messages": messages_of([("hi \ud800", "a")])}, "half of a surrogate pair, '.ud800', at character"),
    ],
    ids=["mode", "template", "tokenizer", "surrogate"],
)
def test_bad_arguments_are_explained(tiny_llama, change, says):
    good = {"messages": messages_of([("hi", "a")]), "template": "vicuna_v1", "tokenizer": tiny_llama}
    with pytest.raises(LmmError, match=says):
        encode_chat(**{**good, **change})


def test_a_tokenizer_without_an_end_token_is_refused():
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_whitespace_tokenizer())
    with pytest.raises(LmmError, match="set tokenizer.eos_token"):
        encode_chat(messages_of([("hi", "a")]), "vicuna_v1", tokenizer)


def test_the_users_tokenizer_is_left_as_it_was(tiny):
    before = tiny.backend_tokenizer.to_str(), tiny.split_special_tokens, tiny("a</s> b").input_ids
    encode_chat(messages_of([("<image>\nhi </s>", "a")]), "vicuna_v1", tiny, mode="llava15")
    assert (tiny.backend_tokenizer.to_str(), tiny.split_special_tokens, tiny("a</s> b").input_ids) == before
