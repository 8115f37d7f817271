"""An exception may say nothing: whoever quotes one goes through ``first_line``, which has a word for it, and takes no line out by number."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmmblocks.spec import first_line

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("lmmblocks", "kernels", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))


def parts_taken_by_number(tree):
    """Lines of ``str(error).splitlines()[0]``, ``error.args[0]`` and the like: a part of what an exception says that may not be there."""
    for scope in ast.walk(tree):
        names = names_of_exceptions(scope)
        for node in ast.walk(scope) if names else ():
            inside = ast.walk(node.value) if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice) else ()
            if any(isinstance(each, ast.Name) and each.id in names for each in inside):
                yield node.lineno


def names_of_exceptions(scope):
    """What a handler calls the exception it caught, and the parameters of a function that are annotated as exceptions."""
    if isinstance(scope, ast.ExceptHandler):
        return {scope.name} - {None}
    if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        parameters = [*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs]
        return {each.arg for each in parameters if each.annotation and re.search(r"(Exception|Error)\b", ast.unparse(each.annotation))}
    return set()


def test_nobody_takes_a_line_of_an_exception_by_number():
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in parts_taken_by_number(ast.parse(path.read_text()))]
    assert not found, "use lmmblocks.spec.first_line"


@pytest.mark.parametrize("body", ["str(e).splitlines()[0]", "e.args[0]", 'str(e).split("x")[-1]', 'f"{str(e).strip().splitlines()[0]}: more"'])
def test_the_search_finds_what_it_looks_for(body):
    assert list(parts_taken_by_number(ast.parse(f"try:\n    pass\nexcept ValueError as e:\n    print({body})\n"))) == [4]
    for annotation in ("Exception", "BaseException | None", "LmmError"):
        assert list(parts_taken_by_number(ast.parse(f"def told(e: {annotation}):\n    return {body}\n"))) == [2]


@given(st.text())
def test_the_first_line_of_any_exception_is_a_line_that_says_something(text):
    said = first_line(ValueError(text))
    assert said.strip() and len(said.splitlines()) == 1 and (said in text or said == "ValueError")


@pytest.mark.parametrize("error", [ValueError(), OSError(), KeyError(), IndexError("\n"), RuntimeError("  ")])
def test_an_exception_without_a_text_is_called_by_its_name(error):
    assert first_line(error) == type(error).__name__
