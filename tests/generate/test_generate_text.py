"""Tokens to text that may be shown: whole characters, nothing of a stop string."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmmblocks.chat.text_encoder import special_ids, text_encoder
from lmmblocks.generate.text import AnswerText, StopStrings, TokenText

SAME_FIXTURE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)
TEXT = st.text("ab\n", max_size=40)


def reference_cut(text, stops):
    """Read character by character; cut before the longest stop string that just became complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def pieces_of(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]


@settings(max_examples=400, deadline=None)
@given(TEXT, STOPS, st.data())
def test_text_is_cut_at_the_first_stop_string_whatever_the_pieces_are(text, stops, data):
    filter, shown = StopStrings(stops), ""
    for piece in pieces_of(text, data):
        shown += filter.push(piece)
        if filter.stopped:
            break
    shown += "" if filter.stopped else filter.finish()
    assert (shown, filter.stopped) == reference_cut(text, stops)


@settings(max_examples=400, deadline=None)
@given(TEXT, STOPS, st.data())
def test_only_what_may_become_a_stop_string_is_held_back(text, stops, data):
    filter, shown, read = StopStrings(stops), "", ""
    for piece in pieces_of(text, data):
        shown, read = shown + filter.push(piece), read + piece
        if filter.stopped:
            return
        held = read[len(shown) :]
        possible = [read[n:] for n in range(len(read)) if any(s != read[n:] and s.startswith(read[n:]) for s in stops)]
        assert held == max(possible, key=len, default=""), (read, shown, stops)


def gpt_like():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="module", params=["llama", "gpt"])
def any_tokenizer(request, make_tokenizer):
    return make_tokenizer() if request.param == "llama" else gpt_like()


@SAME_FIXTURE
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd▁"), max_size=20))
def test_every_piece_holds_whole_characters_and_joined_they_are_the_text(any_tokenizer, text):
    tokens = TokenText(any_tokenizer)
    pieces = [tokens.push(token) for token in text_encoder(any_tokenizer).encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + tokens.finish() == text


def test_bytes_of_a_character_wait_for_each_other(tokenizer):
    tokens = TokenText(tokenizer)
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "😀".encode()]
    assert [tokens.push(token) for token in ids] == ["", "", "", "😀"]


def test_bytes_that_never_become_a_character_are_shown_at_the_end_or_before_the_next_text(tokenizer):
    tokens = TokenText(tokenizer)
    half, word = tokenizer.convert_tokens_to_ids(["<0xF0>", "a"])
    assert (tokens.push(half), tokens.push(word)) == ("", "\ufffda")
    assert (tokens.push(half), tokens.finish(), tokens.finish()) == ("", "\ufffd", "")


def test_special_tokens_and_ids_behind_the_vocabulary_give_no_text(tokenizer):
    tokens = TokenText(tokenizer)
    first, second = (tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "é".encode())
    ids = [0, 1, 2, len(tokenizer) + 5, first, 1, second]
    assert "".join(tokens.push(token) for token in ids) + tokens.finish() == "é"


def test_added_special_tokens_are_special(make_tokenizer):
    tokenizer = make_tokenizer()
    before = special_ids(tokenizer)
    tokenizer.add_tokens(["<plain>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    assert special_ids(tokenizer) - before == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


@SAME_FIXTURE
@given(text=st.text("abc é猫\n", max_size=20))
def test_the_answer_is_what_transformers_decodes(tokenizer, text):
    ids = list(text_encoder(tokenizer).encode(f" {text}"))
    answer = AnswerText(tokenizer, ())
    shown = "".join(answer.push(token) for token in ids) + answer.finish()
    assert shown == text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_one_leading_space_is_taken_off_before_stop_strings_are_looked_for(tokenizer):
    answer, shown = AnswerText(tokenizer, [" "]), ""
    for token in text_encoder(tokenizer).encode(" no way"):
        shown += answer.push(token)
        if answer.stopped:
            break
    assert shown == "no" and answer.stopped


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("colour is", "What "), ("猫在", "What colour is 一只"), ("😀!", "What colour is 一只猫在 ")],
)
def test_stop_strings_span_tokens_and_bytes(tokenizer, stop, expected):
    answer = AnswerText(tokenizer, [stop])
    shown = []
    for token in text_encoder(tokenizer).encode(" What colour is 一只猫在 😀! more"):
        shown.append(answer.push(token))
        if answer.stopped:
            break
    assert "".join(shown) == expected and answer.finish() == ""


def test_a_stop_string_completed_by_leftover_bytes_is_found(tokenizer):
    answer = AnswerText(tokenizer, ["x\ufffd"])
    half = tokenizer.convert_tokens_to_ids("<0xF0>")
    shown = "".join(answer.push(token) for token in [*text_encoder(tokenizer).encode(" axx"), half])
    assert shown + answer.finish() == "ax" and answer.stopped
