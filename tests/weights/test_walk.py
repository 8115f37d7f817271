"""The way of a folder through ``load`` is the one that its module writes down, and short."""

import re
import sys
from pathlib import Path

import lmmblocks as lb
from lmmblocks.weights.files.tensors import WeightFiles
from lmmblocks.weights.systems.all import RELEASED, SYSTEMS
from lmmblocks.weights.systems.of_transformers import Writer
from lmmblocks.weights.systems.system import ModelFolder

PACKAGE = Path(lb.__file__).parent
LISTED = re.compile(r"``(?P<file>[\w./]+\.py):(?P<name>[\w.]+)``")


def written_down():
    """Return the functions of the docstring in their order, by files below the package."""
    return LISTED.findall(sys.modules["lmmblocks.weights.load"].__doc__)


def taken(folder):
    """Load a folder; return the functions that were called, in order, and those that were given a path inside the folder."""
    called, given = [], {}

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<"):
            stop = (str(Path(code.co_filename).relative_to(PACKAGE)), code.co_qualname)
            called.append(stop)
            arguments = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
            if any(isinstance(value, (ModelFolder, WeightFiles)) or isinstance(value, Path) and value.is_relative_to(folder) for value in arguments):
                given.setdefault(stop)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        lb.load(folder)
    finally:
        sys.setprofile(before)
    return called, list(given)


def test_the_walk_of_the_docstring_is_the_one_that_load_takes_in_few_stops(make_tiny_model, tmp_path):
    make_tiny_model(seed=3).save(tmp_path / "model", format="hf")
    (tmp_path / "model" / "lmmblocks.json").unlink()
    lb.load(tmp_path / "model")  # what is imported late is imported now
    called, given = taken(tmp_path / "model")
    walk = written_down()
    assert len(walk) >= 9
    rest = iter(called)
    assert [stop for stop in walk if stop not in rest] == [], "not called, or before the one above it"
    of_weights = [f"{file}:{name}" for file, name in given if file.startswith(("weights", "files"))]
    print(len(of_weights), *of_weights, sep="\n")
    assert len(of_weights) < 50


def test_every_system_is_listed_once_and_written_under_a_layout_that_it_reads():
    types = [system.model_type for system in RELEASED]
    named = [kind for kind in types if kind is not None]
    assert len(set(named)) == len(named)
    assert set(RELEASED) < set(SYSTEMS) and len(set(SYSTEMS)) == len(SYSTEMS)
    for system in RELEASED:
        if isinstance(system.write, Writer):
            assert system.write.layout in system.layouts
