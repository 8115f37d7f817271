"""What ``data show`` prints is what training reads: counts, labels and cuts are compared with the batch that ``collate`` makes."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lmmblocks as lb
from lmmblocks.chat import TEMPLATES, encode_chat, get_template
from lmmblocks.cli import exit_code, main
from lmmblocks.cli.data_show import Style, written
from lmmblocks.data.stretches import Stretch, stretches_of_pieces, stretches_of_tokens
from lmmblocks.spec import IMAGE_TOKEN, LmmError

TURNS = [
    ("human", "<image>\nWhat color is it?"),
    ("gpt", "Black."),
    ("human", "Is it asleep?"),
    ("gpt", "No, it is awake."),
]
ROOT = Path(__file__).resolve().parents[2]
PAGE_BLOCKS = (r"```json\n(.*?)```", r"```bash\n(lmmblocks data show [^\n]*)\n", r"```text\n(.*?)```")
ANSI = re.compile(r"\x1b\[[\d;]*m")


def conversation(*turns):
    return [{"from": role, "value": text} for role, text in turns]


def messages_of(turns):
    roles = {"human": "user", "gpt": "assistant"}
    return [{"role": roles[role], "content": text} for role, text in turns]


@pytest.fixture
def shown(write, images, capsys):
    """``shown(record, *words)``: what the command prints for the only record of a file."""

    def show(record, *words):
        path = write([record])
        assert main(["data", "show", str(path), "--images", str(images), *map(str, words)]) == 0
        return capsys.readouterr().out

    return show


@pytest.fixture(scope="module")
def model(make_tiny_model):
    return make_tiny_model()


@pytest.mark.parametrize("truncate", ["turn", "right", "drop"])
def test_kept_and_learned_rows_are_those_of_the_batch(model, truncate):
    """For every length, what isn't cut is what ``collate`` keeps, and what is called learned is its targets."""
    picture = Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8))
    sample = lb.Sample(messages_of(TURNS), [picture])
    whole = lb.collate([sample], model).plan
    tokens = encode_chat(sample.messages, model.template, model.tokenizer, mode=model.tokenize_mode)
    image_rows = int((whole.source < 0).sum())
    lengths = range(1, whole.total_rows + 2)
    for length in lengths:
        try:
            plan = lb.collate([sample], model, max_length=length, truncate=truncate).plan
            kept, targets = plan.total_rows, plan.targets.tolist()
        except LmmError:  # nothing is left of the batch
            kept, targets = 0, []
        found = stretches_of_tokens(tokens, model.tokenizer, image_rows=image_rows, kept=kept)
        assert sum(s.rows for s in found) == whole.total_rows
        assert sum(s.rows for s in found if not s.cut) == kept, length
        assert sum(s.rows for s in found if s.learned and not s.cut) == len(targets), length
    assert len(lengths) > image_rows


def test_learned_text_is_the_answers_and_what_ends_them(model):
    tokens = encode_chat(messages_of(TURNS), "vicuna_v1", model.tokenizer)
    found = stretches_of_tokens(tokens, model.tokenizer, image_rows=4)
    assert [s.text for s in found if s.learned] == [" Black.</s>", " No, it is awake.</s>"]
    assert "".join(s.text for s in found if s.image is None).startswith("<s>")


@pytest.mark.parametrize("name", ["plain", "vicuna_v1", "llama2", "gemma", "instructblip"])
def test_pieces_and_tokens_say_the_same(model, name):
    """The stretches without a tokenizer are those with one, but for how tokens of its own and spaces beside them are spelled."""
    turns = messages_of([("human", "<image>"), ("gpt", "Black.")] if name == "plain" else TURNS[:2])
    template = get_template(name)
    tokenizer = copy.deepcopy(model.tokenizer)  # the model's is shared with other tests
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(getattr(template, "tokens", ()))})
    pieces = stretches_of_pieces(template.render(turns))
    tokens = stretches_of_tokens(encode_chat(turns, template, tokenizer), tokenizer, image_rows=2)

    def told(stretches):
        text = ((re.sub(r"<s>|</s>|<bos>|<eos>|\s", "", s.text), s.image, s.learned) for s in stretches)
        return [one for one in text if one[0] or one[1] is not None]

    assert told(pieces) == told(tokens) and name in TEMPLATES


def test_an_image_that_is_cut_in_the_middle_is_shown_in_two(model):
    tokens = encode_chat(messages_of(TURNS), "vicuna_v1", model.tokenizer)
    start = tokens.ids.index(IMAGE_TOKEN)
    found = stretches_of_tokens(tokens, model.tokenizer, image_rows=10, kept=start + 3)
    assert [(s.rows, s.cut) for s in found if s.image == 0] == [(3, False), (7, True)]


def test_the_command_tells_record_text_rows_and_what_is_learned(shown, write, tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = shown(
        write.record("r7", conversations=conversation(*TURNS)),
        "--tokenizer",
        tmp_path / "tokenizer",
        "--image-rows",
        9,
    )
    length = len(encode_chat(messages_of(TURNS), "vicuna_v1", tiny_tokenizer).ids)
    learned = sum(label >= 0 for label in encode_chat(messages_of(TURNS), "vicuna_v1", tiny_tokenizer).labels)
    assert "id 'r7'; template 'vicuna_v1'" in out
    assert "USER: <image 1: 9 rows, ok.png>\nWhat color is it? ASSISTANT:{+ Black.</s>+}USER: Is it asleep?" in out
    assert f"{length + 8} rows: {length - 1} of text, 9 of images; {learned} learned\n" in out
    assert not ANSI.search(out), "no colours where the output is no terminal"


def test_what_is_cut_is_marked_and_counted(shown, write, tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    first = encode_chat(messages_of(TURNS[:2]), "vicuna_v1", tiny_tokenizer)
    whole = len(encode_chat(messages_of(TURNS), "vicuna_v1", tiny_tokenizer).ids)
    words = ("--model", tmp_path / "tokenizer", "--image-rows", 1, "--max-length", len(first.ids) + 2)
    out = shown(write.record(conversations=conversation(*TURNS)), *words)
    assert "{+ Black.</s>+}[-USER: Is it asleep? ASSISTANT:-][-{+ No, it is awake.</s>+}-]" in out
    assert f"{whole - len(first.ids)} cut off by --truncate turn at --max-length {len(first.ids) + 2}" in out
    assert ", 1 of images" in out
    assert " 2 cut off" not in out and f"{whole} rows" in out
    dropped = shown(write.record(conversations=conversation(*TURNS)), *words, "--truncate", "drop")
    assert f"0 learned; {whole} cut off by --truncate drop" in dropped


def test_without_a_tokenizer_pieces_are_shown(shown, write):
    out = shown(write.record(), "--template", "chatml")
    assert "<|im_start|>user\n<image 1, ok.png>\nWhat is it?<|im_end|>" in out and "{+A cat<|im_end|>" in out
    assert "give --tokenizer DIR" in out


def test_a_models_folder_says_its_own_template(shown, write, tmp_path, make_tiny_model):
    make_tiny_model(template="plain").save(tmp_path / "model")
    out = shown(write.record(question="<image>"), "--model", tmp_path / "model")
    assert "template 'plain'" in out and "USER" not in out


def test_control_characters_of_a_record_never_reach_the_terminal(shown, write):
    out = shown(write.record("a\x1b[2Jb", answer="one\x1b[31mtwo\x07\x9b3\u202e\nline"))
    assert not [char for char in out if char != "\n" and not char.isprintable()]
    assert r"one\x1b[31mtwo\x07\x9b3\u202e" in out and "\nline" in out


def test_the_page_about_debugging_shows_what_is_printed(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
    record, command, output = (re.search(pattern, page, re.DOTALL)[1] for pattern in PAGE_BLOCKS)
    (tmp_path / "red.json").write_text(record, encoding="utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    assert main(command.split()[1:]) == 0
    assert capsys.readouterr().out == output


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "coloured"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": ""}, True),  # no-color.org: set and not empty
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm-256color"}, False),
    ],
)
def test_colours_only_where_they_are_wanted(stream, environment, coloured):
    assert Style.of(stream, environment).coloured == coloured


def test_colours_and_marks_say_the_same():
    """Every kind looks otherwise than every other, and without its dress the text is the same."""
    for style, strip in (
        (Style(True), lambda text: ANSI.sub("", text)),
        (Style(False), lambda text: re.sub(r"\{\+|\+\}|\[-|-\]", "", text)),
    ):
        kinds = [{}, {"learned": True}, {"cut": True}, {"learned": True, "cut": True}] + [{"image": True}] * style.coloured
        looks = [style.dressed("x", **kind) for kind in kinds]
        assert len(set(looks)) == len(looks)
        assert {strip(look) for look in looks} == {"x"}
        assert all(look in style.legend() for look in [style.dressed("learned", learned=True), style.dressed("cut off", cut=True)])


def test_colours_end_with_each_line():
    text = written([Stretch("one\n\ntwo", learned=True)], [], Style(True))
    assert text.split("\n") == ["\x1b[1;32mone\x1b[0m", "", "\x1b[1;32mtwo\x1b[0m"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--index", "1"], "--index 1: FILE holds 1 record: expected 0 to 0"),
        (["--index", "-1"], "--index -1: FILE holds 1 record"),
        (["--max-length", "9"], "--max-length counts tokens: give --tokenizer DIR"),
        (["--tokenizer", "TOKENIZER", "--max-length", "0"], "--max-length 0: expected 1 or more"),
        (["--template", "vicuna_v2"], "did you mean 'vicuna_v1'"),
        (["--tokenizer", "nowhere"], "tokenizer folder nowhere does not exist"),
        (["--image-rows", "0"], "must be at least 1, found 0"),
    ],
)
def test_a_mistake_is_one_line(write, images, tmp_path, tiny_tokenizer, capsys, words, says):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = write([write.record()])
    words = [str(tmp_path / "tokenizer") if word == "TOKENIZER" else word for word in words]
    assert exit_code(lambda: main(["data", "show", str(path), "--images", str(images), *words])) == 2
    error = capsys.readouterr().err
    assert says.replace("FILE", str(path)) in error and error.count("\n") == 1


def test_a_record_that_training_refuses_is_refused_with_the_reason(write, images, tmp_path, capsys):
    for record, says in [
        (write.record(conversations=conversation(("humann", "Hi"), ("gpt", "Ho"))), "bad_role"),
        (write.record(question="no mark"), "record 0"),
        (write.record(image="../x.png"), "path_escape"),
        ("text", "wrong_type"),
    ]:
        assert main(["data", "show", str(write([record])), "--images", str(images)]) == 2
        assert says in capsys.readouterr().err
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(write.record()) + '\n{"id": 3,')
    assert main(["data", "show", str(broken), "--index", "1"]) == 2
    assert f"{broken}:2" in capsys.readouterr().err
    assert main(["data", "show", str(broken), "--images", str(images)]) == 0


def test_notes_of_the_check_are_told(shown, write):
    assert "marker_in_sentence: " in shown(write.record(question="What does <image> mean?"))
