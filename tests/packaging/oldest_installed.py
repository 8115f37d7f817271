"""What `make test-oldest` runs first: the environment is as old as pyproject.toml allows. Named so that no other run collects it."""

from importlib.metadata import version

import pytest

from lmmblocks.spec.versions import Requirement, release, requirements

TOOLS = {"mypy", "ruff", "setuptools", "zensical", "mkdocstrings-python"}  # lint, build, docs: nothing of theirs runs in the tests
NEED_A_GPU = {"flash-attn", "xformers"}  # built for one torch and one CUDA: not installed beside the oldest


@pytest.mark.parametrize("need", [need for need in requirements() if need.package not in TOOLS | NEED_A_GPU], ids=lambda need: need.package)
def test_the_oldest_declared_version_is_installed(need: Requirement) -> None:
    numbers, oldest = release(version(need.package)), release(need.oldest)
    width = max(len(numbers), len(oldest))
    padded = [found + (0,) * (width - len(found)) for found in (numbers, oldest)]
    assert padded[0] == padded[1], f"{need.package} {version(need.package)} is installed, the oldest declared is {need.oldest}"


def test_something_is_declared() -> None:
    assert {"torch", "transformers", "numpy", "pillow"} <= {need.package for need in requirements()}
