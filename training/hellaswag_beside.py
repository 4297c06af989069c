"""HellaSwag's examples, brought beside the token shards of a run.

They are an extra: nothing that keeps them away fails the run, and nothing does so in silence.
"""

from contextlib import suppress
from pathlib import Path
from time import perf_counter

from training.config import Recipe
from training.errors import TrainingError
from training.events import append_event
from training.tokenizer import open_tokenizer


def bring_examples(recipe: Recipe, datasets: Path, *, events: Path) -> None:
    """Have them below `datasets`, where `recipe` scores them; `events` tells how that went."""
    if not recipe.eval.hellaswag:
        return
    started = perf_counter()
    try:
        # What only this needs: the Hub's client, which takes a second to import.
        from training.hellaswag_source import prepare_hellaswag  # noqa: PLC0415

        path = prepare_hellaswag(datasets, open_tokenizer(recipe.data.tokenizer))
    except Exception as error:
        why = error.message if isinstance(error, TrainingError) else repr(error)
        print(f"there will be no HellaSwag score: {why}", flush=True)
        with suppress(OSError):  # the disk may be what is full
            append_event(events, "hellaswag_failed", why=why)
    else:
        print(f"{path.name} of {path.parent.name} is ready", flush=True)
        append_event(events, "hellaswag_ready", seconds=perf_counter() - started)
