"""Scenes and questions as a LLaVA-format JSON with PNG pictures beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmmblocks.spec import LmmError

from .corpus import sample_turns
from .draw import draw_scene
from .questions import TASKS, compare
from .scene import SPLITS, Scene, Split, sample_scene
from .turns import Turn

Record = dict[str, Any]
ALL_TASKS = (*TASKS, "compare")
_ASKED_MORE = ("digit", "word", "letter", "yesno")  # the hardest: drawn twice as often in training
_TEXT_ONLY_SHARE = 0.08
_TWO_IMAGES_SHARE = 0.06
_QUESTIONS_PER_HELDOUT_SCENE = 6


def write_dataset(
    folder: str | Path,
    split: Split,
    conversations: int,
    seed: int,
    tasks: Sequence[str] | None = None,
    turns_per_conversation: tuple[int, int] = (4, 6),
) -> Path:
    """Write `folder/{split}.json` and its pictures in `folder/images/{split}/`.

    A train conversation asks several things about one picture; some have no picture, some two. A held-out
    record asks one question; several records share a picture, every task has as many (within one), and each
    record carries "tasks" and "kinds", one entry a turn.

    Args:
        folder: created when missing.
        split: "train" or "heldout".
        conversations: how many records.
        seed: the same seed, split and arguments give the same bytes.
        tasks: names of `questions.TASKS`, or "compare"; None is all of them.
        turns_per_conversation: fewest and most turns of a train conversation.

    Returns:
        The path of the JSON; its "image" entries are relative to `folder/images`.

    Raises:
        LmmError: on an unknown split or task, or on counts that are not positive.
    """
    chosen = _checked(split, conversations, tasks, turns_per_conversation)
    rng = random.Random(f"{split}-{seed}")
    pictures = _Pictures(Path(folder), split)
    if split == "heldout":
        records = list(_heldout_records(rng, pictures, chosen, conversations))
    else:
        records = [_train_record(rng, pictures, chosen, turns_per_conversation) for _ in range(conversations)]
    return _write_json(Path(folder), split, records)


def write_pretrain(folder: str | Path, records: int, seed: int) -> Path:
    """Write `folder/pretrain.json`: a dense caption of a train picture a record, to align the projector."""
    _checked("train", records, None, (1, 1))
    rng = random.Random(f"pretrain-{seed}")
    pictures = _Pictures(Path(folder), "pretrain")
    rows = []
    for _ in range(records):
        scene = sample_scene(rng, "train")
        turn = TASKS["caption"](scene, rng)
        assert turn is not None
        rows.append({"image": pictures.add(scene), "conversations": _as_conversation([turn], images=1)})
    return _write_json(Path(folder), "pretrain", rows)


class _Pictures:
    """Draws scenes into numbered files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._images, self._name, self._count = folder / "images", name, 0
        (self._images / name).mkdir(parents=True, exist_ok=True)

    def add(self, scene: Scene) -> str:
        """Draw and save a scene; its path relative to the images folder."""
        path = f"{self._name}/{self._count:06d}.png"
        self._count += 1
        draw_scene(scene).save(self._images / path, compress_level=1)
        return path


def _checked(split: str, count: int, tasks: Sequence[str] | None, turns: tuple[int, int]) -> list[str]:
    if split not in SPLITS:
        raise LmmError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if count < 1:
        raise LmmError(f"{count} records asked for the {split} split: ask for at least 1")
    if not 1 <= turns[0] <= turns[1]:
        raise LmmError(f"turns_per_conversation={turns}: give (fewest, most) with 1 <= fewest <= most")
    chosen = list(ALL_TASKS if tasks is None else tasks)
    unknown = [name for name in chosen if name not in ALL_TASKS]
    if unknown or not chosen:
        raise LmmError(f"unknown tasks {unknown}: choose from {', '.join(ALL_TASKS)}")
    return chosen


def _train_record(rng: random.Random, pictures: _Pictures, tasks: list[str], turns: tuple[int, int]) -> Record:
    draw, wanted = rng.random(), rng.randint(*turns)
    about_one = [name for name in tasks if name not in ("text", "compare")]
    about_one += [name for name in _ASKED_MORE if name in tasks]
    if "text" in tasks and (draw < _TEXT_ONLY_SHARE or tasks == ["text"]):
        return {"conversations": _as_conversation(_text_turns(rng, wanted), images=0)}
    if "compare" in tasks and (draw > 1 - _TWO_IMAGES_SHARE or not about_one):
        first, second, turn = _comparison(rng, "train")
        images = [pictures.add(first), pictures.add(second)]
        others = (compare(first, second, rng) for _ in range(wanted - 1))
        compared = {other.question: other for other in (turn, *others) if other is not None}
        return {"image": images, "conversations": _as_conversation(list(compared.values()), images=2)}
    while True:
        scene = sample_scene(rng, "train")
        asked = sample_turns(scene, rng, about_one, wanted)
        if asked:
            return {"image": pictures.add(scene), "conversations": _as_conversation(asked, images=1)}


def _text_turns(rng: random.Random, wanted: int) -> list[Turn]:
    turns = (TASKS["text"](sample_scene(rng, "train"), rng) for _ in range(wanted))
    return list({turn.question: turn for turn in turns if turn is not None}.values())


def _comparison(rng: random.Random, split: Split) -> tuple[Scene, Scene, Turn]:
    while True:
        first, second = sample_scene(rng, split), sample_scene(rng, split)
        turn = compare(first, second, rng)
        if turn is not None:
            return first, second, turn


def _heldout_records(rng: random.Random, pictures: _Pictures, tasks: list[str], wanted: int) -> Iterator[Record]:
    left = {name: wanted // len(tasks) + (index < wanted % len(tasks)) for index, name in enumerate(tasks)}
    for _ in range(left.pop("compare", 0)):
        first, second, turn = _comparison(rng, "heldout")
        yield _heldout_record([pictures.add(first), pictures.add(second)], turn)
    for _ in range(left.pop("text", 0)):
        yield _heldout_record([], _text_turn_about_heldout(rng))
    while any(left.values()):
        scene = sample_scene(rng, "heldout")
        turns = sample_turns(scene, rng, [name for name in left if left[name]], _QUESTIONS_PER_HELDOUT_SCENE)
        path = pictures.add(scene) if turns else ""
        for turn in turns:
            left[turn.task] -= 1
            yield _heldout_record([path], turn)


def _text_turn_about_heldout(rng: random.Random) -> Turn:
    turn = TASKS["text"](sample_scene(rng, "heldout"), rng)
    assert turn is not None
    return turn


def _heldout_record(images: list[str], turn: Turn) -> Record:
    record: Record = {"tasks": [turn.task], "kinds": [turn.kind]}
    if images:
        record["image"] = images[0] if len(images) == 1 else images
    return {**record, "conversations": _as_conversation([turn], images=len(images))}


def _as_conversation(turns: list[Turn], images: int) -> list[dict[str, str]]:
    rows = []
    for index, turn in enumerate(turns):
        marks = "<image>\n" * images if index == 0 else ""
        rows += [{"from": "human", "value": marks + turn.question}, {"from": "gpt", "value": turn.answer}]
    return rows


def _write_json(folder: Path, name: str, records: list[Record]) -> Path:
    path = folder / f"{name}.json"
    numbered = [{"id": f"{name}-{index:06d}", **record} for index, record in enumerate(records)]
    path.write_text(json.dumps(numbered, ensure_ascii=False, indent=1), encoding="utf-8")
    return path
