"""A checkpoint's score on HellaSwag: `python -m training.eval_hellaswag --checkpoint FOLDER`.

Prints the score as one line of JSON, and how far it is to stderr. Computes in fp32, on a GPU
when there is one. The rendered examples are kept in the folder given by `--data`.
"""

import argparse
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import monotonic

import msgspec
import torch

from training import manifest
from training.checkpoint import load_model, read_state
from training.distributed import ALONE
from training.errors import TrainingError
from training.hellaswag import read_examples
from training.hellaswag_score import Score, plan_batches, score
from training.hellaswag_source import VALIDATION, Published, prepare_hellaswag
from training.model import GPT
from training.processes import end_with_parent
from training.tokenizer import open_tokenizer

REPORT_EVERY_S = 10.0


def score_checkpoint(
    checkpoint: Path, folder: Path, *, limit: int | None, published: Published = VALIDATION
) -> Score:
    """Over all examples, or the first `limit`.

    Raises CheckpointError, DataError, NoSpaceError, NotFiniteError.
    """
    manifest.verify(checkpoint)
    recipe = read_state(checkpoint).recipe
    tokenizer = open_tokenizer(recipe.data.tokenizer)
    path = prepare_hellaswag(folder, tokenizer, published=published)
    examples = read_examples(path, vocab_size=tokenizer.vocab_size)[:limit]
    shape = {
        "block_size": recipe.model.block_size,
        "micro_batch_size": recipe.train.micro_batch_size,
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = GPT(recipe.model)
    load_model(checkpoint, model)
    return score(
        model.to(device),
        examples,
        ranks=replace(ALONE, device=device),
        autocast=nullcontext,
        on_batch=_Countdown(len(plan_batches(examples, **shape))),
        **shape,
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
            sys.stderr.write(f"{self._done:,} of {self._batches:,} batches\n")


def main(argv: list[str], published: Published = VALIDATION) -> str | int:
    parser = argparse.ArgumentParser(prog="training.eval_hellaswag", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the examples")
    parser.add_argument("--limit", type=int, help="score only so many, the first ones")
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error("--limit is at least 1")
    try:
        found = score_checkpoint(
            arguments.checkpoint, arguments.data, limit=arguments.limit, published=published
        )
    except TrainingError as error:
        return error.report
    print(msgspec.json.encode(found).decode())
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
