"""LLaVA's JSON becomes samples; what cannot be used is refused or counted, never dropped in silence."""

import json
import logging
import pickle
import shutil

import pytest
from PIL import Image

from lmmblocks.data.records import load_records
from lmmblocks.spec import LmmError


def test_records_become_samples_with_full_image_paths(write, images):
    shutil.copy(images / "ok.png", images / "b.png")
    two = write.record("two", ["ok.png", "b.png"], "<image> or <image>?", source="coco")
    text = write.record(7, None, "Hello there", "Hi")
    records = load_records(write([write.record("one"), two, text]), images)
    assert len(records) == 3 and not records.skipped
    assert records[0].messages == [
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "A cat"},
    ]
    assert [sample.images for sample in records] == [
        [str(images / "ok.png")],
        [str(images / "ok.png"), str(images / "b.png")],
        [],
    ]
    assert [sample.id for sample in records] == ["one", "two", 7]
    assert records.raw(1)["source"] == "coco", "extra keys are kept"
    assert [sample.id for sample in records[1:]] == ["two", 7]
    assert records[-1].id == 7


def test_lengths_are_llavas_word_counts_negative_without_image(write, images):
    # Over all turns, as written: "<image>" and the line break count as split() sees them.
    records = load_records(
        write(
            [
                write.record("a", question="<image>\nWhat is  it?", answer="A cat"),
                write.record("b", None, "Hello there", "Hi you two"),
                write.record("c", [], "one", "two"),
            ]
        ),
        images,
    )
    assert records.lengths == [6, -5, -2]


def test_jsonl_gives_the_same_samples(write, images):
    entries = [write.record(str(number)) for number in range(4)]
    one, lines = load_records(write(entries), images), load_records(write(entries, "data.jsonl"), images)
    assert list(one) == list(lines)


def test_loading_opens_no_image_unless_told_to_decode(write, images):
    (images / "text.jpg").write_text("not an image")
    path = write([write.record("good"), write.record("bad", "text.jpg")])
    assert len(load_records(path, images)) == 2
    with pytest.raises(LmmError, match=r"record 1 \(id 'bad'\): corrupt_image"):
        load_records(path, images, images="decode")
    assert [sample.id for sample in load_records(path, images, policy="skip", images="decode")] == ["good"]


def test_policy_error_names_the_first_offenders_and_the_ways_out(write, images):
    bad = [write.record(f"bad{number}", question="no marker") for number in range(7)]
    with pytest.raises(LmmError) as caught:
        load_records(write([write.record("good"), *bad]), images)
    message = str(caught.value)
    assert "7 of 8 records cannot be used" in message
    assert "record 1 (id 'bad0'): missing_marker: 0 <image> for 1 images" in message
    assert "and 2 more" in message and "policy='skip'" in message and "lmmblocks data check" in message


def test_policy_skip_counts_by_reason_and_logs_it(write, images, caplog):
    entries = [
        write.record("good"),
        write.record("gone", "gone.png"),
        write.record("empty", answer=" "),
        write.record("both", "gone.png", answer=""),
    ]
    with caplog.at_level(logging.WARNING):
        records = load_records(write(entries), images, policy="skip")
    assert [sample.id for sample in records] == ["good"]
    assert [(entry.index, entry.id) for entry in records.skipped] == [(1, "gone"), (2, "empty"), (3, "both")]
    assert records.skip_report() == "skipped 3 of 4 records: 2 missing_image, 2 empty_answer"
    assert records.skip_report() in caplog.text
    assert {problem.code for problem in records.skipped[2].problems} == {"missing_image", "empty_answer"}


def test_a_record_with_one_problem_twice_is_counted_once(write, images):
    twice = write.record("twice", answer=" ")
    twice["conversations"] *= 2
    twice["image"] = [twice["image"]] * 2
    records = load_records(write([write.record("good"), twice]), images, policy="skip")
    assert [problem.code for problem in records.skipped[0].problems] == ["empty_answer"] * 2
    assert records.skip_report() == "skipped 1 of 2 records: 1 empty_answer"


def test_broken_lines_of_jsonl_are_skipped_and_counted(write, images, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{json.dumps(write.record("a"))}\n\n{{"id": \n{json.dumps(write.record("b"))}\n')
    with pytest.raises(LmmError, match=r"data\.jsonl:3:8: Expecting value"):
        load_records(path, images)
    records = load_records(path, images, policy="skip")
    assert [sample.id for sample in records] == ["a", "b"]
    assert records.skip_report() == "skipped 1 of 3 records: 1 broken_json"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('[\n  {"id": 1},\n  {"id" 2}\n]', "data.json:3:9: Expecting ':' delimiter, at '2}.n]'"),
        ('[{"id": "a}]', "data.json:1:9: Unterminated string"),
        ("", "data.json:1:1: Expecting value, the file is empty"),
        ("[1, 2", "data.json:1:6: Expecting ',' delimiter, at the end of the text"),
        ('{"a": 1}\n{"a": 2}', "data.json:2:1: Extra data.*name the file .jsonl"),
        ('{"a": 1}', "expected a list of records, found dict"),
        ("[" + "9" * 5000 + "]", "data.json:1:1: not records: Exceeds the limit"),
        ("[" * 100_000, "data.json:1:"),
        ('[{"a": 1}, // why\n{"a": 2}]', "JSON has no comments: remove them"),
        ('[{"a": 1,}]', "JSON has no comma before a closing bracket"),
        ('[{"a": 1},]', "JSON has no comma before a closing bracket"),
        ("[{'a': 1}]", "JSON has double quotes"),
        ('{"data": [{"a": 1}], "version": 1}', "the list under 'data' may be meant: write it alone"),
        ('[{"image": "a.png", "image": "b.png"}]', "an object has the key 'image' twice"),
        ('[{"id": "b7", "image": "a.png", "image": "b.png"}]', "it begins with .*'b7'"),
        ("PK\x03\x04", "the file is a zip archive, expected JSON: unpack it"),
        ("PAR1" + "x" * 20, "the file is parquet, expected JSON: write its rows as JSON"),
    ],
)
def test_broken_json_is_named_by_file_line_and_column(tmp_path, content, where):
    (tmp_path / "data.json").write_text(content)
    for policy in ("error", "skip"):
        with pytest.raises(LmmError, match=where):
            load_records(tmp_path / "data.json", tmp_path, policy=policy)


def test_bytes_that_are_not_utf8_are_named_by_line_and_column(tmp_path):
    (tmp_path / "data.json").write_bytes(b'[\n {"id": "caf\xe9"}]')
    with pytest.raises(LmmError, match=r"data\.json:2:13: not UTF-8 \(byte 0xe9\)"):
        load_records(tmp_path / "data.json", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08\0", "the file is gzip, expected JSON: unpack it with gunzip"),
        ('[{"id": 1}]'.encode("utf-16"), "the file is UTF-16, expected UTF-8: convert it with iconv"),
        (b"(\xb5/\xfd\0", "the file is zstandard"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer, expected JSON: fetch the file"),
    ],
)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_other_kinds_of_files_are_named_with_what_reads_them(tmp_path, content, words, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LmmError, match=words):
        load_records(tmp_path / name, tmp_path)


def test_a_list_named_jsonl_is_told_apart_from_lines(write, images, tmp_path):
    entry = write.record("a")
    for text in (json.dumps([entry]), json.dumps([entry], indent=1), f"[{json.dumps(entry)},\n {json.dumps(entry)}]"):
        (tmp_path / "list.jsonl").write_text(text)
        with pytest.raises(LmmError, match="found a list, expected one object per line as .jsonl has it: name the file .json"):
            load_records(tmp_path / "list.jsonl", images)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (lambda entry: json.dumps(entry, indent=1), "data.jsonl:1:2: .*no line of the file is a record: write each on one line"),
        (lambda entry: json.dumps(entry) * 2, "data.jsonl:1:.*one line holds one record"),
    ],
)
def test_records_that_dont_stand_on_one_line_each_are_told_what_a_line_holds(write, images, tmp_path, written, words):
    (tmp_path / "data.jsonl").write_text(written(write.record("a")))
    with pytest.raises(LmmError, match=words):
        load_records(tmp_path / "data.jsonl", images)


def test_a_byte_order_mark_does_no_harm(write, images):
    path = write([write.record("a", question="<image> été 猫")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_records(path, images)[0].messages[0]["content"] == "<image> été 猫"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "..", "a\0b.png"])
def test_paths_out_of_the_images_folder_are_refused(write, images, name):
    Image.new("RGB", (4, 4)).save(images.parent / "secret.png")
    with pytest.raises(LmmError, match="leads out of the images folder"):
        load_records(write([write.record("a", name)]), images)


def test_a_path_that_turns_back_inside_the_folder_is_fine(write, images):
    (images / "sub").mkdir()
    assert load_records(write([write.record("a", "sub/../ok.png")]), images)[0].images == [str(images / "sub/../ok.png")]


def test_missing_files_and_folders_and_empty_lists_are_clear_errors(write, images, tmp_path):
    with pytest.raises(LmmError, match="no.json cannot be opened: No such file"):
        load_records(tmp_path / "no.json", images)
    with pytest.raises(LmmError, match="images folder .*nowhere does not exist"):
        load_records(write([write.record("a")]), tmp_path / "nowhere")
    with pytest.raises(LmmError, match="no usable record: the file is an empty list"):
        load_records(write([]), images)
    with pytest.raises(LmmError, match="no usable record; the first: record 0"):
        load_records(write([write.record("a", answer="")]), images, policy="skip")
    with pytest.raises(LmmError, match="policy 'drop' is unknown"):
        load_records(write([write.record("a")]), images, policy="drop")


def test_text_only_data_needs_no_images_folder(write, tmp_path):
    assert len(load_records(write([write.record("a", None, "Hi", "Hello")]), tmp_path / "nowhere")) == 1


def test_records_can_be_sent_to_a_worker(write, images):
    records = load_records(write([write.record("a")]), images)
    assert list(pickle.loads(pickle.dumps(records))) == list(records)
