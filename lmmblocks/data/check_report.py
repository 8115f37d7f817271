"""What a check found, and how it is told: a table of counts, then the first offenders and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .problems import PROBLEM_KINDS, Problem, ProblemKind


@dataclass(frozen=True, slots=True)
class Offender:
    """One place a problem was found.

    Attributes:
        index: record in the file, from 0; None = the file itself.
        id: the record's id, if it has one.
        detail: what was found there.
    """

    index: int | None
    id: Any
    detail: str

    def __str__(self) -> str:
        if self.index is None:
            return self.detail
        return f"record {self.index}{'' if self.id is None else f', id {self.id!r}'}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem.

    Attributes:
        code: its name, a key of ``PROBLEM_KINDS``.
        count: how often it was found.
        offenders: the first of them, in the order of the file.
        note: worth knowing only, or allowed by the caller; does not make a file unfit.
    """

    code: str
    count: int
    offenders: tuple[Offender, ...]
    note: bool

    @property
    def kind(self) -> ProblemKind:
        """Meaning and advice."""
        return PROBLEM_KINDS[self.code]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of ``check_file``.

    Attributes:
        json_path: the file.
        images_dir: the images folder.
        records: number of records.
        text_only: of these, without image.
        image_files: distinct image files looked at.
        findings: kinds of problems found, in a fixed order, notes last.
    """

    json_path: str
    images_dir: str
    records: int
    text_only: int
    image_files: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the file is fit for training; notes don't count."""
        return all(finding.note for finding in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """Problem code -> how often it was found."""
        return {finding.code: finding.count for finding in self.findings}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "json_path": self.json_path,
            "images_dir": self.images_dir,
            "records": self.records,
            "text_only": self.text_only,
            "image_files": self.image_files,
            "ok": self.ok,
            "findings": [
                {
                    "code": finding.code,
                    "count": finding.count,
                    "note": finding.note,
                    "meaning": finding.kind.meaning,
                    "advice": finding.kind.advice,
                    "offenders": [{"index": o.index, "id": o.id, "detail": o.detail} for o in finding.offenders],
                }
                for finding in self.findings
            ],
        }

    def render(self) -> str:
        """Return the text ``lmmblocks data check`` prints."""
        lines = [
            f"{self.json_path}: {_count(self.records, 'record')} ({self.text_only} text-only), "
            f"{_count(self.image_files, 'image file')} in {self.images_dir}"
        ]
        if self.findings:
            lines += ["", *_table(self.findings)]
        for finding in self.findings:
            lines += ["", f"{finding.code} ({finding.count}): {finding.kind.advice}"]
            lines += [f"  {offender}" for offender in finding.offenders]
            if finding.count > len(finding.offenders):
                lines.append(f"  and {finding.count - len(finding.offenders)} more")
        return "\n".join([*lines, "", self._verdict()])

    def _verdict(self) -> str:
        if self.ok:
            return "fit for training" + (" (notes only)" if self.findings else "")
        problems = [finding.count for finding in self.findings if not finding.note]
        return f"NOT fit for training: {_count(sum(problems), 'problem')} of {_count(len(problems), 'kind')}"


def findings_of(problems: Iterable[tuple[Offender, Problem]], *, limit: int, allow: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Group problems by kind, keep the first ``limit`` offenders of each; kinds in ``allow`` become notes."""
    places: dict[str, list[Offender]] = {code: [] for code in PROBLEM_KINDS}
    for offender, problem in problems:
        places[problem.code].append(offender)
    findings = [
        Finding(code, len(found), tuple(found if code == "other_keys" else found[:limit]), kind.note or code in allow)
        for code, kind in PROBLEM_KINDS.items()
        if (found := places[code])
    ]
    return tuple(sorted(findings, key=lambda finding: finding.note))


def _table(findings: Sequence[Finding]) -> list[str]:
    """Rows of code, count and meaning, aligned."""
    rows = [("problem", "count", "meaning")]
    rows += [(f.code, str(f.count), f"{f.kind.meaning}{' (note)' if f.note else ''}") for f in findings]
    code_width, count_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{code:<{code_width}}  {count:>{count_width}}  {meaning}" for code, count, meaning in rows]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
