"""The command line as a whole: what goes to which stream, and with what exit code."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

import gptctl.cli
from gptctl.cli import COMMANDS, load_command, main
from gptctl.errors import (
    BackendError,
    CapacityError,
    GptctlError,
    NotFoundError,
    PlanRefusedError,
    RunFailedError,
    UsageError,
)
from gptctl.recipe import find_recipe, recipe_names
from training.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NoSpaceError,
    NotFiniteError,
    ObjectDamagedError,
    ObjectExistsError,
    ObjectNotFoundError,
    OutOfMemoryError,
    StorageError,
    StorageUnavailableError,
    TrainingError,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `gptctl recipes` raise what it is given, to see what the boundary makes of it."""

    def install(error: BaseException) -> None:
        def fail() -> list[str]:
            raise error

        monkeypatch.setattr("gptctl.recipe.recipe_names", fail)

    return install


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(k) for k in kind.__subclasses__()))


EXIT_CODES = {
    UsageError: 2,
    PlanRefusedError: 3,
    RunFailedError: 4,
    NotFoundError: 6,
    BackendError: 8,
    CapacityError: 8,
    TrainingError: 4,
    ConfigError: 4,
    DataError: 4,
    CheckpointError: 4,
    NotFiniteError: 4,
    OutOfMemoryError: 4,
    NoSpaceError: 4,
    StorageError: 7,
    ObjectNotFoundError: 7,
    ObjectExistsError: 7,
    ObjectDamagedError: 7,
    StorageUnavailableError: 7,
}


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items())
def test_each_error_prints_message_and_hint_and_has_its_exit_code(
    kind: type[GptctlError | TrainingError],
    code: int,
    command: Callable[[BaseException], None],
    capsys: Capture,
) -> None:
    command(kind("it broke\nin two places", hint="mend it"))
    assert main(["recipes"]) == code
    assert capsys.readouterr() == (
        "",
        "error: it broke\n       in two places\n  hint: mend it\n",
    )


def test_no_error_class_is_left_without_a_tested_exit_code() -> None:
    known = {k for k in subclasses(GptctlError) | subclasses(TrainingError) if is_ours(k)}
    assert known - {GptctlError} <= EXIT_CODES.keys()


def is_ours(kind: type) -> bool:
    return kind.__module__ in ("gptctl.errors", "training.errors")


def test_an_error_without_a_hint_is_one_line(
    command: Callable[[BaseException], None], capsys: Capture
) -> None:
    command(NotFoundError("no such run"))
    assert main(["recipes"]) == 6
    assert capsys.readouterr().err == "error: no such run\n"


def test_a_bug_is_called_one_and_shows_its_traceback_only_when_asked(
    command: Callable[[BaseException], None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(KeyError("oops"))
    monkeypatch.delenv("GPTCTL_DEBUG", raising=False)
    assert main(["recipes"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: this is a bug in gptctl: KeyError: 'oops'"
    assert "GPTCTL_DEBUG=1" in second
    monkeypatch.setenv("GPTCTL_DEBUG", "1")
    assert main(["recipes"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_the_system_refuses_is_no_bug(
    command: Callable[[BaseException], None], capsys: Capture
) -> None:
    command(OSError(28, "No space left on device"))
    assert main(["recipes"]) == 8
    assert "refused: [Errno 28] No space left on device" in capsys.readouterr().err


def test_ctrl_c_is_one_line_and_130(
    command: Callable[[BaseException], None], capsys: Capture
) -> None:
    command(KeyboardInterrupt())
    assert main(["recipes"]) == 130
    assert capsys.readouterr() == ("", "\ninterrupted\n")


@pytest.mark.parametrize(
    ("argv", "said", "help_command"),
    [
        (["recipse"], "No such command 'recipse'. Did you mean 'recipes'?", "gptctl --help"),
        (
            ["recipes", "--jsn"],
            "No such option: --jsn (Possible options: --json)",
            "recipes --help",
        ),
        (["recipes", "show"], "Missing argument 'RECIPE'.", "gptctl recipes show --help"),
        (["launch", "--max-hours", "ten"], "Invalid value for '--max-hours'", "launch --help"),
    ],
)
def test_wrong_usage_is_2_with_the_nearest_word_and_where_to_read_on(
    argv: list[str], said: str, help_command: str, capsys: Capture
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith(f"error: {said}")
    assert second.endswith(f"{help_command}`")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(argv: list[str], capsys: Capture) -> None:
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, listed in COMMANDS.items():
        assert f"{name} " in out
        assert listed.summary.split()[0] in out
    assert "completion" not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_a_command_what_its_own_help_says(name: str) -> None:
    assert load_command(name).help.splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: Capture) -> None:
    assert main([name, "--help"]) == 0
    assert f"gptctl {name}" in capsys.readouterr().out


def test_version_is_the_installed_one(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "gptctl 0.1.0\n"


def test_recipes_lists_all_with_size_hardware_and_dated_price(capsys: Capture) -> None:
    assert main(["recipes"]) == 0
    out, err = capsys.readouterr()
    assert all(name in out for name in recipe_names())
    [line] = [line for line in out.splitlines() if line.split()[:1] == ["gpt2-124m"]]
    for word in ("124M", "9.89B", "A100-80GB:8", "1.6", "$35, 2026-11-21"):
        assert word in line
    assert "gptctl launch" in err


def test_recipes_json_is_one_document_with_exact_figures(capsys: Capture) -> None:
    assert main(["recipes", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows.keys() == set(recipe_names())
    assert rows["gpt2-124m"]["parameters"] == 124_475_904
    assert rows["gpt2-124m"]["tokens"] == 9_890_693_120
    assert rows["gpt2-124m"]["reference_usd"] == "35.09"
    assert rows["demo"]["reference_usd"] is None


def test_show_prints_the_file_as_it_is(capsys: Capture) -> None:
    assert main(["recipes", "show", "gpt2-124m"]) == 0
    assert capsys.readouterr() == (find_recipe("gpt2-124m").read_text(encoding="utf-8"), "")


def test_show_with_an_override_prints_what_would_be_run(capsys: Capture) -> None:
    assert main(["recipes", "show", "demo", "--set", "train.seed=7", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["train"]["seed"] == 7
    assert shown["checkpoint"]["keep"] == 2


def test_show_blames_a_mistyped_override(capsys: Capture) -> None:
    assert main(["recipes", "show", "demo", "--set", "train.sed=7"]) == 2
    assert "nearest: `train.seed`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["recipes show gpt2-124m", "recipes --json", "recipes"])
def test_a_reader_that_goes_away_is_no_error(command: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "gptctl", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == gptctl.cli.EXIT_BROKEN_PIPE
    assert err == ""
