"""The page: headline figures against their targets, loss curves, scores per task, held-out pictures, settings."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .curves import loss_svg, read_losses
from .style import STYLE

AT_MOST = ("blind_short_answer", "minutes", "peak_memory_gb")
_MEASURES = {
    "short_answer": ("Short answers right", "{:.1%}"),
    "blind_short_answer": ("The same without the picture", "{:.1%}"),
    "format": ("One word, phrase or letter", "{:.1%}"),
    "json_parses": ("JSON answers that parse", "{:.1%}"),
    "minutes": ("Minutes, all together", "{:.1f}"),
    "peak_memory_gb": ("Peak memory, GB", "{:.2f}"),
}
_PER_TASK = 3
_SCORES = {
    "short": "answer equal",
    "letter": "letter equal",
    "text": "answer equal",
    "json": "JSON equal",
    "box": "IoU at least 0.5",
    "caption": "word F1",
}


def write_report(path: Path, results: Mapping[str, Any], seen: Sequence[Any], losses: Mapping[str, Path]) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        results: what ``results.json`` holds.
        seen: ``lmmblocks.eval.Result`` of every held-out question asked with its picture.
        losses: stage -> its ``losses.csv``.
    """
    sections = [
        _headline(results),
        _curves(results, losses),
        _tasks(results["tasks"]),
        _contact_sheet(seen),
        _settings(results),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>lmmblocks: LLaVA-1.5, tiny</title><style>{STYLE}</style></head><body><main>"
        "<h1>LLaVA-1.5 from parts, at a size for two CPU cores</h1>"
        "<p class='lead'>A pretrained vision encoder and a pretrained language model; stage 1 trains the connector on captions, stage 2 "
        "connector and decoder on conversations. The questions below are about pictures with combinations of colour and shape, word and "
        "sign, and handwritten digits that no training saw.</p>" + "".join(sections) + "</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _headline(results: Mapping[str, Any]) -> str:
    cards = []
    for name, (label, form) in _MEASURES.items():
        value = results["measured"].get(name)
        if value is None:
            continue
        reached = results["reached"][name]
        target = f"target {'at most' if name in AT_MOST else 'at least'} {form.format(results['targets'][name])}"
        cards.append(
            f"<div class='card {'good' if reached else 'bad'}'><b>{form.format(value)}</b><span>{label}</span>"
            f"<small>{target} &middot; {'reached' if reached else 'missed'}</small></div>"
        )
    return f"<section class='cards'>{''.join(cards)}</section>"


def _curves(results: Mapping[str, Any], losses: Mapping[str, Path]) -> str:
    figures = []
    for stage, file in losses.items():
        facts = results["stages"][stage]
        caption = (
            f"{escape(stage)}: {facts['steps']} steps, last loss {facts['last_loss']:.3f}, {facts['tokens_per_second']:,.0f} tokens/s, "
            f"padding {facts['padding_fraction']:.0%}, waiting for data {facts['data_wait_share']:.1%}"
        )
        figures.append(f"<figure>{loss_svg(read_losses(file), stage)}<figcaption>{caption}</figcaption></figure>")
    return f"<section><h2>Loss</h2><div class='curves'>{''.join(figures)}</div></section>"


def _tasks(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for task, row in sorted(tasks.items(), key=lambda entry: -entry[1]["score"]):
        blind = "" if row["blind"] is None else f"{row['blind']:.2f}"
        bars = "".join(f"<i class='{name}' style='width:{100 * (row[name] or 0):.1f}%'></i>" for name in ("score", "blind", "majority"))
        rows.append(
            f"<tr><td>{escape(task)}</td><td>{_SCORES[row['kind']]}</td><td>{row['questions']}</td><td><b>{row['score']:.2f}</b></td>"
            f"<td>{blind}</td><td>{row['majority']:.2f}</td><td class='bars'>{bars}</td></tr>"
        )
    heads = ("task", "counts when", "questions", "score", "blind", "majority", "")
    return (
        "<section><h2>Held-out questions</h2><p><i class='key score'></i> score with the picture; <i class='key blind'></i> blind: the picture "
        "greyed out; <i class='key majority'></i> majority: always the task's most frequent answer.</p><table><thead><tr>"
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _contact_sheet(seen: Sequence[Any]) -> str:
    shown: dict[str, list[Any]] = {}
    for result in seen:
        if len(shown.setdefault(result.question.task, [])) < _PER_TASK:
            shown[result.question.task].append(result)
    cards = "".join(_card(result) for task in sorted(shown) for result in shown[task])
    return (
        f"<section><h2>The first {_PER_TASK} held-out questions of each task</h2><p>Not chosen: the first of the file, <i class='key good'></i> "
        f"right, <i class='key part'></i> partly right or <i class='key bad'></i> wrong.</p><div class='sheet'>{cards}</div></section>"
    )


def _card(result: Any) -> str:
    question = result.question
    text = question.prompt.replace("<image>\n", "").replace("<image>", "")
    pictures = "".join(f"<img alt='' src='{_data_url(image)}'>" for image in question.images) or "<span class='none'>text only</span>"
    mark = "good" if result.score >= 0.999 else "part" if result.score > 0.5 else "bad"
    return (
        f"<article class='{mark}'><header>{pictures}</header><h3>{escape(question.task)}</h3><p class='q'>{_lines(text)}</p>"
        f"<p><span>answer</span> {_lines(result.answer)}</p><p><span>truth</span> {_lines(question.answer)}</p></article>"
    )


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>") or "<em>(empty)</em>"


def _data_url(image: Any) -> str:
    from lmmblocks.images.load import load_image

    buffer = io.BytesIO()
    load_image(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _settings(results: Mapping[str, Any]) -> str:
    rest = {name: results[name] for name in ("settings", "seconds", "stages", "environment")}
    blocks = "".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre></details>"
        for name, value in rest.items()
    )
    return f"<section><h2>Settings and environment</h2>{blocks}</section>"
