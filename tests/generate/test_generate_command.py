"""`lmmblocks chat`: one question, a piped conversation, and mistakes that end with one line and exit code 2."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmmblocks.cli import main, repl
from lmmblocks.generate import Conversation
from lmmblocks.images.fit import with_reading
from lmmblocks.weights import save

ROOT = Path(__file__).resolve().parents[2]
FEW = ["--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The model, saved."""
    return str(save(model, tmp_path_factory.mktemp("chat") / "model"))


@pytest.fixture(scope="module")
def paths(picture, tmp_path_factory):
    """Files of two pictures, one with a space in its name."""
    files = [tmp_path_factory.mktemp("pictures") / name for name in ("first.png", "second one.png")]
    for number, file in enumerate(files, start=1):
        picture(number).save(file)
    return [str(file) for file in files]


@pytest.fixture
def talk(folder, monkeypatch, capsys):
    """Run the command with lines on its standard input; return exit code, output and errors."""

    def run(lines, *arguments, model=folder):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = main(["chat", "--model", model, *FEW, *arguments])
        return code, *capsys.readouterr()

    return run


def test_one_question_prints_its_answer(talk, model, paths):
    expected = model.generate("Is it asleep?", images=paths[:1], max_new_tokens=8)
    assert talk([], "--image", paths[0], "--prompt", "Is it asleep?") == (0, f"{expected}\n", "")


def test_options_reach_the_model(talk, model):
    options = {"temperature": 1.3, "top_p": 0.8, "top_k": 50, "seed": 3, "stop": ["a"], "max_new_tokens": 8}
    arguments = "--temperature 1.3 --top-p 0.8 --top-k 50 --seed 3 --stop a --device cpu --dtype float32".split()
    chat = Conversation(model, system="Be brief.")
    expected = chat.ask("Is it asleep?", **options)
    assert talk([], *arguments, "--system", "Be brief.", "--prompt", "Is it asleep?") == (
        0,
        f"{expected}\n",
        "",
    )


def test_a_piped_conversation_prints_its_answers_and_nothing_else(talk, model, paths):
    chat = Conversation(model)
    expected = [
        chat.ask("What is it?", paths[:1], max_new_tokens=8),
        chat.ask("Is it asleep?", max_new_tokens=8),
        chat.ask("And this?", paths[1:], max_new_tokens=8),
    ]
    lines = ["What is it?", "", "  Is it asleep? ", f"/image {paths[1]}", "And this?"]
    assert talk(lines, "--image", paths[0]) == (0, "".join(f"{answer}\n" for answer in expected), "")


def test_pictures_are_named_as_terminals_name_them(talk, model, paths, monkeypatch):
    chat = Conversation(model)
    expected = chat.ask("And this?", paths[1:], max_new_tokens=8)
    monkeypatch.setenv("HOME", str(Path(paths[1]).parent))
    escaped = paths[1].replace(" ", "\\ ")
    for way in (paths[1], f"'{paths[1]}'", f'"{paths[1]}"', escaped, f"  {paths[1]} ", "~/second one.png", "~/second\\ one.png"):
        assert talk([f"/image {way}", "And this?"]) == (0, f"{expected}\n", ""), way
    both = Conversation(model).ask("Which?", paths, max_new_tokens=8)
    assert talk([f"/image {paths[0]} '{paths[1]}'", "Which?"]) == (0, f"{both}\n", "")
    assert talk(["And this?"], "--image", "~/second one.png") == (0, f"{expected}\n", "")


@pytest.mark.parametrize("line", ["/etc/hosts is what?", "/2 = ?", "/ is what?", "//reset is what?", "//image"])
def test_a_question_may_begin_with_a_slash(talk, model, line):
    asked = line[1:] if line.startswith("//") else line
    if line == "/2 = ?":
        code, out, errors = talk([line, f"/{line}"])
        assert "unknown command '/2'; known: " in errors and "to ask it, write //2 = ?" in errors
    else:
        code, out, errors = talk([line])
        assert not errors
    assert (code, out) == (0, Conversation(model).ask(asked, max_new_tokens=8) + "\n")


def test_a_picture_is_read_as_the_model_was_trained(model, folder, talk, tmp_path):
    """The command hands over the file, not what it made of it."""
    preprocess = with_reading(model.encoder.preprocess, exif="rotate", transparent="white")
    icon = np.zeros((24, 40, 4), np.uint8)
    icon[:12, :20] = 255, 0, 0, 255
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(icon).save(tmp_path / "icon.png", exif=turned)
    before = model.encoder.preprocess
    model.encoder.preprocess = preprocess
    try:
        expected = model.generate("What is it?", images=[tmp_path / "icon.png"], max_new_tokens=8)
        other = str(save(model, tmp_path / "model", format="native"))
    finally:
        model.encoder.preprocess = before
    for arguments, lines in ((["--image", str(tmp_path / "icon.png")], []), ([], [f"/image {tmp_path / 'icon.png'}"])):
        assert talk([*lines, "What is it?"], *arguments, model=other) == (0, f"{expected}\n", "")


def test_reset_begins_again_with_the_last_pictures(talk, paths):
    _, out, _ = talk(["What is it?", "Why?", "/reset", "What is it?"], "--image", paths[0])
    answers = out.splitlines()
    assert answers[0] == answers[2] != answers[1]


def test_quit_leaves_and_help_explains(talk):
    code, out, error = talk(["/help", "/quit", "What is it?"])
    assert (code, out, error) == (0, f"{repl.HELP}\n", "")


def test_a_mistake_is_printed_and_the_conversation_goes_on(talk, model, paths, tmp_path):
    chat = Conversation(model)
    expected = [
        chat.ask("What is it?", paths[:1], max_new_tokens=8),
        chat.ask("Is it asleep?", max_new_tokens=8),
    ]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    mistakes = {
        "/image nowhere.png": "image nowhere.png cannot be opened",
        f"/image '{broken}'": "broken.png",
        "/image": "/image needs the path",
        "/rest": "unknown command '/rest'; did you mean '/reset'",
        "what? " * 400: "shorten the conversation",
        "<image> <image>": "2 <image> in its text and 1 images",
    }
    code, out, errors = talk([*mistakes, "What is it?", *list(mistakes)[:5], "Is it asleep?"], "--image", paths[0])
    assert code == 0 and out.splitlines() == expected
    lines = errors.splitlines()
    assert len(lines) == 2 * len(mistakes) - 1
    for line, message in zip(lines, mistakes.values()):
        assert line.startswith("error: ") and message in line


def test_an_interrupted_answer_is_forgotten_and_the_conversation_goes_on(talk, model, monkeypatch):
    chat = Conversation(model)
    expected = chat.ask("What is it?", max_new_tokens=8)
    real, calls = repl.print_pieces, []

    def interrupted_once(pieces):
        calls.append(next(pieces))
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(iter([calls[-1], *pieces]))

    monkeypatch.setattr(repl, "print_pieces", interrupted_once)
    code, out, errors = talk(["Why?", "What is it?"])
    assert (code, out.splitlines()) == (0, [expected]) and "forgotten" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "a", "--image", "nowhere.png"], "image nowhere.png cannot be opened"),
        (["--prompt", "a", "--temperature", "-1", "--top-p", "2"], "temperature must be .* found -1.0; top_p must be .* found 2.0"),
        (["--prompt", "a", "--stop", ""], "stop must be strings that aren't empty, found"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens must be a whole number above 0, found 0"),
        (["--prompt", "a", "--max-new-tokens", "9999"], "512 positions"),
        (["--prompt", "a", "--device", "nonsense"], "--device 'nonsense' can't be used"),
        (["--prompt", "<image>"], "1 <image> in its text and 0 images"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(talk, arguments, message):
    code, out, error = talk([], *arguments)
    assert (code, out) == (2, "") and re.search(message, error) and error.startswith("error: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("word", ["bf16", "bfloat16"])
def test_both_spellings_of_a_dtype_are_accepted(talk, word):
    short, long = (talk([], "--prompt", "Is it asleep?", "--dtype", name) for name in (word, "bfloat16"))
    assert short == long and short[0] == 0


def test_a_model_without_a_tokenizer_says_what_to_copy(talk, model, tmp_path):
    from lmmblocks import build

    build(model.config, weights="random").save(tmp_path / "bare", format="native")
    code, out, error = talk([], "--prompt", "a", model=str(tmp_path / "bare"))
    assert (code, out) == (2, "") and "copy the language model's tokenizer files into its folder" in error


def test_a_missing_model_folder_is_a_mistake(talk, tmp_path):
    code, out, error = talk([], "--prompt", "a", model=str(tmp_path / "nowhere"))
    assert (code, out) == (2, "") and "nowhere" in error


def test_a_folder_without_a_model_is_a_mistake(talk, tmp_path):
    code, out, error = talk([], "--prompt", "a", model=str(tmp_path))
    assert (code, out) == (2, "") and str(tmp_path) in error


def test_a_corrupt_picture_is_a_mistake(talk, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    code, out, error = talk([], "--prompt", "a", "--image", str(broken))
    assert (code, out) == (2, "") and "broken.png is empty" in error


def run_process(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=600, **options)


def test_the_program_answers_lines_from_a_pipe(folder, model, paths):
    chat = Conversation(model)
    expected = [chat.ask("一只猫?", paths[:1], max_new_tokens=8), chat.ask("Why?", max_new_tokens=8)]
    lines = "一只猫?\nWhy?\n".encode()
    done = run_process("-m", "lmmblocks", "chat", "--model", folder, "--image", paths[0], *FEW, input=lines)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.decode().splitlines() == expected


def test_bytes_that_are_no_text_end_with_one_line(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    assert main(["chat", "--model", folder, *FEW]) == 2
    assert capsys.readouterr().err.startswith("error: the input is not utf-8 text")


def test_the_command_is_known_without_torch():
    code = "import sys, lmmblocks.cli.chat, lmmblocks.generate; print('torch' in sys.modules)"
    assert run_process("-c", code).stdout.strip() == b"False"
