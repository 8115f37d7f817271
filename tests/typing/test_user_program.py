"""What a user's type checker sees of the package: a small program passes, and its mistakes are found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lmmblocks

PROGRAM = """\
from torch import Tensor

import lmmblocks as lb
from lmmblocks.spec import Batch, Grid, Projector, VisionFeatures


def step(model: lb.LMM, samples: list[lb.Sample]) -> Tensor:
    batch: Batch = lb.collate(samples, model)
    return model.loss(batch, reduction="sum")


def rows_of(projector: Projector, grid: Grid) -> Grid | int:
    return projector.out_grid(grid)


model = lb.load("folder")
features: VisionFeatures = model.encoder(model.encoder.preprocess.batch([])[0])
rows: int = model.decoder.vocab + model.decoder.dim
answer = rows_of(model.projector, Grid(2, 2))
"""

MISTAKES = {
    "model.loss(lb.Sample, reduction='sum')": "Batch",
    "model.decoder.vocabulary": "vocabulary",
    "lb.build('llava15-7b').loss(batch, reduce='sum')": "reduce",
    "lb.Grid('2', 2)": "int",
}


def checked(tmp_path: Path, program: str) -> str:
    """Return what mypy says, without the settings of this checkout."""
    pytest.importorskip("mypy", reason="the type checker isn't installed")
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", str(tmp_path / "cache"), "program.py"]
    where = os.environ | {"MYPYPATH": str(Path(lmmblocks.__file__).parents[1])}  # an editable install is a hook that type checkers don't run
    return subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True).stdout


def test_a_small_program_passes_and_its_mistakes_are_found(tmp_path):
    lines = PROGRAM.splitlines()
    program = "\n".join([*lines, "batch = lb.collate([], model)", *MISTAKES]) + "\n"
    found = [line for line in checked(tmp_path, program).splitlines() if ": error: " in line]
    assert [int(line.split(":")[1]) for line in found] == list(range(len(lines) + 2, len(lines) + 2 + len(MISTAKES))), "\n".join(found)
    assert all(word in line for word, line in zip(MISTAKES.values(), found)), "\n".join(found)
