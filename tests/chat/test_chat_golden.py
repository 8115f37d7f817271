"""LLaVA's own ids and labels: the recorded cases, and its algorithm written out again with sentencepiece."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmmblocks.chat import decode_supervised, encode_chat

IMAGE, IGNORE, BOS, EOS, SPACE = -200, -100, 1, 2, "▁"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def messages_of(conversation):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(conversation)]


def read(part):
    return json.loads((Path(__file__).parents[1] / "golden" / "tokens.json").read_text(encoding="utf-8"))[part]


def test_recorded_conversations_are_reproduced(llama):
    for case in read("v1"):
        tokens = encode_chat(messages_of(case["conv"]), "vicuna_v1", llama[False], mode="llava15")
        assert tokens.ids == case["input_ids"]
        assert tokens.labels == case["labels"]


def test_recorded_captions_are_reproduced(llama):
    for case in read("plain"):
        tokens = encode_chat(messages_of(["<image>", case["caption"]]), "plain", llama[False], mode="llava15")
        assert tokens.ids == case["input_ids"]
        assert tokens.labels == case["labels"]


def test_legacy_tokenizer_differs_after_the_answer_only(llama):
    case = read("v1")[0]
    tokens = encode_chat(messages_of(case["conv"]), "vicuna_v1", llama[True], mode="llava15")
    end = case["input_ids"].index(EOS) + 1
    assert tokens.ids == [*case["input_ids"][:end], 3148, 1001, *case["input_ids"][end + 1 :]]
    assert len(tokens.ids) == 77


@pytest.mark.parametrize("mode", ["pieces", "llava15"])
def test_prompt_ends_with_the_colon_and_the_answer_brings_its_space(llama, mode):
    messages = messages_of(["<image>\nWhat color is the cat?", "Black", "Is it asleep?", "No"])
    whole = encode_chat(messages, "vicuna_v1", llama[False], mode=mode).ids
    for end, first in ((1, 6054), (3, 1939)):
        prompt = encode_chat(messages[:end], "vicuna_v1", llama[False], mode=mode, add_generation_prompt=True).ids
        assert prompt[-5:] == [319, 1799, 9047, 13566, 29901]
        assert whole[: len(prompt) + 2] == [*prompt, first, EOS]


def test_pieces_mode_differs_from_llava15_only_in_the_space_after_an_image(llama):
    messages = messages_of(["<image>\nWhat color is the cat?", "Black"])
    pieces, llava15 = (encode_chat(messages, "vicuna_v1", llama[False], mode=mode) for mode in ("pieces", "llava15"))
    after = llava15.ids.index(IMAGE) + 1
    assert llava15.ids[after] == 29871
    assert llava15.ids[:after] + llava15.ids[after + 1 :] == pieces.ids


def test_no_llama_token_crosses_the_start_of_an_answer(llama):
    crossing = [token for token in llama[False].get_vocab() if SPACE in token.lstrip(SPACE)]
    assert crossing == []


class OriginalTokenizer:
    """transformers 4.37.2's LlamaTokenizer, for text whose only special token is `</s>`."""

    def __init__(self, path, legacy):
        from sentencepiece import SentencePieceProcessor
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        proto = ModelProto.FromString(path.read_bytes())
        proto.normalizer_spec.add_dummy_prefix = legacy
        self.legacy = legacy
        self.model = SentencePieceProcessor(model_proto=proto.SerializeToString())

    def __call__(self, text):
        if not self.legacy and text:
            text = SPACE + text.replace(SPACE, " ")
        ids = [BOS]
        for index, part in enumerate(text.split("</s>")):
            ids += ([EOS] if index else []) + (self.model.encode(part) if part else [])
        if not self.legacy and ids[1:3] == [self.model.piece_to_id(SPACE), EOS]:
            del ids[1]
        return ids

    def with_images(self, text):
        """LLaVA's tokenizer_image_token."""
        ids = [BOS]
        for index, chunk in enumerate(text.split("<image>")):
            ids += ([IMAGE] if index else []) + self(chunk)[1:]
        return ids


def preprocess_v1(conversation, tokenizer, has_image):
    """LLaVA's preprocess_multimodal and preprocess_v1: ids, labels, and whether the counting came out."""
    text = SYSTEM + " "
    for index, value in enumerate(conversation):
        if has_image and "<image>" in value:
            value = ("<image>\n" + value.replace("<image>", "").strip()).strip()
        text += f"{('USER', 'ASSISTANT')[index % 2]}: {value}{(' ', '</s>')[index % 2]}"
    encode = tokenizer.with_images if has_image else tokenizer
    ids = encode(text)
    labels, done = list(ids), 1
    labels[0] = IGNORE
    for index, part in enumerate(text.split("</s>")[:-1]):
        question = part.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        merged = int(index > 0 and not tokenizer.legacy)
        masked = len(encode(question)) - 2 - merged
        labels[done : done + masked] = [IGNORE] * masked
        done += len(encode(part)) - merged
    return ids, labels, done == len(ids)


words = st.sampled_from(
    [
        "What",
        " is",
        "it",
        "?",
        "  ",
        " ",
        "\n",
        "7",
        "0.25",
        "猫",
        "你好",
        "🙂",
        "é",
        "USER:",
        "\t",
        "▁",
        "a",
        ".",
        ":",
        "]",
    ]
)
texts = st.lists(words, min_size=1, max_size=6).map("".join)
places = st.sampled_from(["<image>\n{}", "{}\n<image>", "{}<image>{}", "<image>"])
questions = st.tuples(places, texts).map(lambda pair: pair[0].replace("{}", pair[1]))
turns = st.lists(st.tuples(texts, texts), max_size=2)


@pytest.fixture(scope="module", params=[False, True], ids=["legacy=False", "legacy=True"])
def original(request, llama_vocabulary):
    return OriginalTokenizer(llama_vocabulary, request.param)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(first=st.one_of(questions, texts), answer=texts, more=turns)
def test_any_conversation_has_the_ids_and_labels_of_llava(llama, original, first, answer, more):
    conversation = [first, answer, *(text for turn in more for text in turn)]
    ids, labels, counted = preprocess_v1(conversation, original, has_image="<image>" in first)
    tokens = encode_chat(messages_of(conversation), "vicuna_v1", llama[original.legacy], mode="llava15")
    assert counted, "LLaVA itself would mask this sample"
    assert tokens.ids == ids
    assert tokens.labels == labels


@pytest.mark.parametrize("mode", ["pieces", "llava15"])
@pytest.mark.parametrize("answer", ["say ASSISTANT: x", "a</s>b", "", "an <unk> token", "7", "猫", "\nA cat"])
def test_samples_that_llava_masks_are_supervised_in_full(llama, answer, mode):
    tokens = encode_chat(messages_of(["<image>\nhi <unk>", answer, "And?", "Black"]), "vicuna_v1", llama[False], mode=mode)
    assert decode_supervised(tokens, llama[False]) == [answer, "Black"]
    assert tokens.labels.count(EOS) == 2
