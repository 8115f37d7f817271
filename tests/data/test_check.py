"""The check finds every fault that is planted, at its place, and nothing else."""

import json
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from lmmblocks.chat import TEMPLATES
from lmmblocks.cli import main
from lmmblocks.data.check import check_file
from lmmblocks.data.problems import PROBLEM_KINDS
from lmmblocks.data.records import load_records
from lmmblocks.data.sample_reader import Reading, sample_reader
from lmmblocks.spec import LmmError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


NOTES = (
    *("duplicate_id", "animated_image", "deep_image", "turned_image", "transparent_image"),
    *("wrong_extension", "foreign_marker", "marker_in_sentence", "special_in_text", "image_only_question"),
)


def turns(*pairs):
    return [{"from": role, "value": text} for role, text in pairs]


def bomb(path):
    """A PNG that promises 400 million pixels and holds none."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@pytest.fixture
def broken_images(images):
    PICTURE.save(images / "cut.jpg")
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:700])
    (images / "zero.jpg").touch()
    (images / "page.jpg").write_text("<html>not found</html>")
    bomb(images / "bomb.png")
    Image.new("RGB", (1, 300)).save(images / "thin.png")
    (images / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("F", (8, 8), 300.0).save(images / "float.tif")
    Image.new("I;16", (8, 8), 300).save(images / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    PICTURE.save(images / "phone.jpg", exif=turned)
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(images / "icon.png")
    PICTURE.save(images / "gif.jpg", format="GIF")
    PICTURE.save(images / "move.gif", save_all=True, append_images=[PICTURE.rotate(90)])
    return images


def faults(record):
    """One record per kind of fault: code -> the record that has it and nothing else."""
    ask, say = ("human", "<image>\nWhat?"), ("gpt", "A cat")
    return {
        "wrong_type": record("wrong_type", conversations="hello"),
        "unread_key": record("unread_key", video="film.mp4"),
        "url_image": record("url_image", "https://example.org/cat.jpg"),
        "bad_text": record("bad_text", answer="half \ud83d"),
        "bad_role": record("bad_role", conversations=turns(("user", "<image>"), say)),
        "starts_with_gpt": record("starts_with_gpt", conversations=turns(say, ask, say)),
        "not_alternating": record("not_alternating", conversations=turns(ask, ("human", "And?"), say)),
        "no_answer": record("no_answer", conversations=turns(ask, say, ("human", "And?"))),
        "empty_question": record("empty_question", conversations=turns(ask, say, ("human", " "), say)),
        "empty_answer": record("empty_answer", answer="\n"),
        "missing_marker": record("missing_marker", question="What?"),
        "extra_marker": record("extra_marker", question="<image><image>What?"),
        "marker_in_answer": record("marker_in_answer", answer="see <image>"),
        "path_escape": record("path_escape", "../ok.png"),
        "missing_image": record("missing_image", "gone.png"),
        "zero_byte_image": record("zero_byte_image", "zero.jpg"),
        "truncated_image": record("truncated_image", "cut.jpg"),
        "corrupt_image": record("corrupt_image", "page.jpg"),
        "bomb_image": record("bomb_image", "bomb.png"),
        "extreme_image": record("extreme_image", "thin.png"),
        "format_image": record("format_image", "photo.heic"),
        "range_image": record("range_image", "float.tif"),
        "deep_image": record("deep_image", "deep.png"),
        "turned_image": record("turned_image", "phone.jpg"),
        "transparent_image": record("transparent_image", "icon.png"),
        "too_long": record("too_long", answer="word " * 300),
        "duplicate_id": record("good"),
        "animated_image": record("animated_image", "move.gif"),
        "wrong_extension": record("wrong_extension", "gif.jpg"),
        "foreign_marker": record("foreign_marker", None, "<img>a/cat.jpg</img> What?"),
        "marker_in_sentence": record("marker_in_sentence", question="What does the tag <image> do?"),
        "special_in_text": record("special_in_text", question="<image>\nWhere is <loc>?"),
        "image_only_question": record("image_only_question", question="<image>"),
    }


def sees_loc(sample):
    """Read a sample with a tokenizer that has a special token <loc>, and can't count."""
    return Reading(None, tuple("<loc>" for message in sample.messages if "<loc>" in message["content"]))


def test_every_kind_of_fault_is_found_at_its_record_and_nothing_else(write, broken_images):
    planted = faults(write.record)
    order = list(planted)
    random.Random(0).shuffle(order)
    path = write([write.record("good"), *(planted[code] for code in order)])
    report = check_file(path, broken_images, max_tokens=250, read=sees_loc)
    assert report.counts == dict.fromkeys(planted, 1)
    for finding in report.findings:
        (offender,) = finding.offenders
        assert order[offender.index - 1] == finding.code
        assert offender.id == ("good" if finding.code == "duplicate_id" else finding.code)
        assert finding.note == (finding.code in NOTES)
    assert not report.ok and report.records == len(order) + 1
    elsewhere = {"broken_json", "no_records", "untokenisable", "unreadable_image", "other_keys", "bad_question"}
    assert set(planted) | elsewhere == set(PROBLEM_KINDS), "every kind has its test"


@pytest.mark.parametrize("code", list(faults(lambda *a, **k: None)))
def test_each_fault_alone_decides_whether_the_file_is_fit(write, broken_images, code):
    path = write([write.record("good"), faults(write.record)[code]])
    report = check_file(path, broken_images, max_tokens=250, read=sees_loc)
    assert report.counts == {code: 1}
    assert report.ok == PROBLEM_KINDS[code].note
    assert check_file(path, broken_images, max_tokens=250, read=sees_loc, allow=[code]).ok


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        (3, "the record is a number ('3'), expected an object"),
        ({"id": [1], "conversations": turns(("human", "Hi"), ("gpt", "Ho"))}, "id is a list"),
        ({"image": 3, "conversations": turns(("human", "Hi"), ("gpt", "Ho"))}, "image is a number ('3')"),
        ({"image": ["a", None], "conversations": turns(("human", "Hi"), ("gpt", "Ho"))}, "null in image"),
        (
            {"image": "\ud83d.png", "conversations": turns(("human", "Hi"), ("gpt", "Ho"))},
            r"image path '\ud83d.png' holds a lone surrogate",
        ),
        (
            {"id": 1, "conversation": []},
            "conversations is missing, expected a list of turns; did you mean 'conversation'?",
        ),
        ({"conversations": []}, "conversations is empty"),
        ({"conversations": ["Hi"]}, "turn 0 is a string ('Hi')"),
        (
            {"conversations": [{"from": "human", "value": 3}]},
            "turn 0: 'value' is a number ('3'), expected a string",
        ),
        ({"conversations": [{"value": "Hi"}]}, "turn 0: 'from' is missing, expected a string"),
    ],
)
def test_wrong_types_say_what_was_found_and_expected(write, images, record, detail):
    (finding,) = check_file(write([record]), images).findings
    assert finding.code == "wrong_type" and detail in finding.offenders[0].detail


def test_foreign_role_names_are_translated_in_the_message(write, images):
    path = write([write.record(conversations=turns(("user", "<image>"), ("Assistant", "x")))])
    (finding,) = check_file(path, images).findings
    assert [offender.detail for offender in finding.offenders] == [
        "turn 0 is from 'user': write 'human'",
        "turn 1 is from 'Assistant': write 'gpt'",
    ]


def test_markers_are_counted_against_the_list_of_images(write, images):
    path = write(
        [
            write.record("two of two", ["ok.png", "ok.png"], "<image><image>?"),
            write.record("one of two", ["ok.png", "ok.png"], "<image>?"),
            write.record("text", None, "<image>?"),
        ]
    )
    report = check_file(path, images)
    details = {finding.code: finding.offenders[0].detail for finding in report.findings}
    assert details == {
        "missing_marker": "1 <image> for 2 images",
        "extra_marker": "1 <image> for 0 images (a text-only record)",
    }


def test_an_image_used_by_many_records_is_opened_once_and_counted_for_each(write, images, monkeypatch):
    import lmmblocks.data.check_images as module

    opened = []
    original = module.open_image
    monkeypatch.setattr(module, "open_image", lambda path: opened.append(path) or original(path))
    (images / "bad.jpg").write_text("no")
    names = ["ok.png", "bad.jpg"] * 20
    report = check_file(write([write.record(str(n), name) for n, name in enumerate(names)]), images)
    assert sorted(opened) == [str(images / "bad.jpg"), str(images / "ok.png")]
    assert report.counts == {"corrupt_image": 20} and report.image_files == 2
    assert [offender.index for offender in report.findings[0].offenders] == [1, 3, 5, 7, 9]


def test_only_the_first_offenders_are_listed_but_all_are_counted(write, images):
    path = write([write.record(str(n), answer="") for n in range(9)])
    report = check_file(path, images, limit=2)
    assert report.counts == {"empty_answer": 9}
    assert [offender.index for offender in report.findings[0].offenders] == [0, 1]
    assert "  and 7 more" in report.render().splitlines()


def test_given_token_counts_decide_and_refusals_are_reported(write, images):
    def count(sample):
        if sample.id == "refused":
            raise LmmError("no such token")
        return Reading(10 if sample.id == "short" else 11)

    path = write([write.record(name) for name in ("short", "long", "refused")])
    report = check_file(path, images, max_tokens=10, read=count)
    details = {finding.code: finding.offenders[0].detail for finding in report.findings}
    assert details == {"too_long": "11 tokens, allowed 10", "untokenisable": "no such token"}


def test_without_a_tokenizer_lengths_are_a_lower_bound(write, images):
    path = write([write.record("a", question="<image> one two", answer="three four")])
    assert check_file(path, images, max_tokens=6).ok
    (finding,) = check_file(path, images, max_tokens=5).findings
    assert finding.offenders[0].detail == "at least 6 tokens, allowed 5"


def test_broken_json_is_a_finding_with_line_and_column(tmp_path, images):
    (tmp_path / "data.json").write_text('[{"id": 1},\n {"id" 2}]')
    report = check_file(tmp_path / "data.json", images)
    assert report.counts == {"broken_json": 1} and not report.ok
    assert "data.json:2:8: Expecting ':' delimiter" in report.render()
    (tmp_path / "data.jsonl").write_text('{"id": 1, "conversations": 3}\n{"id" 2}\n{"id"\n')
    report = check_file(tmp_path / "data.jsonl", images)
    assert report.counts == {"broken_json": 2, "wrong_type": 1}


def test_an_empty_list_is_not_fit(write, images):
    assert check_file(write([]), images).counts == {"no_records": 1}


def test_every_length_a_jpeg_is_cut_to_is_found(write, images):
    """Truncation is only seen by decoding: the header alone looks sound."""
    PICTURE.save(images / "whole.jpg")
    whole = (images / "whole.jpg").read_bytes()
    cuts = range(0, len(whole) - 20, 97)
    for cut in cuts:
        (images / f"{cut}.jpg").write_bytes(whole[:cut])
    report = check_file(write([write.record(str(cut), f"{cut}.jpg") for cut in cuts]), images)
    assert sum(report.counts.values()) == len(cuts), report.counts
    assert set(report.counts) <= {"zero_byte_image", "truncated_image", "corrupt_image"}


def cli(*arguments):
    return main(["data", "check", *map(str, arguments)])


def test_exit_code_0_when_fit_and_the_table_says_so(write, images, capsys):
    assert cli(write([write.record("a"), write.record("b", None, "Hi", "Ho")]), "--images", images) == 0
    out = capsys.readouterr().out
    assert "2 records (1 text-only), 1 image file in" in out and out.endswith("fit for training\n")


def test_exit_code_1_with_an_aligned_table_offenders_and_advice(write, images, capsys):
    path = write([write.record("a", "gone.png"), write.record("b", answer="")])
    assert cli(path, "--images", images) == 1
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("problem", "empty_answer  ", "missing_image  "))]
    assert len({line.index(meaning) for line, meaning in zip(table, ["meaning", "a gpt turn", "the image file"])}) == 1
    assert "empty_answer (1): write the answer, or remove the pair" in lines
    assert "  record 1, id 'b': turn 1 is empty" in lines
    assert lines[-1] == "NOT fit for training: 2 problems of 2 kinds"


def test_json_report_is_the_same_as_the_python_one(write, images, capsys):
    path = write([write.record("a", "gone.png")])
    assert cli(path, "--images", images, "--json") == 1
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(check_file(path, images).to_dict()))


def test_exit_code_2_without_traceback_for_what_cannot_run(write, images, capsys, tmp_path):
    sound = write([write.record("a")])
    wrong = {
        (tmp_path / "no.json", "--images", images): "cannot be opened",
        (tmp_path, "--images", images): "cannot be opened",
        (sound, "--images", tmp_path / "nowhere"): "images folder",
        (sound, "--images", images, "--allow", "duplicate_ids"): "did you mean 'duplicate_id'",
        (sound, "--images", sound): "is a file: give the folder",
        (sound, "--images", images, "--max-tokens", 0): "error: found --max-tokens 0, expected 1 or more\n",
        (sound, "--images", images, "--limit", -1): "error: found --limit -1, expected 0 or more\n",
        (sound, "--images", images, "--tokenizer", tmp_path): "holds no tokenizer",
        (sound, "--images", images, "--template", "vicuna_v2"): "did you mean 'vicuna_v1'",
        (sound, "--images", images, "--template", "auto"): "there is no tokenizer",
        (sound, "--images", images, "--max-tokens", 9, "--tokenizer", tmp_path / "no"): "tokenizer folder",
        (sound, "--images", images, "--max-tokens", 9, "--tokenizer", images): "holds no tokenizer: expected tokenizer.json or ",
        (sound, "--images", images, "--max-tokens", 9, "--tokenizer", sound): "is a file: give a local folder",
    }
    for arguments, message in wrong.items():
        assert cli(*arguments) == 2, arguments
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and message in captured.err and not captured.out


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["<loc>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.add_tokens(["<seg>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tokenizer


def test_exact_lengths_count_the_rendered_conversation_and_image_rows(write, images, tmp_path, capsys, tokenizer):
    from lmmblocks.chat import encode_chat

    path = write([write.record("a")])
    messages = [
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "A cat"},
    ]
    length = len(encode_chat(messages, "vicuna_v1", tokenizer).ids) + 63
    common = (path, "--images", images, "--tokenizer", tmp_path / "tokenizer", "--image-rows", 64)
    assert cli(*common, "--max-tokens", length) == 0
    assert cli(*common, "--max-tokens", length - 1) == 1
    assert f"{length} tokens, allowed {length - 1}" in capsys.readouterr().out


def test_texts_that_spell_a_special_token_are_counted_and_others_are_not(write, images, tmp_path, tokenizer, recwarn):
    texts = {"loc": "at <|im_end|> and <loc>", "structure": "</s> is text", "markup": "<|im_end|>", "ordinary": "<seg>", "image": "\\<image>"}
    path = write([write.record(name, answer=text) for name, text in texts.items()])
    (note,) = check_file(path, images, read=sample_reader(tmp_path / "tokenizer", template="chatml")).findings
    assert (note.code, note.count, note.offenders[0].id, note.note) == ("special_in_text", 1, "loc", True)
    assert "'<loc>'" in note.offenders[0].detail and not recwarn
    without_markup = check_file(path, images, read=sample_reader(tmp_path / "tokenizer", template="vicuna_v1"))
    assert [place.id for place in without_markup.findings[0].offenders] == ["loc", "loc", "markup"]


RECORDS = {
    "one turn": ([], 1, True),
    "two turns": ([], 2, True),
    "a system turn": ([("system", "Be brief.")], 1, True),
    "an empty system turn": ([("system", "")], 1, True),
    "no image": ([], 1, False),
}


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("counted", [False, True])
def test_what_a_template_refuses_in_training_makes_a_file_unfit(write, images, tmp_path, tokenizer, name, counted):
    from lmmblocks.chat import encode_chat

    tokenizer.add_special_tokens({"additional_special_tokens": sorted(getattr(TEMPLATES[name], "tokens", ()))})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    read = sample_reader(tmp_path / "tokenizer" if counted else None, template=name)
    for system, pairs, image in RECORDS.values():
        asked = [("human", "<image>\nWhat?" if image else "What?"), ("gpt", "A cat"), ("human", "And?"), ("gpt", "No")][: 2 * pairs]
        path = write([write.record("r", "ok.png" if image else None, conversations=turns(*system, *asked))])
        (sample,) = load_records(path, images)
        try:
            encode_chat(sample.messages, name, tokenizer)
            trains = True
        except LmmError as error:
            trains = False
            assert str(error) in check_file(path, images, read=read).findings[0].offenders[0].detail
        assert check_file(path, images, read=read).ok == trains


@pytest.mark.parametrize("layout", ["native", "hf", "llava"])
def test_a_models_folder_is_read_with_its_own_template(write, images, tmp_path, capsys, make_tiny_model, layout):
    make_tiny_model(template="plain").save(tmp_path / "model", format=layout)
    path = write([write.record("r", conversations=turns(("system", "Be brief."), ("human", "<image>"), ("gpt", "A cat")))])
    assert cli(path, "--images", images) == 0
    assert cli(path, "--images", images, "--tokenizer", tmp_path / "model", "--template", "vicuna_v1") == 0
    capsys.readouterr()
    assert cli(path, "--images", images, "--tokenizer", tmp_path / "model") == 1
    assert "template 'plain' has no place for a system message" in capsys.readouterr().out


def test_help_lists_the_codes(capsys):
    with pytest.raises(SystemExit):
        cli("--help")
    assert set(PROBLEM_KINDS) <= {word.strip(",") for word in capsys.readouterr().out.split()}


def test_the_check_imports_neither_torch_nor_transformers():
    code = "import sys, lmmblocks.data.check; sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("unseen", ["", " \r\n", "\u200b", "\ufeff\u200d", "\0", "\u2028\u00a0\u3000"])
@pytest.mark.parametrize("turn", ["question", "answer"])
def test_a_text_of_nothing_that_is_seen_is_empty(write, images, turn, unseen):
    given = {"question": f"<image>{unseen}", "answer": "A cat"} if turn == "question" else {"answer": unseen}
    code = "image_only_question" if turn == "question" else "empty_answer"
    assert list(check_file(write([write.record("a", **given)]), images).counts) == [code]


@pytest.mark.parametrize("mark", ["<Image>", "<IMAGE>", "< image >", "</image>", "<Img>x.png</img>", "<|image|>"])
def test_a_mark_that_is_written_almost_right_is_noted(write, images, mark):
    record = write.record("a", question=f"<image>{mark}\nWhat?")
    assert list(check_file(write([record]), images).counts) == ["foreign_marker"]
