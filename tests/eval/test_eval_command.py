"""``lmmblocks eval``: a table of scores, on the device that is asked for; a mistake is one line and exit code 2."""

import json

import pytest

import lmmblocks as lb
from lmmblocks.cli import main


@pytest.fixture
def words(tiny_model, colour_picture, tmp_path):
    """The arguments of a command that works: a saved model and a file of one question."""
    tiny_model.save(tmp_path / "model", format="native")
    colour_picture(0).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat color?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "r0", "image": "a.png", "conversations": turns}]))
    options = {"images": tmp_path, "model": tmp_path / "model", "out": tmp_path / "out.json", "max-new-tokens": 3}
    return ["eval", str(tmp_path / "data.json"), *(str(word) for name, value in options.items() for word in (f"--{name}", value))]


def test_it_scores_on_the_device_asked_for(words, tmp_path, capsys):
    assert main([*words, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["task", "questions", "score", "majority"]
    assert [answer["id"] for answer in json.loads((tmp_path / "out.json").read_text())["answers"]] == ["r0"]


def test_the_device_reaches_the_model(words, monkeypatch):
    import lmmblocks.eval as package

    seen = []
    monkeypatch.setattr(package, "evaluate", lambda model, questions, **options: seen.append(model.device.type) or [])
    monkeypatch.setattr(package, "summarise", lambda results: {"tasks": {"all": {"questions": 0, "score": 0.0, "majority": 0.0}}})
    assert main([*words, "--device", "meta"]) == 0 and seen == ["meta"]


def test_an_output_that_is_a_folder_is_refused_before_a_question_is_asked(words, tmp_path, monkeypatch, capsys):
    import lmmblocks.eval as package

    monkeypatch.setattr(package, "evaluate", lambda *args, **more: pytest.fail("questions were asked"))
    words[words.index(str(tmp_path / "out.json"))] = str(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr()
    assert f"--out {str(tmp_path)!r} is a folder, expected a file" in said.err and said.err.count("\n") == 1 and not said.out


def test_a_device_that_is_none_is_one_line(words, tmp_path, capsys):
    assert main([*words, "--device", "abacus"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: --device 'abacus' can't be used") and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out.json").exists()


def test_a_model_without_a_tokenizer_says_what_to_copy(words, tiny_model, tmp_path, capsys):
    lb.build(tiny_model.config, weights="random").save(tmp_path / "model2", format="native")
    words[words.index(str(tmp_path / "model"))] = str(tmp_path / "model2")
    assert main(words) == 2
    assert "copy the language model's tokenizer files into its folder" in capsys.readouterr().err
