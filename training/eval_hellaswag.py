"""A checkpoint's score on HellaSwag: `python -m training.eval_hellaswag --checkpoint FOLDER`.

Tells on stdout (`training.told_parent`): `batch` (batches done, of how many), `scored`. Computes in
fp32, on a GPU when there is one. The rendered examples are kept below the folder of `--data`.
"""

import argparse
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import monotonic

import torch
from msgspec.structs import asdict

from training import manifest
from training.checkpoint import load_model, read_state
from training.distributed import ALONE
from training.hellaswag import read_examples
from training.hellaswag_published import VALIDATION, Published
from training.hellaswag_score import Score, plan_batches, score
from training.hellaswag_source import prepare_hellaswag
from training.model import GPT
from training.tokenizer import open_tokenizer
from training.told_parent import run_program, say

REPORT_EVERY_S = 1.0


def score_checkpoint(
    checkpoint: Path, datasets: Path, *, limit: int | None, published: Published = VALIDATION
) -> Score:
    """Over all examples, or the first `limit`.

    Raises CheckpointError, DataError, NoSpaceError, NotFiniteError.
    """
    manifest.verify(checkpoint)
    recipe = read_state(checkpoint).recipe
    tokenizer = open_tokenizer(recipe.data.tokenizer)
    path = prepare_hellaswag(datasets, tokenizer, published=published)
    examples = read_examples(path, vocab_size=tokenizer.vocab_size)[:limit]
    block_size, micro_batch_size = recipe.model.block_size, recipe.train.micro_batch_size
    batches = plan_batches(examples, block_size=block_size, micro_batch_size=micro_batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = GPT(recipe.model)
    load_model(checkpoint, model)
    return score(
        model.to(device),
        examples,
        ranks=replace(ALONE, device=device),
        autocast=nullcontext,
        on_batch=_Countdown(len(batches)),
        block_size=block_size,
        micro_batch_size=micro_batch_size,
    )


class _Countdown:
    """Called after each of `batches`; now and then it says how many are done."""

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._done = 0
        self._said = monotonic()

    def __call__(self) -> None:
        self._done += 1
        if monotonic() - self._said >= REPORT_EVERY_S:
            self._said = monotonic()
            say("batch", done=self._done, batches=self._batches)


def main(argv: list[str], published: Published = VALIDATION) -> int:
    parser = argparse.ArgumentParser(prog="training.eval_hellaswag", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--limit", type=int, help="score only so many, the first ones")
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error("--limit is at least 1")

    def work() -> None:
        found = score_checkpoint(
            arguments.checkpoint, arguments.data, limit=arguments.limit, published=published
        )
        say("scored", **asdict(found))

    return run_program(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
