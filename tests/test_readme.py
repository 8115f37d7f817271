"""What README and CONTRIBUTING show is so: their Python runs, their commands, targets and files exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmmblocks import registry
from lmmblocks.chat import TEMPLATES
from lmmblocks.cli.commands import COMMANDS
from lmmblocks.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
PAGES = tuple(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))
WITH_EXAMPLES = (*DOCUMENTS, *PAGES)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the number of its first line."""
    text = text_of(document)
    return [(text.count("\n", 0, m.start(2)) + 1, m[2]) for m in FENCE.finditer(text) if m[1] == language]


def shell_text(document: str) -> str:
    """Everything that is shown as a command: shell blocks and inline code."""
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(document)))
    return "\n".join([code for _, code in blocks(document, "bash")] + inline)


@pytest.mark.parametrize(("document", "line"), [(d, line) for d in WITH_EXAMPLES for line, _ in blocks(d, "python")])
def test_python_block_runs_offline(document: str, line: int, tmp_path: Path) -> None:
    code = dict(blocks(document, "python"))[line]
    numbered = "\n" * (line - 1) + code  # tracebacks then show the line of the document
    script = f"exec(compile({numbered!r}, {document!r}, 'exec'), {{'__name__': '__main__'}})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{document}, block at line {line}:\n{done.stdout}\n{done.stderr}"
    assert not list(tmp_path.iterdir()), "an example leaves files after"


def test_the_first_example_is_about_ten_lines() -> None:
    _, code = blocks("README.md", "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_every_rule_about_silent_results_names_tests_that_exist() -> None:
    rows = [line for line in text_of("docs/silent_results.md").splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`((?:\w+/)?\w+\.py)`|`(make [\w-]+)`", row) for row in rows]
    assert rows and all(named)
    missing = [file for tests in named for file, _ in tests if file and not (ROOT / "tests" / file).is_file()]
    assert not missing


@pytest.mark.parametrize("document", WITH_EXAMPLES)
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", shell_text(document)))
    known = set(re.findall(r"^([a-z]+(?:-[a-z]+)*):", text_of("Makefile"), re.MULTILINE))
    assert targets <= known, targets - known
    assert targets or document not in DOCUMENTS


@pytest.mark.parametrize("document", WITH_EXAMPLES)
def test_commands_and_modules_exist(document: str) -> None:
    shown = shell_text(document)
    used = set(re.findall(r"\blmmblocks ((?:data )?[a-z]+)", shown))
    assert used <= set(COMMANDS), used - set(COMMANDS)
    modules = [name for name in re.findall(r"python -m ([\w.]+)", shown) if name != "pytest"]
    places = {name: ROOT / name.replace(".", "/") for name in modules}
    missing = [n for n, path in places.items() if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file())]
    assert not missing


def test_the_readme_lists_every_command() -> None:
    assert not [name for name in COMMANDS if f"`lmmblocks {name}" not in text_of("README.md")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_folders_that_are_named_exist(document: str) -> None:
    named = re.findall(r"`([\w.-]+/[\w./-]*|[A-Z]\w+\.md)`|\]\(([\w./-]+)\)", FENCE.sub("", text_of(document)))
    paths = {one or other for one, other in named}
    written_or_elsewhere = {path for path in paths if path.startswith(("demo/", "site/", "openai/", "lmsys/", "llava-hf/"))}
    assert paths and not [path for path in paths - written_or_elsewhere if not (ROOT / path).exists()]


def test_the_readme_names_every_block_that_ships() -> None:
    names = {name for kind in ("encoder", "projector", "decoder") for name in registry._BUILT_IN[kind]}
    missing = [name for name in sorted({*names, *TEMPLATES, *PRESETS}) if f"`{name}`" not in text_of("README.md")]
    assert not missing, f"add these to the table 'What works today': {missing}"


def test_kernels_are_called_missing_only_while_they_are() -> None:
    modules = [path.name for path in (ROOT / "kernels").glob("*.py") if path.name != "verified.py"]
    sources = [path.name for path in (ROOT / "csrc").rglob("*.cu")]
    assert ("| GPU kernels | not yet" in text_of("README.md")) == (not modules and not sources)


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    commands = [line for _, code in blocks("README.md", "bash") for line in code.splitlines()]
    assert "make test" in commands
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert any(line.startswith("make test ") for line in script.read_text().splitlines())
