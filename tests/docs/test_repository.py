"""What outsiders find beside the code: its commands exist, its versions agree, its files can be read by what reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import lmmblocks

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def pyproject(pattern: str) -> str:
    found = re.search(pattern, text_of("pyproject.toml"), re.MULTILINE)
    assert found is not None, pattern
    return found[1]


def jobs() -> dict[str, Any]:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]


def commands_of(job: dict[str, Any]) -> list[str]:
    """The commands of a job, for every combination of its matrix."""
    commands = [step["run"] for step in job["steps"] if "run" in step]
    for key, values in job.get("strategy", {}).get("matrix", {}).items():
        commands = [command.replace(f"${{{{ matrix.{key} }}}}", str(value)) for command in commands for value in values]
    return commands


def test_the_workflow_runs_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+(?:-[a-z]+)*):", text_of("Makefile"), re.MULTILINE))
    run = {command.split()[1] for job in jobs().values() for command in commands_of(job)}
    assert run == {"lint", "test", "test-oldest", "test-exchange", "docs"} and run <= targets


def test_the_workflow_begins_with_the_oldest_python_that_is_allowed() -> None:
    oldest = pyproject(r'^requires-python = ">=([\d.]+)"')
    for name in ("newest", "oldest"):
        assert jobs()[name]["strategy"]["matrix"]["python"][0] == oldest, name


def test_the_workflow_makes_the_oldest_environment_with_a_python_that_it_takes() -> None:
    assert "sys.version_info >= (3, 13)" in text_of("Makefile")
    assert all(version in ("3.10", "3.11", "3.12") for version in jobs()["oldest"]["strategy"]["matrix"]["python"])


def test_the_citation_names_version_and_license_of_the_package() -> None:
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["version"] == lmmblocks.__version__
    assert citation["license"] == pyproject(r'^license = "(.+)"')
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_pre_commit_has_the_linters_of_make_lint() -> None:
    config = yaml.safe_load(text_of(".pre-commit-config.yaml"))
    hooks = {hook["id"]: hook for repository in config["repos"] for hook in repository["hooks"]}
    bound = pyproject(r'"(ruff>=[^"]+)"')
    for name in ("ruff-check", "ruff-format"):
        assert hooks[name]["additional_dependencies"] == [bound], name
    files = re.compile(hooks["generated-pages"]["files"])
    assert files.search("docs/figures/layers.py") and files.search("tests/test_import_direction.py") and not files.search("docs/index.md")
    for path in re.findall(r"[\w/]+\.py", hooks["generated-pages"]["entry"]):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_have_a_name_and_ask_for_versions_where_something_went_wrong(path: Path) -> None:
    head, body = path.read_text(encoding="utf-8").split("---\n")[1:3]
    assert {"name", "about"} <= yaml.safe_load(head).keys()
    assert ("lmmblocks doctor --json" in body) == (path.stem != "block_or_model")


def test_a_pull_request_is_asked_for_a_proof_of_value() -> None:
    asked = text_of(".github/pull_request_template.md")
    assert "## Proof of value" in asked
    named = re.findall(r"`(?:python )?((?:docs|lmmblocks)/[\w/]+\.\w+|[A-Z]+\.md)`", asked)
    assert named and not [path for path in named if not (ROOT / path).exists()]
