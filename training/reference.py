"""What others reached, to be set beside what a run measures: OpenAI's GPT-2 and llm.c's runs.

Torch-free: the node prints by it, the laptop plans by it. Losses are in nats per token on the
first 10,485,760 tokens of FineWeb's validation shard, and compare with no other data.
"""

import csv
from bisect import bisect_right
from functools import cache
from pathlib import Path

from msgspec import Struct

from training.config import Recipe

TABLE = Path(__file__).with_name("reference_losses.csv")
BATCH_TOKENS = 524_288
VALIDATION_TOKENS = 10_485_760
SAMPLES = ("", "sample-10BT", "sample-100BT", "sample-350BT")
"""Configs of FineWeb that begin alike; what its other ones begin with is one crawl's."""


class Gpt2(Struct, frozen=True, kw_only=True):
    """OpenAI's model of a size. Source: llm.c's notebook, for all sizes; `hellaswag`: acc_norm."""

    recipe: str
    parameters: int
    fineweb_loss: float
    hellaswag: float


_GPT2 = (
    Gpt2(recipe="gpt2-124m", parameters=124_475_904, fineweb_loss=3.424958, hellaswag=0.294463),
    Gpt2(recipe="gpt2-350m", parameters=354_871_296, fineweb_loss=3.083089, hellaswag=0.375224),
    Gpt2(recipe="gpt2-774m", parameters=774_090_240, fineweb_loss=3.000580, hellaswag=0.431986),
    Gpt2(recipe="gpt2-1558m", parameters=1_557_686_400, fineweb_loss=2.831273, hellaswag=0.488946),
)

Points = tuple[tuple[int, float], ...]
"""(step, loss), in order."""


def find_gpt2(recipe: Recipe) -> Gpt2 | None:
    """OpenAI's model of the recipe's size, where its tokens are GPT-2's, too."""
    is_gpt2 = recipe.data.tokenizer == "gpt2"
    sizes = (size for size in _GPT2 if size.parameters == recipe.model.parameters)
    return next(sizes, None) if is_gpt2 else None


def find_curve(recipe: Recipe) -> Points:
    """llm.c's run of this size on these data, in steps of this batch; () where there is none."""
    gpt2 = find_gpt2(recipe)
    if gpt2 is None or not _is_fineweb(recipe) or recipe.train.batch_tokens != BATCH_TOKENS:
        return ()
    return _read_curves().get(gpt2.recipe, ())


def curve_names() -> tuple[str, ...]:
    """The recipes of whose reference runs a curve was published."""
    return tuple(_read_curves())


def beside_val_loss(recipe: Recipe, step: int) -> dict[str, float]:
    """Who reached what on the same tokens, as people are told: `{"GPT-2": 3.424958}`.

    llm.c's loss is that at the same step, on the line between the two nearest of its own.
    """
    gpt2 = find_gpt2(recipe)
    if gpt2 is None or not _is_fineweb(recipe) or recipe.eval.tokens != VALIDATION_TOKENS:
        return {}
    loss = _interpolate(find_curve(recipe), step)
    llmc = {} if loss is None else {"llm.c at this step": loss}
    return llmc | {"GPT-2": gpt2.fineweb_loss}


def beside_hellaswag(recipe: Recipe) -> dict[str, float]:
    """The same of the share of HellaSwag, which is one set whatever a model was trained on."""
    gpt2 = find_gpt2(recipe)
    if gpt2 is None:
        return {}
    promised = recipe.reference.hellaswag if recipe.reference else None
    llmc = {} if promised is None else {"the reference in the end": promised}
    return llmc | {"GPT-2": gpt2.hellaswag}


def describe_beside(others: dict[str, float]) -> str:
    """After a number: ` (llm.c at this step 3.4312, GPT-2 3.4250)`; nothing where there is none."""
    told = ", ".join(f"{name} {value:.4f}" for name, value in others.items())
    return f" ({told})" if told else ""


def _is_fineweb(recipe: Recipe) -> bool:
    return recipe.data.source == "fineweb" and recipe.data.config in SAMPLES


def _interpolate(points: Points, step: int) -> float | None:
    after = bisect_right(points, step, key=lambda point: point[0])
    if not after:
        return None
    (left, loss), right = points[after - 1], points[after : after + 1]
    if not right:
        return loss if step == left else None
    (next_step, next_loss) = right[0]
    return loss + (next_loss - loss) * (step - left) / (next_step - left)


@cache
def _read_curves() -> dict[str, Points]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    curves: dict[str, Points] = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        point = (int(row["step"]), float(row["val_loss"]))
        curves[row["recipe"]] = (*curves.get(row["recipe"], ()), point)
    return curves
