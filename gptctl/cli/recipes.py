"""`gptctl recipes`: what can be trained, and what it should cost and reach."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptctl.cli.options import JsonOption

if TYPE_CHECKING:
    from training.config import Recipe

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def list_recipes(context: typer.Context, json: JsonOption = False) -> None:
    """List the recipes, or show one."""
    if context.invoked_subcommand:
        return
    from gptctl.cli.console import data_console, print_json, talk_console
    from gptctl.recipe import read_recipe, recipe_names

    rows = [_row(*read_recipe(name)) for name in recipe_names()]
    rows.sort(key=lambda row: row["parameters"])
    if json:
        print_json(rows)
        return
    data_console().print(_table(rows))
    talk_console().print("next: `gptctl recipes show NAME`, `gptctl launch NAME`")


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name, or a path to a TOML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.max_lr=3e-4."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print a recipe's file; with --set or --json, every key as it would be used, as JSON."""
    from gptctl.cli.console import print_json
    from gptctl.recipe import find_recipe, read_recipe

    _, resolved = read_recipe(recipe, overrides or ())
    if json or overrides:
        print_json(resolved)
    else:
        sys.stdout.write(find_recipe(recipe).read_text(encoding="utf-8"))


def _row(name: str, recipe: "Recipe") -> dict[str, Any]:
    """One recipe as `--json` has it. Hours and dollars are the reference's, at a dated price."""
    reference = recipe.reference
    return {
        "name": name,
        "summary": recipe.summary,
        "parameters": recipe.model.parameters,
        "tokens": recipe.train.tokens,
        "hardware": recipe.node.gpus or (f"CPU:{recipe.node.cpu_ranks}",),
        "reference_hours": reference and reference.hours,
        "reference_usd": reference and reference.usd,
        "price_as_of": reference and reference.price_as_of,
        "val_loss": reference and reference.val_loss,
    }


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("recipe", "parameters", "tokens", "hardware", "hours", "cost, priced", "what"):
        is_number = heading in ("parameters", "tokens", "hours")
        table.add_column(heading, justify="right" if is_number else "left")
    for row in rows:
        hours, usd = row["reference_hours"], row["reference_usd"]
        table.add_row(
            row["name"],
            _short(row["parameters"]),
            _short(row["tokens"]),
            row["hardware"][0],
            f"{hours:.1f}" if hours else "-",
            f"${usd:,.0f}, {row['price_as_of']}" if usd else "-",
            row["summary"],
        )
    return table


def _short(count: int) -> str:
    """124,475,904 → 124M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"
    return str(count)
