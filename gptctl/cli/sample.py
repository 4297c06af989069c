"""`gptctl sample`: text from a run's model, written on this machine."""

import sys
from typing import Annotated

import typer

from gptctl.checkpoints import parse_which, pull_cached, run_sampling
from gptctl.cli.console import talk_console
from gptctl.cli.options import RunArgument, StoreOption
from gptctl.cli.session import open_session
from gptctl.runs import find_run_id


def sample(
    run: RunArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", help="How the text begins.")] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="How many texts.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1)] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.01)] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1)] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**63 - 1)] = None,
    step: Annotated[str, typer.Option("--step", help="A step, `latest` or `best`.")] = "latest",
    store: StoreOption = None,
) -> None:
    """Have a run's model write text; what is not given is as its recipe says."""
    session = open_session(store)
    run_id = find_run_id(session.store, run)
    pulled = pull_cached(session.store, run_id, parse_which(step), session.cache)
    for warning in pulled.warnings:
        talk_console().print(f"warning: {warning}")
    talk_console().print(f"{run_id}, step {pulled.step:,}:")
    options = {
        "prompt": prompt,
        "count": count,
        "max-new-tokens": max_new_tokens,
        "temperature": temperature,
        "top-k": top_k,
        "seed": seed,
    }
    for text in run_sampling(pulled, {k: str(v) for k, v in options.items() if v is not None}):
        sys.stdout.write(text)
        sys.stdout.flush()
