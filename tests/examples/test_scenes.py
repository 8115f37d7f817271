"""The tiny world: reproducible, split without leaks, and every answer true to its scene."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.llava15.scenes.__main__ import main
from examples.llava15.scenes.corpus import corpus_messages, corpus_text
from examples.llava15.scenes.dataset import ALL_TASKS, write_dataset, write_pretrain
from examples.llava15.scenes.describe import box_text, caption, padded_box, regions
from examples.llava15.scenes.draw import draw_scene, grey_out
from examples.llava15.scenes.glyphs import digit_instances
from examples.llava15.scenes.questions import TASKS, compare
from examples.llava15.scenes.scene import Item, Scene, is_heldout, sample_scene
from examples.llava15.scenes.vocabulary import (
    COLORS,
    HELDOUT_SHAPE_PAIRS,
    HELDOUT_WORD_PAIRS,
    POSITIONS,
    SHAPES,
    TRAIN_SHAPE_PAIRS,
)
from lmmblocks.spec import LmmError

ROOT = Path(__file__).resolve().parents[2]
ZH = dict(
    zip(
        (
            "红色",
            "绿色",
            "蓝色",
            "黄色",
            "紫色",
            "橙色",
            "青色",
            "粉色",
            "圆形",
            "正方形",
            "三角形",
            "星形",
            "十字形",
            "菱形",
        ),
        (*COLORS, *SHAPES),
    )
)


def _scenes(count: int, split: str, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, split) for _ in range(count)]  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------- scenes and pixels


def test_same_seed_gives_same_pixels_and_files_whatever_the_hash_seed(tmp_path: Path) -> None:
    outputs = []
    for hash_seed in ("1", "2"):
        out = tmp_path / hash_seed
        command = [sys.executable, "-m", "examples.llava15.scenes", "--out", str(out), "--seed", "3"]
        command += ["--train", "12", "--pretrain", "3", "--heldout", "20"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        outputs.append({str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()})
    assert outputs[0].keys() == outputs[1].keys()
    assert [name for name in outputs[0] if outputs[0][name] != outputs[1][name]] == []


def test_another_seed_gives_other_scenes() -> None:
    assert _scenes(20, "train", 0) != _scenes(20, "train", 1)


def test_train_scenes_hold_no_heldout_combination_and_heldout_scenes_hold_a_pair() -> None:
    trained = [item for scene in _scenes(3000, "train") for item in scene.items]
    shapes = {(item.color, item.shape) for item in trained if item.kind == "shape"}
    words = {(item.word, item.color) for item in trained if item.kind == "word"}
    digits = {item.digit_instance for item in trained if item.kind == "digit"}
    assert shapes == set(TRAIN_SHAPE_PAIRS) and not shapes & HELDOUT_SHAPE_PAIRS
    assert len(words) > 200 and not words & HELDOUT_WORD_PAIRS
    heldout_digits = set()
    for scene in _scenes(1000, "heldout"):
        heldout_digits |= {item.digit_instance for item in scene.items if item.kind == "digit"}
        pairs = [item for item in scene.items if item.kind != "digit" and is_heldout(item)]
        assert pairs, f"no held-out pair in {scene}"
    assert len(heldout_digits) > 200 and not heldout_digits & digits


def test_every_handwritten_instance_is_in_exactly_one_split_under_its_label() -> None:
    from sklearn.datasets import load_digits

    labels = load_digits().target
    found = [(i, digit) for by_digit in digit_instances().values() for digit, ids in enumerate(by_digit) for i in ids]
    assert sorted(found) == list(enumerate(labels.tolist()))


def test_every_value_of_a_heldout_pair_is_trained_on_in_other_pairs() -> None:
    assert {color for color, _ in TRAIN_SHAPE_PAIRS} == set(COLORS)
    assert {shape for _, shape in TRAIN_SHAPE_PAIRS} == set(SHAPES)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_boxes_lie_inside_the_picture_apart_from_each_other_and_in_their_cell(split: str) -> None:
    for scene in _scenes(1500, split):
        boxes = [item.box_px for item in scene.items]
        for item, (x0, y0, x1, y1) in zip(scene.items, boxes):
            assert 0 <= x0 < x1 <= scene.width_px and 0 <= y0 < y1 <= scene.height_px, scene
            row, column = (y0 + y1) / 2 / scene.height_px * 3, (x0 + x1) / 2 / scene.width_px * 3
            assert (int(row), int(column)) == item.cell, (item, row, column)
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], scene


def test_the_pixels_of_an_item_s_colour_fill_its_box_and_stay_in_it() -> None:
    checked = 0
    for scene in _scenes(300, "train"):
        pixels = np.asarray(draw_scene(scene), dtype=int)
        for item in scene.items:
            if item.color is None or [other.color for other in scene.items].count(item.color) > 1:
                continue
            near = np.abs(pixels - COLORS[item.color]).max(axis=2) <= 16
            rows, columns = np.nonzero(near)
            x0, y0, x1, y1 = item.box_px
            box = np.zeros_like(near)
            box[y0:y1, x0:x1] = True
            outside = (near & ~box).sum()
            assert outside <= 0.02 * near.sum(), (item, outside)  # antialiased edges of other items
            rows, columns = np.nonzero(near & box)
            extent = (columns.min() - x0, rows.min() - y0, x1 - 1 - columns.max(), y1 - 1 - rows.max())
            assert max(extent) <= 3, (item, extent)
            checked += 1
    assert checked > 300


def test_digit_pixels_are_the_instance_s_strokes() -> None:
    from sklearn.datasets import load_digits

    images, worst = load_digits().images, 1.0
    for scene in _scenes(150, "train"):
        picture = draw_scene(scene).convert("L")
        for item in scene.items:
            if item.kind == "digit":
                small = np.asarray(picture.crop(item.box_px).resize((8, 8), Image.Resampling.BOX), dtype=float)
                correlation = np.corrcoef(small.ravel(), images[item.digit_instance].ravel())[0, 1]
                worst = min(worst, -correlation if not item.inverted else correlation)
    assert worst > 0.85, worst


def test_words_are_legible_after_padding_and_scaling() -> None:
    """Letters stay at least 13 px high at the encoder's 112 px, with ink far from the sign's colour."""
    for scene in _scenes(200, "train"):
        scale = 112 / max(scene.width_px, scene.height_px)
        picture = np.asarray(draw_scene(scene), dtype=float)
        for item in scene.items:
            if item.kind == "word":
                x0, y0, x1, y1 = item.box_px
                sign = picture[y0:y1, x0:x1].mean(axis=2)
                ink = np.abs(sign - np.median(sign)) > 35
                height = ink.any(axis=1).nonzero()[0]
                assert (height[-1] - height[0] + 1) * scale >= 12.5, item
                assert ink.mean() > 0.08, item


def test_canvases_are_square_landscape_and_portrait_and_greying_keeps_their_size() -> None:
    sizes = set()
    for scene in _scenes(60, "train"):
        image = draw_scene(scene)
        grey = grey_out(image)
        assert image.mode == "RGB" and image.size == grey.size == (scene.width_px, scene.height_px)
        assert len(set(grey.get_flattened_data() if hasattr(grey, "get_flattened_data") else grey.getdata())) == 1
        sizes.add((image.width > image.height) - (image.width < image.height))
    assert sizes == {-1, 0, 1}


# ------------------------------------------------------------------------------------- words and boxes


def test_a_caption_names_every_item_once_and_regions_have_their_boxes() -> None:
    rng = random.Random(0)
    for scene in _scenes(500, "heldout"):
        sentence = caption(scene, rng)
        assert sentence.endswith(".") and sentence.count(".") == 1
        for item in scene.items:
            assert _phrase(item) in sentence and POSITIONS[item.cell] in sentence, (item, sentence)
            if item.kind == "word":
                assert f"{item.color} sign" in sentence
        assert regions(scene) == [(_phrase(item), tuple(map(float, item.box_px))) for item in scene.items]


def test_box_text_is_relative_to_the_padded_square() -> None:
    item = Item("shape", (0, 0), (16, 8, 48, 40), 32, color="red", shape="circle")
    wide = Scene(128, 96, (0, 0, 0), (item,), 0)
    tall = Scene(96, 128, (0, 0, 0), (item,), 0)
    assert box_text(padded_box(wide, item)) == "[0.12, 0.19, 0.38, 0.44]"
    assert box_text(padded_box(tall, item)) == "[0.25, 0.06, 0.50, 0.31]"


# ------------------------------------------------------------------- answers, worked out independently


def _phrase(item: Item) -> str:
    return {
        "shape": f"{item.color} {item.shape}",
        "digit": f"digit {item.digit}",
        "word": f"word {item.word}",
    }[item.kind]


def _facts(item: Item) -> set[str]:
    """What may be said of an item: the words a question can single it out by."""
    facts = {item.kind, _phrase(item), f"@{POSITIONS[item.cell]}"}
    facts |= {str(value) for value in (item.color, item.shape, item.word) if value is not None}
    return facts | ({"sign"} if item.kind == "word" else set())


def _matching(scene: Scene, *facts: str) -> list[Item]:
    return [item for item in scene.items if set(facts) <= _facts(item)]


def _place(text: str) -> str:
    return "@" + re.sub(r"^(at|in|on) the ", "", text)


def _named(scene: Scene, phrase: str) -> list[Item]:
    return [item for item in scene.items if _phrase(item) == phrase]


def _true_answers(scene: Scene, question: str) -> list[str]:
    """Every answer that the first line of an English question has in a scene, by a reader of its own."""
    readers = {
        r"What color is the sign (.+)\?": lambda p: [i.color for i in _matching(scene, "sign", _place(p))],
        r"What color is the (\w+)\?": lambda s: [i.color for i in _matching(scene, "shape", s)],
        r"What is the color of the shape (.+)\?": lambda p: [i.color for i in _matching(scene, "shape", _place(p))],
        r"What shape is (.+)\?": lambda p: [i.shape for i in _matching(scene, "shape", _place(p))],
        r"What is the shape of the (\w+) object\?": lambda c: [i.shape for i in _matching(scene, c)],
        r"(?:Where|In which part of the picture) is the (.+)\?": lambda p: [POSITIONS[i.cell] for i in _named(scene, p)],
        r"(?:What|Which) digit is (?:shown|written) in the picture\?": lambda: [i.digit for i in _matching(scene, "digit")],
        r"What digit is (.+)\?": lambda p: [i.digit for i in _matching(scene, "digit", _place(p))],
        r"(?:What does the sign say|What word is written in the picture)\?": lambda: [i.word for i in _matching(scene, "word")],
        r"What does the (\w+) sign say\?": lambda c: [i.word for i in _matching(scene, "sign", c)],
        r"What word is written (.+)\?": lambda p: [i.word for i in _matching(scene, "word", _place(p))],
        r"How many objects are in the picture\?": lambda: [len(scene.items)],
        r"How many (\w+) shapes are there\?": lambda c: [len(_matching(scene, "shape", c))],
        r"How many (\w+) are there\?": lambda plural: [
            len(_matching(scene, "shape", next(shape for shape in SHAPES if plural in (shape + "s", shape + "es"))))
        ],
        r"(?:Is there|Does the picture show) an? (\w+ \w+)(?: in the picture)?\?": lambda p: [_yes(_named(scene, p))],
        r"Is the word (\w+) written in the picture\?": lambda w: [_yes(_named(scene, f"word {w}"))],
        r"Is the (\w+) (\w+)\?": lambda s, c: [_yes(i.color == c) for i in _matching(scene, "shape", s)],
        r"Is the (\w+ \w+) (above|below|to the left of|to the right of) the (\w+ \w+)\?": lambda a, how, b: [
            _yes(_related(i, how, j)) for i in _named(scene, a) for j in _named(scene, b)
        ],
    }
    for pattern, read in readers.items():
        match = re.fullmatch(pattern, question)
        if match:
            return [str(answer) for answer in read(*match.groups())]  # type: ignore[operator]
    raise AssertionError(f"no reader for {question!r}")


def _yes(truth: object) -> str:
    return "yes" if truth else "no"


def _related(first: Item, how: str, second: Item) -> bool:
    dy, dx = second.cell[0] - first.cell[0], second.cell[1] - first.cell[1]
    return {"above": dy, "below": -dy, "to the left of": dx, "to the right of": -dx}[how] > 0


def _true_chinese(scene: Scene, question: str) -> list[str]:
    if match := re.fullmatch("(.+形)是什么颜色？", question):
        values: list[str | None] = [item.color for item in _matching(scene, "shape", ZH[match[1]])]
    elif match := re.fullmatch("(.+色)的是什么形状？", question):
        values = [item.shape for item in _matching(scene, ZH[match[1]])]
    elif match := re.fullmatch("图中有几个(.+)？", question):
        wanted = ["shape"] + ([ZH[match[1]]] if match[1] != "形状" else [])
        return ["零一二三四"[len(_matching(scene, *wanted))]]
    elif match := re.fullmatch("图中有(.+色)的(.+形)吗？", question):
        return ["有" if _matching(scene, "shape", ZH[match[1]], ZH[match[2]]) else "没有"]
    else:
        raise AssertionError(f"no reader for {question!r}")
    return [zh for value in values for zh, english in ZH.items() if english == value]


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("task", ["color", "shape", "position", "count", "digit", "word", "yesno", "unanswerable"])
def test_short_answers_are_the_only_true_ones(task: str, split: str) -> None:
    rng, asked = random.Random(1), 0
    for scene in _scenes(600, split):
        turn = TASKS[task](scene, rng)
        if turn is None:
            continue
        asked += 1
        assert (turn.task, turn.kind) == (task, "short")
        true = _true_answers(scene, turn.question.splitlines()[0]) or ["Unanswerable"]
        assert true == [turn.answer], (scene, turn)
    assert asked > 150


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_letters_boxes_regions_json_and_chinese_are_true(split: str) -> None:
    rng = random.Random(2)
    for scene in _scenes(500, split):
        if letter := TASKS["letter"](scene, rng):
            question, *options = letter.question.splitlines()
            texts = dict(option.split(". ") for option in options[:4])
            assert list(texts) == list("ABCD") and len(set(texts.values())) == 4
            assert _true_answers(scene, question) == [texts[letter.answer]]
        if box := TASKS["box"](scene, rng):
            (item,) = _named(scene, box.question.split(": the ")[1])
            _assert_is_box(scene, item, box.answer)
        region = TASKS["region"](scene, rng)
        assert region is not None
        described = _named(scene, region.answer)
        assert any(_is_box(scene, item, region.question.split("region: ")[1]) for item in described)
        listed = TASKS["json"](scene, rng)
        assert listed is not None
        keys = {"shape": ("color", "shape"), "digit": ("digit",), "word": ("color", "word")}
        truth = [{key: getattr(item, key) for key in keys[item.kind]} for item in scene.items]
        assert json.loads(listed.answer) == truth
        if chinese := TASKS["chinese"](scene, rng):
            assert _true_chinese(scene, chinese.question.splitlines()[0]) == [chinese.answer]


def _is_box(scene: Scene, item: Item, text: str) -> bool:
    """Whether a box text, taken back to pixels of the picture, is the item's box to within the rounding."""
    side = max(scene.width_px, scene.height_px)
    offset = ((side - scene.width_px) // 2, (side - scene.height_px) // 2) * 2
    back = [value * side - shift for value, shift in zip(json.loads(re.sub(r"(\d)0\b", r"\1", text)), offset)]
    return all(abs(got - want) <= 0.005 * side + 1e-6 for got, want in zip(back, item.box_px))


def _assert_is_box(scene: Scene, item: Item, text: str) -> None:
    assert re.fullmatch(r"\[(\d\.\d\d(, )?){4}\]", text), text
    assert _is_box(scene, item, text), (scene, item, text)


def test_compare_names_the_only_picture_that_shows_it() -> None:
    rng, answers = random.Random(3), Counter()
    scenes = _scenes(800, "heldout")
    for first, second in zip(scenes[::2], scenes[1::2]):
        if turn := compare(first, second, rng):
            phrase = re.match(r"Which image shows the (.+), the first or the second\?", turn.question)[1]  # type: ignore[index]
            shown = [bool(_named(scene, phrase)) for scene in (first, second)]
            assert shown == [turn.answer == "first", turn.answer == "second"]
            answers[turn.answer] += 1
    assert 0.42 < answers["first"] / answers.total() < 0.58


def test_text_only_turns_are_true() -> None:
    rng = random.Random(4)
    for scene in _scenes(600, "train"):
        turn = TASKS["text"](scene, rng)
        assert turn is not None and turn.kind == "text"
        question = turn.question.splitlines()[0]
        if match := re.fullmatch(r"What is (\d+) (plus|minus) (\d+)\?", question):
            first, second = int(match[1]), int(match[3])
            assert int(turn.answer) == (first + second if match[2] == "plus" else first - second)
        elif match := re.fullmatch(r"(?:How do you spell|Spell the word) (\w+)[?.]", question):
            assert turn.answer.replace(" ", "") == match[1]
        elif match := re.fullmatch(r"What is the (first|last) letter of the word (\w+)\?", question):
            assert turn.answer == match[2][0 if match[1] == "first" else -1]
        elif not question.startswith("What is the opposite of "):
            told, asked = question.split(". ", 1)
            assert _true_answers(scene, asked) == [turn.answer] and "," not in asked, told


# --------------------------------------------------------------------------------------------- balance


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_no_answer_dominates_its_task(split: str) -> None:
    limits = {
        "color": 0.2, "shape": 0.3, "position": 0.2, "count": 0.3, "digit": 0.16, "word": 0.08, "yesno": 0.55,
        "letter": 0.3, "unanswerable": 0.58, "region": 0.1, "chinese": 0.22, "compare": 0.57,
    }  # fmt: skip
    rng, scenes = random.Random(5), _scenes(6400, split)
    answers: dict[str, Counter[str]] = {task: Counter() for task in limits}
    for scene, other in pairwise(scenes):
        for task, counter in answers.items():
            if counter.total() < 2000:
                turn = compare(scene, other, rng) if task == "compare" else TASKS[task](scene, rng)
                counter.update([turn.answer] if turn else [])
    assert {task: counter.total() for task, counter in answers.items()} == dict.fromkeys(limits, 2000)
    shares = {task: counter.most_common(1)[0][1] / counter.total() for task, counter in answers.items()}
    assert not {task: share for task, share in shares.items() if share > limits[task]}, shares
    assert sum(shares.values()) / len(shares) <= 0.30, shares


@pytest.mark.parametrize("task", ["yesno", "unanswerable"])
def test_the_wording_of_a_question_does_not_give_its_answer_away(task: str) -> None:
    """Within each form of question (its nouns and values blanked) the answer stays open."""
    rng, forms = random.Random(6), {}
    for scene in _scenes(6000, "train"):
        if turn := TASKS[task](scene, rng):
            line = turn.question.splitlines()[0]
            form = re.sub(r"\b(digit \d|word \w+|" + "|".join((*COLORS, *SHAPES)) + r")\b", "_", line)
            negative = turn.answer in ("no", "Unanswerable")
            forms.setdefault(form, []).append(negative)
    shares = {form: (round(float(np.mean(found)), 2), len(found)) for form, found in forms.items() if len(found) > 100}
    assert shares and all(0.35 < share < 0.65 for share, _ in shares.values()), shares


# -------------------------------------------------------------------------------- corpus and data sets


def _forbidden(text: str) -> list[str]:
    """Held-out combinations that a text mentions, in English, Chinese or JSON."""
    chinese = {english: zh for zh, english in ZH.items()}
    found = [f"{c} {s}" for c, s in HELDOUT_SHAPE_PAIRS if re.search(rf"\b{c} {s}\b", text)]
    found += [f"{c} {s}" for c, s in HELDOUT_SHAPE_PAIRS if f"{chinese[c]}的{chinese[s]}" in text]
    found += [f"{c} {s}" for c, s in HELDOUT_SHAPE_PAIRS if f'"color": "{c}", "shape": "{s}"' in text]
    found += [f"{w} {c}" for w, c in HELDOUT_WORD_PAIRS if re.search(rf"\bword {w} on an? {c} sign", text)]
    return found + [f"{w} {c}" for w, c in HELDOUT_WORD_PAIRS if f'"color": "{c}", "word": "{w}"' in text]


def test_the_corpus_never_mentions_a_heldout_combination_and_knows_every_task() -> None:
    rng = random.Random(7)
    text = "\n".join(corpus_text(rng) for _ in range(800))
    assert _forbidden(text) == []
    for sign in (
        "bounding box",
        "short description",
        "JSON",
        "Unanswerable",
        "option's letter",
        "请用",
        "Spell",
        "plus",
    ):
        assert sign in text, sign
    assert "<image>" not in text and text.count("ASSISTANT: ") == text.count("</s>")


def test_corpus_messages_alternate_and_boxes_asked_for_are_told() -> None:
    rng, with_boxes = random.Random(8), 0
    for _ in range(500):
        messages = corpus_messages(rng)
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        for question, answer in zip(messages[::2], messages[1::2]):
            if "bounding box" in question["content"]:
                with_boxes += 1
                assert answer["content"] in messages[0]["content"]
    assert with_boxes > 40


def _turns(record: dict) -> list[tuple[str, str]]:
    rows = record["conversations"]
    assert [row["from"] for row in rows] == ["human", "gpt"] * (len(rows) // 2) and rows
    return [(ask["value"], answer["value"]) for ask, answer in zip(rows[::2], rows[1::2])]


def _check_images(record: dict, folder: Path) -> int:
    images = record.get("image", [])
    images = [images] if isinstance(images, str) else images
    first = record["conversations"][0]["value"]
    assert first.startswith("<image>\n" * len(images))
    assert sum(row["value"].count("<image>") for row in record["conversations"]) == len(images)
    for name in images:
        with Image.open(folder / "images" / name) as image:
            image.verify()
    return len(images)


def test_train_json_mixes_pictures_text_and_pairs_without_leaks(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "train", 150, seed=1)
    records = json.loads(path.read_text(encoding="utf-8"))
    assert len({record["id"] for record in records}) == 150
    counts = Counter(_check_images(record, tmp_path) for record in records)
    assert set(counts) == {0, 1, 2} and counts[1] > 100, counts
    for record in records:
        turns = _turns(record)
        assert len({question for question, _ in turns}) == len(turns) and all(answer for _, answer in turns)
        if isinstance(record.get("image"), str):
            assert 4 <= len(turns) <= 6
    assert _forbidden(path.read_text(encoding="utf-8").replace('\\"', '"')) == []


def test_heldout_json_asks_one_question_a_record_evenly_over_the_tasks(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "heldout", 10 * len(ALL_TASKS) + 3, seed=1)
    records = json.loads(path.read_text(encoding="utf-8"))
    counts = Counter(task for record in records for task in record["tasks"])
    assert set(counts) == set(ALL_TASKS) and set(counts.values()) == {10, 11}, counts
    for record in records:
        assert len(_turns(record)) == len(record["tasks"]) == len(record["kinds"]) == 1
        _check_images(record, tmp_path)
        if record["kinds"] == ["json"]:
            assert isinstance(json.loads(_turns(record)[0][1]), list)
    singles = [record["image"] for record in records if isinstance(record.get("image"), str)]
    assert len(set(singles)) < len(singles) / 2, "several records share a picture"


def test_the_default_heldout_size_has_at_least_40_questions_a_task() -> None:
    from examples.llava15.scenes.__main__ import _parser

    assert _parser().parse_args(["--out", "x"]).heldout // len(ALL_TASKS) >= 40


def test_tasks_can_be_chosen_and_pretraining_is_one_caption_a_picture(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "heldout", 9, seed=0, tasks=["digit", "compare"])
    assert Counter(r["tasks"][0] for r in json.loads(path.read_text("utf-8"))) == {"digit": 5, "compare": 4}
    for record in json.loads(write_pretrain(tmp_path, 5, seed=0).read_text("utf-8")):
        ((question, answer),) = _turns(record)
        assert question == "<image>\nProvide a one-sentence caption for the provided image."
        assert answer.endswith(".") and _check_images(record, tmp_path) == 1


# ------------------------------------------------------------------------------------------- bad input


def test_bad_arguments_are_refused_with_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(LmmError, match="unknown tasks .'colour'.*color"):
        write_dataset(tmp_path, "train", 1, 0, tasks=["colour"])
    with pytest.raises(LmmError, match="unknown split 'test'.*heldout"):
        write_dataset(tmp_path, "test", 1, 0)  # type: ignore[arg-type]
    with pytest.raises(LmmError, match="0 records"):
        write_dataset(tmp_path, "train", 0, 0)
    with pytest.raises(LmmError, match="turns_per_conversation"):
        write_dataset(tmp_path, "train", 1, 0, turns_per_conversation=(3, 2))
    assert list(tmp_path.iterdir()) == []


def test_the_command_exits_with_2_and_leaves_nothing_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep")
    assert main(["--out", str(taken), "--train", "1"]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "a"), "--train", "-1"]) == 2
    assert "--train -1" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "a"), "--train", "0", "--pretrain", "0", "--heldout", "0"]) == 2
    with pytest.raises(SystemExit) as refused:
        main(["--out", str(tmp_path / "a"), "--train", "many"])
    assert refused.value.code == 2

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full_disk)
    assert main(["--out", str(tmp_path / "a"), "--train", "2", "--pretrain", "0", "--heldout", "0"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"] and (taken / "mine.txt").read_text() == "keep"
