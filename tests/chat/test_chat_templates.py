import subprocess
import sys
from dataclasses import replace

import pytest

from lmmblocks.chat import (
    TEMPLATES,
    CaptionTemplate,
    PromptTemplate,
    Template,
    get_template,
    llava15_messages,
)
from lmmblocks.spec import LmmError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def written(pieces):
    """Pieces as one string, the way the original templates are written down."""
    signs = {"bos": "", "eos": "</s>", "image": "<image>"}
    return "".join(signs.get(piece.kind, piece.text) for piece in pieces)


def test_vicuna_renders_as_the_original():
    pieces = TEMPLATES["vicuna_v1"].render([user("<image>\nq1"), assistant("a1"), user("q2"), assistant("a2")])
    assert written(pieces) == f"{SYSTEM} USER: <image>\nq1 ASSISTANT: a1</s>USER: q2 ASSISTANT: a2</s>"


def test_llava_v1_says_human_in_the_system_prompt_only():
    pieces = TEMPLATES["llava_v1"].render([user("q1"), assistant("a1")])
    system = SYSTEM.replace("curious user", "curious human").replace("user's", "human's")
    assert written(pieces) == f"{system} USER: q1 ASSISTANT: a1</s>"


def test_generation_prompt_ends_with_the_colon():
    pieces = TEMPLATES["vicuna_v1"].render([user("q1"), assistant("a1"), user("q2")], add_generation_prompt=True)
    assert written(pieces) == f"{SYSTEM} USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT:"


def test_plain_keeps_images_and_caption_only():
    pieces = TEMPLATES["plain"].render([user("Describe.\n<image>"), assistant("a cat on a mat")])
    assert written(pieces) == "<image>a cat on a mat\n"
    prompt = TEMPLATES["plain"].render([user("<image><image>")], add_generation_prompt=True)
    assert written(prompt) == "<image><image>"
    assert TEMPLATES["plain"].stop == ("\n",)


def test_only_answers_and_their_ends_are_trained():
    pieces = TEMPLATES["vicuna_v1"].render([user("q1"), assistant("a1"), user("q2"), assistant("")])
    assert [(piece.kind, piece.text) for piece in pieces if piece.train] == [
        ("text", " a1"),
        ("eos", ""),
        ("eos", ""),
    ]


def test_system_message_replaces_the_templates_own():
    messages = [{"role": "system", "content": "Be brief."}, user("q"), assistant("a")]
    assert written(TEMPLATES["vicuna_v1"].render(messages)) == "Be brief. USER: q ASSISTANT: a</s>"
    bare = replace(TEMPLATES["vicuna_v1"], system="")
    assert written(bare.render([user("q"), assistant("a")])) == "USER: q ASSISTANT: a</s>"


def test_second_separator_stands_between_turns():
    template = Template("lines", roles=("Human", "Assistant"), seps=("\n", "\n"))
    pieces = template.render([user("q1"), assistant("a1"), user("q2"), assistant("a2")])
    assert written(pieces) == "Human: q1\nAssistant: a1</s>\nHuman: q2\nAssistant: a2</s>"


def test_images_stay_where_they_stand():
    pieces = TEMPLATES["vicuna_v1"].render([user("<image><image>a<image>b<image>"), assistant("c")])
    assert written(pieces).startswith(f"{SYSTEM} USER: <image><image>a<image>b<image> ASSISTANT: c")
    assert sum(piece.kind == "image" for piece in pieces) == 4


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "no turns"),
        ([{"role": "system", "content": "s"}], "no turns"),
        ("What is it?", "messages is a str"),
        (["What is it?"], "message 0 is str"),
        ([{"from": "human", "value": "q"}], r"message 0 is \['from', 'value'\]"),
        ([{"role": "human", "content": "q"}], "'human'.*write 'user'"),
        ([{"role": "gpt", "content": "a"}], "'gpt'.*write 'assistant'"),
        ([{"role": "USER", "content": "q"}], "'USER', expected one of user, assistant, system"),
        ([user([{"type": "audio", "text": "q"}])], "message 0 .user. has {'type': 'audio'.* in its content, expected parts"),
        ([user(({"type": "text", "text": "q"},))], "message 0 .user. has a tuple as content"),
        ([user(None)], "has a NoneType as content"),
        ([assistant("a")], "message 0 is the assistant's, expected the user first"),
        ([user("q"), user("q"), assistant("a")], "messages 0 and 1 are both the user's"),
        ([user("q"), assistant("a"), assistant("a")], "messages 1 and 2 are both the assistant's"),
        ([user("q"), {"role": "system", "content": "s"}], "message 1 is a system message"),
        ([user("q")], "ends with the user.*add_generation_prompt=True"),
    ],
)
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_malformed_conversations_are_refused(name, messages, says):
    with pytest.raises(LmmError, match=says):
        TEMPLATES[name].render(messages)


def test_an_answered_conversation_cannot_be_answered_again():
    with pytest.raises(LmmError, match="ends with the assistant"):
        TEMPLATES["vicuna_v1"].render([user("q"), assistant("a")], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([user("Describe it."), assistant("a")], "needs an image"),
        ([user("<image>"), assistant("a"), user("q"), assistant("a")], "found 4 turns"),
        (
            [{"role": "system", "content": "s"}, user("<image>"), assistant("a")],
            "no place for a system message",
        ),
    ],
)
def test_plain_refuses_what_it_would_drop(messages, says):
    with pytest.raises(LmmError, match=says):
        TEMPLATES["plain"].render(messages)


def test_unknown_template_names_the_closest():
    with pytest.raises(LmmError, match="'vicunna_v1'.*did you mean 'vicuna_v1'"):
        get_template("vicunna_v1")


def test_own_template_objects_are_taken_as_they_are():
    class Mine:
        name, stop = "mine", ("###",)

        def render(self, messages, *, add_generation_prompt=False):
            return []

    mine = Mine()
    assert get_template(mine) is mine
    with pytest.raises(LmmError, match="template is a dict"):
        get_template({"name": "mine"})


@pytest.mark.parametrize(
    ("given", "moved"),
    [
        ("What is this?\n<image>", "<image>\nWhat is this?"),
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("  a <image> b ", "<image>\na  b"),
        ("<image>", "<image>"),
        (" no image ", " no image "),
        ("<image>one<image>two", "<image>\n<image>\nonetwo"),
    ],
)
def test_llava15_messages_put_the_image_first(given, moved):
    messages = [user(given), assistant("a")]
    assert llava15_messages(messages) == [user(moved), assistant("a")]
    assert messages[0]["content"] == given


def test_llava15_messages_refuse_records_that_are_not_messages():
    with pytest.raises(LmmError, match=r"message 0 is \['from', 'value'\]"):
        llava15_messages([{"from": "human", "value": "<image>"}])


def test_importing_chat_loads_no_tokenizer_library():
    code = "import sys, lmmblocks.chat; print([m for m in ('transformers', 'tokenizers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Template("x", stop="###"), "stop must be strings that aren't empty, found '###'"),
        (lambda: Template("x", stop=("",)), "stop must be strings that aren't empty"),
        (lambda: Template("x", ends=("",)), "ends must be strings that aren't empty"),
        (lambda: Template("x", seps=("",)), "seps must be a pair of strings"),
        (lambda: Template("x", roles="AB"), "roles must be a pair of strings, found 'AB'"),
        (lambda: Template("x", system=None), "system must be a string, found None"),
        (lambda: Template("x", system="See <image>"), "system holds <image>, which would be an image in every conversation"),
        (lambda: CaptionTemplate("x", end=""), "end is empty, so a model would never learn to stop"),
        (lambda: CaptionTemplate("x", end=None), "end must be a string"),
        (lambda: PromptTemplate("x", lead=None), "lead must be a string"),
        (lambda: replace(TEMPLATES["chatml"], system="<image>"), "system holds <image>"),
        (lambda: replace(TEMPLATES["chatml"], tokens=("{eos}",)), "tokens holds '{eos}', which stands for the tokenizer's own"),
        (lambda: replace(TEMPLATES["chatml"], ends=("",)), "ends must be strings that aren't empty"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused_where_it_is_made(make, message):
    with pytest.raises(LmmError, match=message):
        make()


def test_the_word_image_may_stand_in_a_system_prompt(tiny_llama):
    template = Template("x", system="The tag \\<image> is a word.")
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "ok"}]
    assert [piece.kind for piece in template.render(messages)].count("image") == 1
