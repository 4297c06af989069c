"""What evaluation and HellaSwag take of a run's time, beside its training steps.

    python bench/evaluation_cost.py EXAMPLES [--recipe gpt2-124m] [--rows N] [--rounds N]

EXAMPLES is HellaSwag's file as a run prepares it: `hellaswag-gpt2/hellaswag_val.bin` beside its
data sets. Seconds a token of all three are measured with the recipe's own model, in bfloat16, and
weighed with the recipe's numbers of tokens, and with the reference's cadence, where HellaSwag goes
with each evaluation. A training step counts without its update, which makes the shares bounds.
Of HellaSwag every n-th batch is scored, so that each width has its part.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from gptctl.recipe import read_recipe
from training.config import Recipe
from training.distributed import ALONE
from training.evaluate import ValidationSet, validation_loss
from training.hellaswag import Example, read_examples
from training.hellaswag_score import Batch, ending_losses, plan_batches
from training.model import GPT

RESULT = Path(__file__).parent / "results" / "evaluation_cost.json"
SCORED_BATCHES = 12


def autocast() -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def time_training(model: GPT, tokens: torch.Tensor) -> float:
    """Seconds a token of forward and backward."""
    started = perf_counter()
    with autocast():
        loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    taken = perf_counter() - started
    model.zero_grad(set_to_none=True)
    return taken / tokens[:, 1:].numel()


def time_evaluation(model: GPT, validation: ValidationSet, rows: int) -> float:
    started = perf_counter()
    validation_loss(model, validation, micro_batch_size=rows, ranks=ALONE, autocast=autocast)
    return (perf_counter() - started) / validation.tokens


def time_hellaswag(
    model: GPT, examples: list[Example], batches: list[Batch], block_size: int
) -> float:
    """Seconds a token fed, padding included."""
    started = perf_counter()
    ending_losses(
        model, examples, batches=batches, block_size=block_size, ranks=ALONE, autocast=autocast
    )
    return (perf_counter() - started) / fed_tokens(batches)


def fed_tokens(batches: list[Batch]) -> int:
    return sum(4 * batch.size * batch.width for batch in batches)


def share(
    recipe: Recipe, *, hellaswag_every: int, hellaswag_tokens: int, costs: list[float]
) -> float:
    """Of evaluations and scores in the time of all three; `costs` in seconds a token."""
    training, evaluation, hellaswag = costs
    steps = recipe.train.steps
    evaluations, scores = 1 + steps // recipe.eval.every, 1 + steps // hellaswag_every
    aside = evaluations * recipe.eval.tokens * evaluation + scores * hellaswag_tokens * hellaswag
    return aside / (aside + steps * recipe.train.batch_tokens * training)


def compare(recipe: Recipe, examples: list[Example], rows: int, rounds: int) -> dict[str, object]:
    shape = recipe.model
    model = GPT(shape)
    generator = np.random.default_rng(1)
    ids = generator.integers(0, shape.vocab_size, rows * shape.block_size + 1, dtype=np.uint16)
    validation = ValidationSet(ids, tokens=rows * shape.block_size, block_size=shape.block_size)
    window = torch.from_numpy(ids[:-1].astype(np.int64)).view(rows, -1)
    whole = plan_batches(
        examples, block_size=shape.block_size, micro_batch_size=recipe.train.micro_batch_size
    )
    some = whole[:: max(1, len(whole) // SCORED_BATCHES)]
    sides: dict[str, Callable[[], float]] = {
        "training": lambda: time_training(model, window),
        "evaluation": lambda: time_evaluation(model, validation, rows),
        "hellaswag": lambda: time_hellaswag(model, examples, some, shape.block_size),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1 + rounds):
        for name, side in sides.items():
            seconds = side()
            if number:
                taken[name].append(seconds)
    costs = [statistics.median(taken[name]) for name in sides]
    tokens = fed_tokens(whole)

    def share_at(hellaswag_every: int) -> float:
        found = share(recipe, hellaswag_every=hellaswag_every, hellaswag_tokens=tokens, costs=costs)
        return round(found, 4)

    return {
        "seconds_a_million_tokens": {
            name: round(1e6 * cost, 1) for name, cost in zip(sides, costs, strict=True)
        },
        "by_round": {name: [round(1e6 * s, 1) for s in all_] for name, all_ in taken.items()},
        "hellaswag_tokens_fed": tokens,
        "share_of_the_recipe": share_at(recipe.eval.hellaswag_every),
        "share_at_the_reference_cadence": share_at(recipe.eval.every),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("examples", type=Path)
    parser.add_argument("--recipe", default="gpt2-124m")
    parser.add_argument("--rows", type=int, default=4, help="sequences of a step and evaluation")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    _, recipe = read_recipe(arguments.recipe)
    examples = read_examples(arguments.examples, vocab_size=recipe.model.vocab_size)
    found = compare(recipe, examples, arguments.rows, arguments.rounds)
    result = {"on": f"{os.cpu_count()} cores", "torch": torch.__version__, **found}
    print(json.dumps(result, indent=2))
    RESULT.write_text(json.dumps({arguments.recipe: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
