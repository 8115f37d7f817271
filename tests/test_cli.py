"""The command line: quick help without torch, one line for a mistake, and exit codes that a script can rely on."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lmmblocks.cli import commands as cli
from lmmblocks.spec import LmmError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "matplotlib", "sklearn", "tensorboard")

RUN_AND_LIST = f"""
import sys
from lmmblocks.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def lmmblocks(*words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-m", "lmmblocks"] if code is None else ["-c", code]
    return subprocess.run([sys.executable, *start, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """Put a command named ``try`` into the table, which does what the test says."""

    def add(run) -> None:
        monkeypatch.setitem(cli.COMMANDS, "try", cli.Command("for this test", run=run))

    return add


def fail_with(error: BaseException):
    def run(args: argparse.Namespace) -> None:
        raise error

    return run


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["version"], *[[*name.split(), "--help"] for name in cli.COMMANDS]])
def test_help_and_version_load_neither_torch_nor_transformers(words: list[str]) -> None:
    done = lmmblocks(*words, code=RUN_AND_LIST)
    assert done.stderr.splitlines()[-1:] == ["0 []"], done.stderr
    assert done.stdout


def test_help_takes_less_than_a_second() -> None:
    seconds = []  # of processor time, which other processes of the machine don't lengthen; start-up waits for nothing
    for _ in range(3):
        before = os.times()
        assert lmmblocks("--help").returncode == 0
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 1.0, seconds


def test_help_lists_every_command_with_its_line() -> None:
    shown = lmmblocks("--help").stdout
    for name, command in cli.COMMANDS.items():
        assert any(line.split("  ")[1:2] == [name] and command.help in line for line in shown.splitlines()), name


def test_version_is_the_packages() -> None:
    import lmmblocks as package

    assert lmmblocks("--version").stdout == f"lmmblocks {package.__version__}\n"
    assert lmmblocks("version").stdout.startswith(f"lmmblocks {package.__version__}\npython 3.")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("save with format='native'", "save with --format native"),
        ('save with format="native", or leave it', "save with --format native, or leave it"),
        ("no tokenizer: pass tokenizer=... to build(), or", "no tokenizer: pass --tokenizer X, or"),
        ("give the base with load(..., base=...)", "give the base with --base BASE"),
        ("found max_tokens=-3, expected 1", "found --max-tokens -3, expected 1"),
        ("template='auto', weights='x' and my_format='y'", "template='auto', weights='x' and my_format='y'"),
        ("self.format='y' and debug=...", "self.format='y' and debug=..."),
    ],
)
def test_advice_about_arguments_names_the_options_of_the_command(said: str, shown: str) -> None:
    parser = argparse.ArgumentParser()
    for option, metavar in (("--format", None), ("--tokenizer", "X"), ("--base", None), ("--max-tokens", "N")):
        parser.add_argument(option, metavar=metavar)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("template")
    assert cli.in_options(said, parser) == shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a command, found none"),
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["data"], "'data' is a group of commands: data check"),
        (["data", "chek"], "unknown command 'data chek'; did you mean 'data check'?"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["doctor", "--bogus"], "unrecognized arguments: --bogus"),
        (["chat"], "required: --model"),
        (["data", "check"], "required: FILE"),
    ],
)
def test_wrong_usage_leaves_with_2_and_names_the_mistake(words: list[str], message: str) -> None:
    done = lmmblocks(*words)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["chat", "--model", "no/such/folder", "--prompt", "What is this?"],
        ["data", "check", "no/such/file.json", "--images", "."],
    ],
)
def test_a_missing_file_leaves_with_2_and_one_line(words: list[str]) -> None:
    done = lmmblocks(*words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "no/such" in done.stderr


@pytest.mark.parametrize("error", [LmmError("depth must be 1 or more, found 0"), PermissionError(13, "Permission denied", "out")])
def test_a_users_mistake_is_one_line_and_exit_2(command, capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    command(fail_with(error))
    assert cli.main(["try"]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("words", [["--debug", "try"], ["try", "--debug"]])
def test_debug_shows_the_traceback_as_well(command, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    command(fail_with(LmmError("what was found")))
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith("error: what was found\n")


def test_an_error_of_ours_is_not_hidden(command) -> None:
    command(fail_with(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["try"])


def test_an_interrupt_leaves_with_130(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(fail_with(KeyboardInterrupt()))
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_commands_result_is_the_exit_code(command, returned: int | None, code: int) -> None:
    command(lambda args: returned)
    assert cli.main(["try"]) == code


def test_a_reader_that_stops_early_is_no_error() -> None:
    endless = (
        "import sys\nfrom lmmblocks.cli import commands as cli\n"
        "def run(args):\n    while True: print('line')\n"
        "cli.COMMANDS['try'] = cli.Command('', run=run)\nsys.exit(cli.main(['try']))"
    )
    with subprocess.Popen([sys.executable, "-c", endless], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.wait(timeout=30) == 141
        assert process.stderr.read() == ""


def test_a_warning_is_one_line_and_said_once(capsys):
    def run():
        for _ in range(2):
            warnings.warn("mind the gap", stacklevel=1)

    assert cli.exit_code(run) == 0
    assert capsys.readouterr().err == "warning: mind the gap\n"
