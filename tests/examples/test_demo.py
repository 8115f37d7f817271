"""The demo end to end at a size of seconds: what it writes, that it resumes, and what it says to wrong input."""

import json
from pathlib import Path

import pytest

from examples.llava15 import demo
from examples.llava15.report.curves import loss_svg, running_mean

SMALL = ["--captions", "70", "--conversations", "30", "--questions", "32"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    assert demo.main(["--out", str(out), *SMALL]) == 0
    return out


def test_results_hold_every_figure_the_demo_promises(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results["measured"]) >= set(demo.TARGETS) and set(results["reached"]) == set(demo.TARGETS)
    assert {"caption", "color", "yesno", "letter", "box", "region", "word", "digit", "unanswerable", "json", "chinese", "text"} <= set(
        results["tasks"]
    )
    for row in results["tasks"].values():
        assert 0 <= row["score"] <= 1 and 0 <= row["majority"] <= 1 and (row["blind"] is None or 0 <= row["blind"] <= 1)
    assert results["tasks"]["text"]["blind"] is None  # no picture to cover
    assert all(stage["padding_fraction"] == 0 and stage["steps"] > 0 for stage in results["stages"].values())
    assert results["environment"]["packages"]["torch"]


def test_report_is_one_file_with_pictures_curves_and_answers(finished):
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 2 and page.count("data:image/png;base64,") >= 20
    assert "http" not in page.replace("http-equiv", "")
    assert "polyline" in page and "Held-out questions" in page


def test_saved_model_answers_what_the_demo_answered(finished):
    import lmmblocks as lb
    from lmmblocks.data.records import load_records
    from lmmblocks.eval import evaluate, read_questions, summarise

    records = load_records(finished / "data" / "heldout.json", finished / "data" / "images")
    summary = summarise(evaluate(lb.load(finished / "model"), read_questions(records)))
    expected = json.loads((finished / "results.json").read_text())["tasks"]
    assert {task: row["score"] for task, row in summary["tasks"].items()} == {task: row["score"] for task, row in expected.items()}


def test_second_run_uses_what_the_first_left(finished, capsys):
    before = json.loads((finished / "results.json").read_text())
    pictures = {p: p.stat().st_mtime_ns for p in (finished / "data").rglob("*.png")}
    assert demo.main(["--out", str(finished), *SMALL]) == 0
    after = json.loads((finished / "results.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in (finished / "data").rglob("*.png")} == pictures
    assert after["stages"]["stage2"]["last_loss"] == before["stages"]["stage2"]["last_loss"]
    assert "short_answer" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--captions", "0"], ["--questions", "x"], ["--nothing"]])
def test_wrong_arguments_leave_with_2(words, tmp_path):
    with pytest.raises(SystemExit) as left:
        demo.main(["--out", str(tmp_path / "out"), *words])
    assert left.value.code == 2 and not (tmp_path / "out").exists()


def test_foreign_folder_is_not_touched(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep")
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert "no earlier demo wrote it" in capsys.readouterr().err
    assert (tmp_path / "data" / "mine.txt").read_text() == "keep"


def test_other_numbers_leave_an_earlier_run_alone(tmp_path, capsys):
    earlier = {"captions": 8, "conversations": 8, "questions": 8, "seed": 0}
    (tmp_path / "data").mkdir()
    (tmp_path / "data.json").write_text(json.dumps(earlier))
    assert demo.main(["--out", str(tmp_path), *SMALL]) == 2
    message = capsys.readouterr().err
    assert "holds a run with captions 8" in message and "asked is captions 70" in message and "another --out" in message
    assert json.loads((tmp_path / "data.json").read_text()) == earlier and not list((tmp_path / "data").iterdir())


def test_a_file_is_no_folder(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert demo.main(["--out", str(tmp_path / "out"), *SMALL]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err


def test_running_mean_weighs_the_past():
    values = [4.0, 2.0, 2.0]
    expected = [4.0, (0.5 * 4 + 2) / 1.5, (0.25 * 4 + 0.5 * 2 + 2) / 1.75]
    assert running_mean(values, keep=0.5) == pytest.approx(expected)


def test_curve_of_one_point_says_so(tmp_path: Path):
    assert "too few" in loss_svg([(1, 2.0)], "stage1")
