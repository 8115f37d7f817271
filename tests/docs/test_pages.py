"""The pages of docs/: every link leads somewhere, every page is in the navigation, every name exists, and the site builds without a warning."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import lmmblocks

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
LINKED = [*PAGES, "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PLACE = re.compile(r"`([\w./-]+\.(?:py|cu|cuh|cpp|h)):([A-Za-z_][\w.]*)`")
DOTTED = re.compile(r"`((?:lmmblocks|lb|ops)(?:\.[A-Za-z_]\w*)+)(?:\(.*?\))?`")
FILE = re.compile(r"`((?:lmmblocks|kernels|csrc|docs|tests|benchmarks|examples)/[\w./-]*)`")

NO_MODULES = {"lmmblocks.blocks", "lmmblocks.json", "lmmblocks._C"}
"""Names with dots that are something else: a group of entry points, a file, the compiled extension, which needn't be there."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text_of(page))


@cache
def anchors_of(page: str) -> frozenset[str]:
    """The anchors of a page's headings, as Markdown makes them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return frozenset(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()) for heading in headings)


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    wrong = []
    for target in LINK.findall(prose_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists():
            wrong.append(target)
        elif anchor and anchor not in anchors_of(file.resolve().relative_to(ROOT).as_posix()):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_pages_link_only_inside_the_site(page: str) -> None:
    """What lies outside docs/ isn't on the site: it is named as a file."""
    outside = [
        t for t in LINK.findall(prose_of(page)) if "://" not in t and t[0] != "#" and not ((ROOT / page).parent / t).resolve().is_relative_to(DOCS)
    ]
    assert not outside


@pytest.mark.parametrize("page", PAGES)
def test_numbered_items_after_a_paragraph_of_an_item_stand_apart(page: str) -> None:
    """Without an empty line above it, Markdown makes such a number part of the paragraph."""
    assert not re.findall(r"\n\n {4}\S.*(?:\n {4}.*)*\n(\d+\. .*)", text_of(page))


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r": ([\w/]+\.md)$", text_of("mkdocs.yml"), re.MULTILINE)
    assert sorted(f"docs/{page}" for page in named) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    assert not [path for path in FILE.findall(prose_of(page)) if not (ROOT / path).exists()]


@cache
def definitions_of(path: str) -> frozenset[str]:
    """The qualified names that a Python file defines."""
    found: set[str] = set()

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(prefix + child.name)
                walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, (ast.Assign, ast.AnnAssign)):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))
            elif isinstance(child, (ast.If, ast.Try)):
                walk(child, prefix)

    walk(ast.parse((ROOT / path).read_text(encoding="utf-8")), "")
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES)
def test_functions_that_are_named_by_file_are_defined_there(page: str) -> None:
    places = PLACE.findall(prose_of(page))
    assert not [f"{path}:{name}" for path, name in places if not (ROOT / path).is_file() or name not in definitions_of(path)]


def resolves(name: str) -> bool:
    """Whether a dotted name can be imported, or is an attribute of something that can."""
    parts = name.replace("lb.", "lmmblocks.", 1).split(".") if name.startswith("lb.") else name.split(".")
    parts = ["lmmblocks", *parts] if parts[0] == "ops" else parts
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
                return True  # it is there, and needs a package that isn't
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return part in getattr(found, "__annotations__", {})
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_can_be_imported(page: str) -> None:
    names = set(DOTTED.findall(prose_of(page))) - NO_MODULES
    assert not [name for name in sorted(names) if not resolves(name)]


def test_the_tests_of_names_see_wrong_ones() -> None:
    assert not resolves("lmmblocks.spec.Gird") and not resolves("ops.atention") and not resolves("lmmblocks.plan")
    assert resolves("lb.plan_splice") and resolves("ops.attention") and resolves("lmmblocks.train.Stage.batch_size")
    assert "LMM.loss" in definitions_of("lmmblocks/lmm.py") and "LMM.lose" not in definitions_of("lmmblocks/lmm.py")
    assert anchors_of("docs/design.md") >= {"five-rules", "shapes"}


def api_names() -> list[str]:
    return re.findall(r"^::: ([\w.]+)$", text_of("docs/api.md"), re.MULTILINE)


def test_what_the_api_page_lists_exists_and_is_documented() -> None:
    missing = [name for name in api_names() if not resolves(name)]
    assert api_names() and not missing


def test_the_api_page_names_no_file_where_it_means_what_is_in_it() -> None:
    """`ops.splice` is a function and a file: to the page, which is made from sources, it would be the file."""
    files = [name for name in api_names() if (ROOT / name.replace(".", "/")).with_suffix(".py").is_file() or (ROOT / name.replace(".", "/")).is_dir()]
    assert files == ["lmmblocks.spec.protocols"]


def test_the_api_page_lists_every_public_name() -> None:
    listed = {name.rpartition(".")[2] for name in api_names()}
    assert not [name for name in lmmblocks.__all__ if name not in {*listed, "__version__", "ops", "presets"}]


@pytest.mark.parametrize("name", ["layers.svg", "imports.svg", "source.svg", "sample.svg", "walks.svg", "contracts.svg"])
def test_pictures_are_those_that_the_scripts_draw(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("draw_docs", DOCS / "figures" / "draw.py")
    assert spec is not None and spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(draw)
    assert set(draw.PICTURES) == {path.name for path in (DOCS / "figures").glob("*.svg")}
    assert (DOCS / "figures" / name).read_text(encoding="utf-8") == draw.PICTURES[name](), "run: python docs/figures/draw.py"


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="zensical is not installed: pip install '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for name in ("docs", "lmmblocks", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "_C*"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {page.removeprefix("docs/").replace(".md", ".html") for page in PAGES} <= built
