"""Options that several commands share. Loads nothing but typer: `--help` must be quick."""

from math import isfinite
from typing import Annotated

import typer

StoreOption = Annotated[
    str | None, typer.Option("--store", help="Where runs live: a folder, or s3://bucket/prefix.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run, or how its id begins.")]
UntilOption = Annotated[
    float | None,
    typer.Option(
        "--until-val-loss",
        metavar="LOSS",
        help="Done at that validation loss: short for `--set eval.until_loss=`.",
        rich_help_panel="What to train",
    ),
]


def all_overrides(overrides: list[str] | None, until_val_loss: float | None) -> tuple[str, ...]:
    """Those of `--set`, and what is short for one. Raises UsageError for what is no loss."""
    if until_val_loss is None:
        return tuple(overrides or ())
    if not isfinite(until_val_loss) or until_val_loss <= 0:
        from gptctl.errors import UsageError

        raise UsageError(
            f"--until-val-loss {until_val_loss} is not a loss",
            hint="nats per token, such as 3.28; `gptctl cost estimate` says what it takes",
        )
    return *(overrides or ()), f"eval.until_loss={until_val_loss}"
