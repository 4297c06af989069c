"""Options that several commands share. Loads nothing but typer: `--help` must be quick."""

from typing import Annotated

import typer

StoreOption = Annotated[
    str | None, typer.Option("--store", help="Where runs live: a folder, or s3://bucket/prefix.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run, or how its id begins.")]
