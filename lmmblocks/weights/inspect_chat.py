"""How the model of a folder is talked to, in words, each with the file that says so."""

from __future__ import annotations

from typing import Any

from ..chat import answer_ends, load_tokenizer, stop_texts
from ..config import LMMConfig
from ..spec import LmmError
from .chat_files import GENERATION, in_words, sampling
from .inspection import Inspection
from .model_chat import ModelChat, model_chat
from .systems.system import NATIVE_CONFIG, ModelFolder, System, chat_inside, tokenizer_inside


def describe_chat(report: Inspection, folder: ModelFolder, system: System, config: LMMConfig, base: ModelFolder | None) -> None:
    """Add template, ends of answers and what the files say about decoding to a report; what ``load`` would refuse is a problem.

    Args:
        report: gets the settings.
        folder: of the model.
        system: what it is.
        config: the model's.
        base: folder of what the model lies over, None without one on this machine.
    """
    places = [folder] if base is None else [folder, base]
    found = next((tokenizer for place in places if (tokenizer := tokenizer_inside(place)) is not None), None)
    asked = [each for place in places for each in chat_inside(place)]
    try:
        tokenizer = None if found is None else load_tokenizer(found)
        chat = model_chat(config, asked, tokenizer)
    except LmmError as error:
        report.problems.append(str(error))
        return
    differences = list(system.differences(folder, config, tokenizer))
    if differences:
        report.settings["files that disagree"] = "; ".join(differences)
    said_in = chat.said_in or (NATIVE_CONFIG if not asked else f"{_whose(folder, config)}; the files don't say")
    name = "its own" if chat.template.name == said_in else chat.template.name
    report.settings["template"] = "; ".join([f"{name} ({said_in})", *chat.notes])
    if tokenizer is not None:
        report.settings["answers end with"] = _ends(chat, tokenizer)
    decoding = sampling(folder.path)
    if decoding:
        said = f"{GENERATION} says {in_words(decoding)}"
        report.settings["decoding"] = f"{said}: not followed, generate() takes the most likely token unless asked otherwise"


def _whose(folder: ModelFolder, config: LMMConfig) -> str:
    """Say who is known to be talked to as a model is; LLaVA-1.5 where nobody is."""
    return next((system.whose for system in folder.systems if config.template in system.templates), "LLaVA-1.5's")


def _ends(chat: ModelChat, tokenizer: Any) -> str:
    ids = sorted(answer_ends(chat.template, tokenizer))
    tokens = ", ".join(f"{tokenizer.backend_tokenizer.id_to_token(index)} (id {index})" for index in ids)
    strings = map(repr, stop_texts(chat.template, tokenizer))
    where = chat.ends_in or "template and tokenizer"
    return f"{' and the text '.join([tokens or 'no token', *strings])}, said in {where}"
