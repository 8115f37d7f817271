"""The mutation score: every fault still fits the sources, and what is caught, missed, equivalent or doesn't compile is told apart."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.mutants.__main__ import SUITES
from benchmarks.mutants.fault import Fault, in_file
from benchmarks.mutants.judge import judge_all
from benchmarks.mutants.verdicts import Verdict, append, read, table

ROOT = Path(__file__).parents[2]
FAULTS = [fault for faults in SUITES.values() for fault in faults]


def test_every_passage_stands_exactly_once_in_its_source():
    texts = {fault.source: (ROOT / fault.source).read_text() for fault in FAULTS}
    for fault in FAULTS:
        planted = fault.planted_in(texts[fault.source])
        assert planted != texts[fault.source]
        if fault.source.endswith(".py"):
            compile(planted, fault.source, "exec")


def test_names_are_unique_and_tests_exist():
    assert [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1] == []
    for test in {test for fault in FAULTS for test in fault.tests}:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file() and (not name or f"def {name.partition('[')[0]}(" in (ROOT / path).read_text()), test


def test_suites_are_as_large_as_they_are_said_to_be():
    assert len(SUITES["cuda"]) >= 60 and len(SUITES["triton"]) >= 40 and len(SUITES["python"]) >= 60
    assert not [fault.name for fault in FAULTS if fault.equivalent and fault.unseen]


def test_a_passage_that_is_gone_or_doubled_is_refused_with_its_place():
    fault = Fault("toy", "toys", "a", "b", source="toy.py")
    with pytest.raises(ValueError, match="'toy': expected 'a' once in toy.py, found it 2 times"):
        fault.planted_in("a a")


TOY = {
    "lmmblocks/toy.py": "def double(x):\n    return x + x\n\n\ndef half(x):\n    return x // 2\n",
    "tests/test_toy.py": (
        "from lmmblocks.toy import double, half\n\n\ndef test_double():\n    assert double(3) == 6\n\n\ndef test_half():\n    assert half(4) == 2\n"
    ),
    "tests/test_broken.py": "def test_that_fails_anyway():\n    assert False\n",
    "tests/test_slow.py": "from lmmblocks.toy import double\n\n\ndef test_end():\n    while double(1) != 2:\n        pass\n",
}
TOY_FAULTS = in_file(
    "lmmblocks/toy.py", "tests/test_toy.py",
    Fault("wrong sum", "sums", "x + x", "x + 1"),
    Fault("rounded otherwise", "sums", "x // 2", "x / 2"),
    Fault("a product", "sums", "x + x", "2 * x", equivalent="the same number"),
    Fault("no Python", "syntax", "x + x", "x +"),
    Fault("test that fails anyway", "tests", "x + x", "x + 2", tests=("tests/test_broken.py",)),
    Fault("no end", "hangs", "x + x", "x", tests=("tests/test_slow.py",)),
)  # fmt: skip


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    for name, text in TOY.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    faults, copies = [("toys", fault) for fault in TOY_FAULTS], tmp_path_factory.mktemp("copies")
    found = judge_all(faults, root, copies, jobs=2, limit_s=30, told=lambda verdict: None)
    assert (root / "lmmblocks/toy.py").read_text() == TOY["lmmblocks/toy.py"]
    return {verdict.name: verdict for verdict in found}


def test_toy_faults_are_told_apart(verdicts):
    assert {name: verdict.verdict for name, verdict in verdicts.items()} == {
        "wrong sum": "caught",
        "rounded otherwise": "missed",
        "a product": "equivalent",
        "no Python": "invalid",
        "test that fails anyway": "invalid",
        "no end": "caught",
    }
    assert verdicts["wrong sum"].by == "tests/test_toy.py::test_double"
    assert verdicts["no end"].by == "no end within 30 s"
    assert verdicts["rounded otherwise"].reason.startswith("no test of tests/test_toy.py looks at it (2 passed")
    assert "SyntaxError" in verdicts["no Python"].reason
    assert verdicts["test that fails anyway"].reason.endswith("fail without the fault too, such as tests/test_broken.py::test_that_fails_anyway")


def test_the_score_counts_real_faults_only(verdicts):
    line = next(line for line in table(verdicts.values()).splitlines() if line.startswith("toys"))
    assert line.split() == ["toys", "6", "3", "2", "1", "1", "2", "66.7%"]


def test_a_run_that_was_ended_goes_on_and_runs_again_what_has_changed(tmp_path):
    source, test = tmp_path / "toy.py", tmp_path / "test_toy.py"
    source.write_text("a"), test.write_text("pass")
    fault = Fault("toy", "toys", "a", "b", source="toy.py", tests=("test_toy.py::test_it",))
    key, out = fault.key(tmp_path), tmp_path / "verdicts.jsonl"
    append(out, Verdict("toys", "toy", "toys", "toy.py", "missed", "", "", 0.1, "another"))
    append(out, Verdict("toys", "toy", "toys", "toy.py", "caught", "test_toy.py", "", 0.1, key))
    with out.open("a") as file:
        file.write('{"suite": "to')
    assert read(out)["toy"].key == fault.key(tmp_path) and read(out)["toy"].verdict == "caught"
    for path, text in ((source, "a "), (test, "pass  # now"), (tmp_path / "conftest.py", "")):
        path.write_text(text)
        assert fault.key(tmp_path) != key
        key = fault.key(tmp_path)


def test_a_caught_fault_follows_from_the_test_that_caught_it_alone(tmp_path):
    for name in ("toy.py", "test_first.py", "test_second.py"):
        (tmp_path / name).write_text("a")
    fault, by = Fault("toy", "toys", "a", "b", source="toy.py", tests=("test_first.py", "test_second.py")), "test_second.py::test_it"
    caught, missed = fault.key(tmp_path, by), fault.key(tmp_path)
    (tmp_path / "test_first.py").write_text("b")
    assert fault.key(tmp_path, by) == caught and fault.key(tmp_path) != missed
    (tmp_path / "test_second.py").write_text("b")
    assert fault.key(tmp_path, by) != caught
