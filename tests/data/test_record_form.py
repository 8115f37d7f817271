"""Every usual dialect becomes the same sample; nothing of a record is dropped without a word; check and loader agree on any file."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lmmblocks.data.check import check_file
from lmmblocks.data.record_keys import READ
from lmmblocks.data.records import load_records
from lmmblocks.eval import read_questions
from lmmblocks.spec import LmmError

LLAVA = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat"}]
OPENAI = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat"}]
PICTURE, QUESTION = {"type": "image"}, {"type": "text", "text": "What?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def parts(*content):
    return [
        {"role": "user", "content": list(content)},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat"}]},
    ]


DIALECTS = {
    "llava": {"image": "ok.png", "conversations": LLAVA},
    "list of one": {"image": ["ok.png"], "conversations": LLAVA},
    "images": {"images": ["ok.png"], "conversations": LLAVA},
    "images, one path": {"images": "ok.png", "conversations": LLAVA},
    "openai": {"image": "ok.png", "messages": OPENAI},
    "roles in conversations": {"image": "ok.png", "conversations": OPENAI},
    "content list": {"images": ["ok.png"], "messages": parts(PICTURE, QUESTION)},
    "path in a part": {"messages": parts({"type": "image", "image": "ok.png"}, QUESTION)},
    "url of a part": {"messages": parts({"type": "image_url", "image_url": {"url": "ok.png"}}, QUESTION)},
    "empty other image key": {"image": "ok.png", "images": None, "conversations": LLAVA},
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("system", [None, "key", "turn"])
def test_every_dialect_becomes_the_same_sample(write, images, dialect, system):
    record = dict(DIALECTS[dialect])
    key = "messages" if "messages" in record else "conversations"
    if system == "key":
        record["system"] = SYSTEM["content"]
    elif system == "turn":
        own = {"from": "system", "value": "Be brief."} if "from" in record[key][0] else SYSTEM
        record[key] = [own, *record[key]]
    path = write([record])
    (sample,) = load_records(path, images)
    assert sample.messages == ([SYSTEM] if system else []) + OPENAI
    assert sample.images == [str(images / "ok.png")]
    assert check_file(path, images).counts == {}


def test_images_stand_where_their_parts_do(write, images):
    record = {
        "images": ["ok.png", "ok.png"],
        "messages": parts({"type": "text", "text": "Is this"}, PICTURE, PICTURE, QUESTION, {"type": "text", "text": " Say."}),
    }
    (sample,) = load_records(write([record]), images)
    assert sample.messages[0]["content"] == "Is this\n<image>\n<image>\nWhat? Say."


LOST = {
    "video": ({"video": "film.mp4"}, "videos aren't read"),
    "a video under another name": ({"media": ["a/film.MP4"]}, "neither videos nor sound"),
    "audio": ({"audio": "a.wav"}, "sound isn't read"),
    "tools": ({"tools": [{"name": "search"}]}, "write them into the system message"),
    "misspelt system": ({"sytem": "Be brief."}, "did you mean 'system'"),
    "system prompt": ({"system_prompt": "Be brief."}, "did you mean 'system'"),
    "capital": ({"Images": ["a.png"]}, "did you mean 'images'"),
    "numbered image": ({"image2": "b.png"}, "did you mean 'image'"),
    "turns under another name": ({"chat": OPENAI}, "turns are read from 'conversations' or 'messages'"),
    "singular": ({"conversation": LLAVA}, "did you mean 'conversations'"),
    "history": ({"history": [["Hi", "Ho"]]}, "earlier turns"),
}
LOST_WITHOUT_IMAGE = {
    "img": ({"img": "a.png"}, "did you mean 'image'"),
    "image_path": ({"image_path": "a"}, "did you mean 'image'"),
    "a picture under any name": ({"file_name": "coco/1.jpg"}, "the record has no image"),
    "a url": ({"url": "https://example.org/a.jpg?size=2"}, "the record has no image"),
    "bytes": ({"pixels": {"bytes": "iVBOR", "path": None}}, "the record has no image"),
}


@pytest.mark.parametrize("case", LOST | LOST_WITHOUT_IMAGE)
def test_keys_that_hold_content_are_refused_by_name(write, images, case):
    more, words = (LOST | LOST_WITHOUT_IMAGE)[case]
    text_only = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat"}]
    path = write([{"id": 1, "conversations": text_only, **more}])
    (finding,) = check_file(path, images).findings
    assert finding.code == "unread_key" and words in finding.offenders[0].detail and repr(next(iter(more))) in finding.offenders[0].detail
    with pytest.raises(LmmError, match="unread_key"):
        load_records(path, images)


def test_keys_that_say_something_about_a_record_are_counted_and_listed(write, images):
    more = {
        **{
            "model": "gpt-4",
            "source": "coco",
            "width": 24,
            "dataset": "vqa",
            "url": "https://example.org/a.jpg",
            "image_id": "x1",
        },
        **{
            "conversation_id": "c",
            "image_size": [24, 16],
            "category": None,
            "task": "vqa",
            "tasks": ["vqa"],
            "img": "a.png",
        },
    }
    turn = [{**LLAVA[0], "markdown": True, "text": None}, LLAVA[1]]
    path = write(
        [
            {"id": 1, "image": "ok.png", "conversations": LLAVA},
            *({"id": n, "image": "ok.png", "conversations": turn, **more} for n in (2, 3)),
        ]
    )
    report = check_file(path, images, limit=1)
    assert report.ok and len(load_records(path, images)) == 3
    (note,) = report.findings
    shown = [offender.detail for offender in note.offenders]
    read = {"tasks", "category"}
    assert shown == [f"{key}: in 2 records, the first is record 1" for key in [*(k for k in more if k not in read), "markdown of a turn"]]


@pytest.mark.parametrize("key", ["loss", "weight", "tool_calls", "image", "text"])
def test_keys_of_turns_that_change_what_is_learned_are_refused(write, images, key):
    path = write([{"id": 1, "image": "ok.png", "conversations": [LLAVA[0], {**LLAVA[1], key: [1]}]}])
    assert check_file(path, images).counts == {"unread_key": 1}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"image": "ok.png", "images": ["ok.png"], "conversations": LLAVA}, "both image and images"),
        ({"image": "ok.png", "conversations": LLAVA, "messages": OPENAI}, "both conversations and messages"),
        (
            {"image": "ok.png", "system": "a", "conversations": [{"from": "system", "value": "b"}, *LLAVA]},
            "both a system key and a system turn",
        ),
        ({"image": "ok.png", "system": 3, "conversations": LLAVA}, "system is a number"),
        (
            {"image": "ok.png", "conversations": [*LLAVA, {"from": "system", "value": "b"}, *LLAVA]},
            "turn 2 is a system turn, expected it only as the first",
        ),
        ({"conversations": [{"from": "system", "value": "b"}]}, "there is a system turn only"),
        ({"image": "ok.png", "messages": parts({"type": "video", "video": "a"})}, "a part of type 'video'"),
        ({"image": "ok.png", "messages": parts("What?")}, "turn 0: a string .'What.'. in its content"),
        (
            {"image": "ok.png", "messages": [{"role": "model", "content": "x"}]},
            "turn 0 is from 'model': write 'assistant'",
        ),
        (
            {"image": "ok.png", "messages": [{"role": "tool", "content": "x"}]},
            "turn 0 is from 'tool': expected",
        ),
        ({"image": "ok.png", "conversations": json.dumps(LLAVA)}, "it is JSON inside a string: write the list itself"),
        ({"image": "ok.png", "sentences": [["a"]]}, "conversations is missing.*; the record has image, sentences"),
        (
            {"image": "ok.png", "conversations": [{"from": "human", "content": "What?"}]},
            "turn 0: 'value' is missing, expected a string: a turn has 'from' and 'value' or 'role' and 'content'\nmend",
        ),
        ({"image": "https://example.org/a.png", "conversations": LLAVA}, "url_image: .*URLs aren't read"),
        (
            {"image": "ok.png", "system": "<image>", "conversations": LLAVA},
            "marker_in_answer: the system message",
        ),
    ],
)
def test_what_contradicts_itself_or_is_not_read_is_refused_in_words(write, images, record, words):
    path = write([record])
    assert not check_file(path, images).ok
    with pytest.raises(LmmError, match=words):
        load_records(path, images)


def test_an_absolute_path_inside_the_images_folder_is_taken(write, images, tmp_path):
    (sample,) = load_records(write([write.record("a", str(images / "ok.png"))]), images)
    assert sample.images == [str(images / "ok.png")]
    (tmp_path / "linked").symlink_to(images)
    assert len(load_records(write([write.record("a", str(images / "ok.png"))]), tmp_path / "linked")) == 1


TEXTS = st.sampled_from(["Hi", "<image>", "<image>\nWhat?", "", " ", "7", "\ud800", "a <image> b"])
PATHS = st.sampled_from(["ok.png", "gone.png", "cut.png", "../x.png", "", "https://e.org/a.png", "deep.tif"])
IMAGES = st.one_of(st.none(), PATHS, st.lists(PATHS, max_size=2), st.just(3))
TURNS = st.one_of(
    st.builds(
        lambda role, text: {"from": role, "value": text},
        st.sampled_from(["human", "gpt", "system", "user"]),
        TEXTS,
    ),
    st.builds(
        lambda role, text: {"role": role, "content": text},
        st.sampled_from(["user", "assistant", "system", "tool"]),
        TEXTS,
    ),
    st.builds(
        lambda kind: {"role": "user", "content": [{"type": kind, "text": "x"}]},
        st.sampled_from(["text", "image", "video"]),
    ),
    st.sampled_from([3, {}, {"from": "human"}]),
)
OTHER = st.dictionaries(
    st.sampled_from([*READ, "video", "source", "task", "tasks", "kinds", "sytem"]),
    st.sampled_from(["x", 3, None, ["x"], ["short"]]),
    max_size=2,
)
PAIR = st.tuples(st.sampled_from(["Hi", "<image>\nWhat?"]), st.sampled_from(["Ho", "red"])).map(
    lambda pair: [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]
)
RECORDS = st.builds(
    lambda more, image, turns: {**more, "image": image, "conversations": turns},
    OTHER,
    IMAGES,
    st.one_of(PAIR, st.lists(TURNS, max_size=4)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("property")
    (folder / "images").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "images/ok.png")
    Image.new("F", (8, 8), 9.0).save(folder / "images/deep.tif")
    (folder / "images/cut.png").write_bytes((folder / "images/ok.png").read_bytes()[:40])
    return folder


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.one_of(RECORDS, st.sampled_from([3, None, []])), max_size=2))
def test_check_and_loader_agree_on_every_file(folder, records):
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    fit = check_file(path, folder / "images").ok
    try:
        loaded = load_records(path, folder / "images", images="decode")
    except LmmError as error:
        assert not fit, error
        return
    assert fit and len(loaded) == len(records)
    for sample in loaded:  # and every sample is one
        assert sum(message["content"].count("<image>") for message in sample.messages) == len(sample.images)
    try:
        read_questions(loaded)
        asked = True
    except LmmError:
        asked = False
    assert check_file(path, folder / "images", questions=True).ok == asked


def test_the_check_for_evaluation_names_what_evaluation_refuses(write, images):
    sound = write.record("a", tasks=["color"], kinds=["short"])
    for more, words in (
        ({"task": "color"}, "did you mean 'tasks'"),
        ({"tasks": "color"}, "expected a list with one name"),
        ({"kinds": ["shrt"]}, "shrt"),
    ):
        path = write([sound, write.record("b", **more)])
        assert check_file(path, images).ok
        (finding,) = (f for f in check_file(path, images, questions=True).findings if not f.note)
        assert finding.code == "bad_question" and words in finding.offenders[0].detail
        with pytest.raises(LmmError, match="record 'b'"):
            read_questions(load_records(path, images))
