"""The command line: one file a command, loaded when it is called.

`main` is the only place where errors are printed and turned into exit codes (the list is in
`gptctl.errors`). What a command returns, if it is a number, is its exit code.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from gptctl.errors import EXIT_BUG, EXIT_INTERRUPTED, BackendError, GptctlError, exit_code
from training.errors import TrainingError

EXIT_BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""


class Command(NamedTuple):
    """Where a command lives, and the line about it in the list of commands."""

    target: str
    summary: str


COMMANDS = {
    "launch": Command(
        "launch:launch", "Train a GPT: show the plan, ask once, start the run and follow it."
    ),
    "status": Command("status:status", "Show how runs are: state, step, loss, spend."),
    "logs": Command(
        "logs:logs", "Print the log of a run, from its machine's making to its training."
    ),
    "stop": Command(
        "stop:stop", "Stop a run: it saves a checkpoint, uploads it, and can be resumed."
    ),
    "ssh": Command("ssh:ssh", "Open a shell on a run's machine, or run a command there."),
    "open": Command("open:open_page", "Open a run's page in SkyPilot's dashboard."),
    "cost": Command("cost:app", "What runs would cost, and have cost."),
    "pull-checkpoint": Command(
        "pull_checkpoint:pull_checkpoint",
        "Download a checkpoint, verified, also while the run goes on.",
    ),
    "sample": Command(
        "sample:sample", "Have a run's model write text; what is not given is as its recipe says."
    ),
    "publish": Command(
        "publish:publish",
        "Put a run's model on the Hub, as transformers loads it, with a card of its facts.",
    ),
    "eval": Command("eval:app", "Score a run's model, on this machine."),
    "data": Command("data:app", "Data sets: list, prepare, verify, remove."),
    "recipes": Command("recipes:app", "List the recipes, or show one."),
    "doctor": Command(
        "doctor:doctor", "Look for what would keep a launch from working; say what mends it."
    ),
}


def load_command(name: str) -> Any:
    """Import the file of a command and build its parser."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    target = getattr(importlib.import_module(f"gptctl.cli.{module}"), attribute)
    if isinstance(target, typer.Typer):
        return typer.main.get_group(target)
    single = typer.Typer(add_completion=False)
    single.command(name)(target)
    return typer.main.get_command(single)


class LazyGroup(TyperGroup):
    """Lists every command by its summary, and imports only the one that is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, command in COMMANDS.items():
            self.add_command(TyperCommand(name, help=command.summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else None, rest


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # typer loads pydantic to parse what is not a bool already, even a `--help` that was not
        # given: half the start-up time of `gptctl recipes`.
        "default_map": {"help": False, **{name: {"help": False} for name in COMMANDS}},
    },
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"gptctl {version('gptctl')}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    """From a recipe to a trained GPT-2 on rented GPUs, inside a budget."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    try:
        code = _execute(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # a reader that has gone is noticed here, not when Python exits
        return code
    except (GptctlError, TrainingError) as error:
        _print_error(error.message, error.hint)
        return exit_code(error)
    except typer.TyperException as error:
        if message := error.format_message():  # none where typer has printed the help instead
            context = getattr(error, "ctx", None)
            _print_error(message, f"`{context.command_path} --help`" if context else "")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\ninterrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it exits; let it do so where nobody listens.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if os.environ.get("GPTCTL_DEBUG"):
            traceback.print_exc()
        if isinstance(error, OSError):  # a full disk under stdout, a path that nobody foresaw
            _print_error(f"this machine refused: {error}", "GPTCTL_DEBUG=1 shows where")
            return BackendError.exit_code
        _print_error(
            f"this is a bug in gptctl: {type(error).__name__}: {error}",
            "GPTCTL_DEBUG=1 shows where it happened; please report that",
        )
        return EXIT_BUG


def run() -> None:
    """The console script."""
    raise SystemExit(main())


def _execute(argv: Sequence[str]) -> int:
    # Not `app()`, which would print and exit by itself.
    group = typer.main.get_command(app)
    try:
        with group.make_context("gptctl", list(argv) or ["--help"]) as context:
            result = group.invoke(context)
    except typer.Exit as asked:
        return asked.exit_code
    return result if isinstance(result, int) else 0


def _print_error(message: str, hint: str) -> None:
    """Plain text: it reads the same without colour, in a log, and to a screen reader."""
    lines = message.replace("\n", "\n       ")
    sys.stderr.write(f"error: {lines}\n" + (f"  hint: {hint}\n" if hint else ""))
