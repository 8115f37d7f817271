"""A conversation gives the answers of fresh prompts, and reads only what is new."""

import pytest

from lmmblocks.chat import encode_chat
from lmmblocks.generate import Conversation, generate
from lmmblocks.generate import decode as decoding
from lmmblocks.spec import IMAGE_TOKEN, LmmError

IMAGE_ROWS = 4
OPTIONS = {"max_new_tokens": 10}


def prompt_ids(model, messages):
    return encode_chat(messages, model.template, model.tokenizer, mode=model.tokenize_mode, add_generation_prompt=True).ids


def rows_of(ids):
    return len(ids) + (IMAGE_ROWS - 1) * ids.count(IMAGE_TOKEN)


def common_prefix(left, right):
    n = 0
    while n < min(len(left), len(right)) and left[n] == right[n]:
        n += 1
    return n


def say(model, monkeypatch, text):
    """Have the model answer `text` and the end-of-sequence token, as a trained one would; return these ids."""
    script = [*model.tokenizer(text, add_special_tokens=False).input_ids, model.tokenizer.eos_token_id]
    left = iter(script)
    monkeypatch.setattr(decoding, "choose", lambda logits, options, generators: [next(left)])
    return script


@pytest.mark.parametrize("mode", ["pieces", "llava15"])
def test_every_answer_is_that_of_a_fresh_prompt(make_model, picture, mode):
    model = make_model(tokenize_mode=mode)
    chat = Conversation(model, system="Be brief.")
    history, pictures = [{"role": "system", "content": "Be brief."}], []
    turns = [
        ("What is it?", [picture(1)]),
        ("Is it asleep?", None),
        ("And <image> this?", [picture(2)]),
        ("Why?", []),
    ]
    for text, images in turns:
        marker = "<image>\n" if images and "<image>" not in text else ""
        history.append({"role": "user", "content": marker + text})
        pictures += images or []
        answer = chat.ask(text, images, **OPTIONS)
        assert answer == generate(model, history, pictures, **OPTIONS)
        history.append({"role": "assistant", "content": answer})
    assert chat.messages == history


def test_only_new_tokens_are_run(model, picture, monkeypatch, counted):
    chat, history, cached = Conversation(model), [], []
    turns = [
        ("What is it?", [picture(1)], "Black"),
        ("Why?", [picture(2)], "No, it is awake"),
        ("So?", None, ""),
        ("And?", None, "一只猫"),
    ]
    for text, images, reply in turns:
        history.append({"role": "user", "content": "<image>\n" * len(images or []) + text})
        prompt, script, rows = prompt_ids(model, history), say(model, monkeypatch, reply), []
        assert prompt[: len(cached)] == cached
        with counted(model.decoder, rows):
            assert chat.ask(text, images, **OPTIONS) == reply
        assert rows == [rows_of(prompt[len(cached) :]), *[1] * (len(script) - 1)]
        cached = prompt + script[:-1]
        history.append({"role": "assistant", "content": reply})
    monkeypatch.undo()
    history.append({"role": "user", "content": "What colour?"})
    expected = generate(model, history, [picture(1), picture(2)], **OPTIONS)
    assert chat.ask("What colour?", **OPTIONS) == expected


def test_old_pictures_are_not_encoded_again(model, picture, counted):
    chat, pixels = Conversation(model), []
    with counted(model.encoder, pixels):
        chat.ask("What is it?", [picture(1), picture(2)], **OPTIONS)
        chat.ask("And this?", [picture(3)], **OPTIONS)
        chat.ask("Why?", **OPTIONS)
    assert pixels == [2, 1]


def test_an_answer_that_tokenises_differently_is_read_again_from_where_it_differs(model, monkeypatch, counted):
    chat, rows = Conversation(model), []
    letters = [model.tokenizer.convert_tokens_to_ids(t) for t in ["▁", "B", "l", "a", "c", "k"]]
    script = iter([*letters, model.tokenizer.eos_token_id])
    monkeypatch.setattr(decoding, "choose", lambda logits, options, generators: [next(script)])
    assert chat.ask("What colour?", **OPTIONS) == "Black"
    monkeypatch.undo()
    first = [{"role": "user", "content": "What colour?"}]
    history = [*first, {"role": "assistant", "content": "Black"}, {"role": "user", "content": "Why?"}]
    generated, rendered = prompt_ids(model, first) + letters, prompt_ids(model, history)
    shared = common_prefix(generated, rendered)
    assert len(prompt_ids(model, first)) <= shared < len(generated)
    with counted(model.decoder, rows):
        answer = chat.ask("Why?", **OPTIONS)
    assert rows[0] == len(rendered) - shared
    assert answer == generate(model, history, **OPTIONS)


def test_the_stream_joined_is_the_answer(model, picture):
    streamed, asked = Conversation(model), Conversation(model)
    for text, images in [("What is it?", [picture(1)]), ("Why?", None)]:
        pieces = list(streamed.stream(text, images, **OPTIONS))
        assert len(pieces) > 1 and "".join(pieces) == asked.ask(text, images, **OPTIONS)


@pytest.mark.parametrize("pieces", [0, 1, 4])
def test_a_turn_that_is_not_read_to_its_end_is_forgotten(model, picture, pieces):
    chat, undisturbed = Conversation(model), Conversation(model)
    for each in (chat, undisturbed):
        each.ask("What is it?", [picture(1)], **OPTIONS)
    stream = chat.stream("Look:", [picture(2)], **OPTIONS)
    for _ in range(pieces):
        next(stream)
    stream.close()
    assert chat.messages == undisturbed.messages
    # The same words with another picture: its rows must not be taken for those of the picture that was given up.
    question = ("Look:", [picture(3)])
    assert chat.ask(*question, **OPTIONS) == undisturbed.ask(*question, **OPTIONS)
    assert chat.ask("Why?", **OPTIONS) == undisturbed.ask("Why?", **OPTIONS)


def test_a_stream_that_goes_on_after_the_next_question_is_refused(model):
    chat, undisturbed = Conversation(model), Conversation(model)
    begun, untouched = chat.stream("What is it?", **OPTIONS), chat.stream("Who?", **OPTIONS)
    answer = chat.ask("Why?", **OPTIONS)
    for stream in (begun, untouched):
        with pytest.raises(LmmError, match="given up"):
            next(stream)
    assert answer == undisturbed.ask("Why?", **OPTIONS)
    assert chat.ask("So?", **OPTIONS) == undisturbed.ask("So?", **OPTIONS)


def test_an_error_leaves_the_conversation_as_it_was(model, picture):
    chat, undisturbed = Conversation(model), Conversation(model)
    for each in (chat, undisturbed):
        each.ask("What is it?", [picture(1)], **OPTIONS)
    wrong = [
        (("", None), {}, "the question is empty"),
        ((3, None), {}, "the question is a int"),
        (("<image>?", None), {}, "the conversation has 2 <image>.* 1 images"),
        (("Why?", ["nowhere.png"]), {}, "nowhere.png cannot be opened"),
        (("Why?", [3]), {}, "the conversation: an image is a path, .* found int"),
        (("Why?", None), {"top_p": 0}, "top_p must be .* found 0"),
        (("Why?", None), {"max_new_tokens": 500}, "the conversation has .* 512 positions"),
        (("Why? " * 500, None), {}, "shorten the conversation"),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(LmmError, match=message):
            chat.ask(*arguments, **{**OPTIONS, **options})
    assert chat.messages == undisturbed.messages
    assert chat.ask("Why?", **OPTIONS) == undisturbed.ask("Why?", **OPTIONS)


def test_a_failure_in_the_middle_of_a_pass_leaves_the_conversation_as_it_was(model, picture):
    chat, undisturbed = Conversation(model), Conversation(model)
    for each in (chat, undisturbed):
        each.ask("What is it?", [picture(1)], **OPTIONS)

    def fail(*_):
        raise MemoryError

    hook = model.decoder.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        chat.ask("Why?", **OPTIONS)
    hook.remove()
    assert chat.ask("So?", **OPTIONS) == undisturbed.ask("So?", **OPTIONS)


def test_reset_forgets_everything_but_the_system_prompt(model, picture):
    chat = Conversation(model, system="Be brief.")
    first = chat.ask("What is it?", [picture(1)], **OPTIONS)
    chat.ask("Why?", **OPTIONS)
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.ask("What is it?", [picture(1)], **OPTIONS) == first


def test_an_answer_that_writes_the_image_marker_places_no_image(model, monkeypatch):
    chat = Conversation(model)
    say(model, monkeypatch, "<im<image>age>")
    assert chat.ask("What is it?", max_new_tokens=30) == "<im<image>age>"
    monkeypatch.undo()
    chat.ask("Why?", **OPTIONS)
    assert len(chat.messages) == 4


def test_stop_strings_and_seeds_work_turn_by_turn(model):
    chat, history = Conversation(model), []
    for text in ["What is it?", "Why?", "So?"]:
        options = {"temperature": 1.0, "seed": len(history), "stop": ["a", "e"], "max_new_tokens": 20}
        history.append({"role": "user", "content": text})
        answer = chat.ask(text, **options)
        assert answer == generate(model, history, **options) and not {"a", "e"} & set(answer)
        history.append({"role": "assistant", "content": answer})


def test_a_system_prompt_is_a_text(model):
    with pytest.raises(LmmError, match="system is a int"):
        Conversation(model, system=3)
