"""At which step a run likely reaches a validation loss: the curves of runs that others published.

Losses are in nats per token on FineWeb's validation shard, and compare with no other data.
"""

from math import ceil, isfinite

from msgspec import Struct

from gptctl.errors import PlanRefusedError, UsageError
from training.config import Recipe
from training.reference import Points, curve_names, find_curve, find_gpt2

FLAG = "--until-val-loss"


class Curve(Struct, frozen=True, kw_only=True):
    """`openai`: GPT-2's own loss on the same data."""

    recipe: str
    openai: float
    points: Points

    @property
    def steps(self) -> int:
        return self.points[-1][0]


def steps_to_reach(recipe: Recipe, val_loss: float) -> int:
    """The step of the first evaluation at which the loss is likely `val_loss` or less.

    A schedule that is longer than the curve's has a higher rate at the same step, so it is taken
    to need steps in proportion; a shorter one falls earlier, which is not counted on. Raises
    UsageError for what is no loss to train for, PlanRefusedError for what no curve tells of.
    """
    curve = _find_curve(recipe)
    if not isfinite(val_loss) or not 0 < val_loss < curve.points[0][1]:
        raise UsageError(
            f"{FLAG} {val_loss} is not a loss to train for",
            hint=f"nats per token, below the {curve.points[0][1]:g} of a model that knows nothing; "
            f"OpenAI's GPT-2 of this size has {curve.openai:.3f}",
        )
    points = _points(curve, recipe)
    reached = next((step for step, loss in points if loss <= val_loss), None)
    if reached is None:
        best, step = min((loss, ceil(step)) for step, loss in points)
        raise PlanRefusedError(
            f"{FLAG} {val_loss:g} is out of reach: the run that `{curve.recipe}` repeats came to "
            f"{best:g} by step {step:,}",
            hint=f"{FLAG} {best:g} or more; OpenAI's GPT-2 of this size has {curve.openai:.3f}",
        )
    every = recipe.eval.every
    return min(recipe.train.steps, ceil(reached / every) * every)


def loss_after(recipe: Recipe, steps: int) -> float:
    """The lowest loss that is likely reached by then. Raises PlanRefusedError as above."""
    points = _points(_find_curve(recipe), recipe)
    return min(loss for step, loss in points if step <= max(steps, points[0][0]))


def openai_loss(recipe: Recipe) -> float:
    """That of OpenAI's GPT-2 of this size on the same tokens. Raises PlanRefusedError."""
    return _find_curve(recipe).openai


def _points(curve: Curve, recipe: Recipe) -> list[tuple[float, float]]:
    """The curve as the recipe would follow it, to its last step."""
    stretch = max(1.0, recipe.train.steps / curve.steps)
    stretched = [(step * stretch, loss) for step, loss in curve.points]
    return [point for point in stretched if point[0] <= recipe.train.steps]


def _find_curve(recipe: Recipe) -> Curve:
    """Of the same model, data, batch and way to train. Raises PlanRefusedError."""
    is_alike = (recipe.train.optimizer, recipe.train.schedule) == ("adamw", "cosine")
    gpt2, points = find_gpt2(recipe), find_curve(recipe)
    if gpt2 is None or not points or not is_alike:
        raise PlanRefusedError(
            "no published loss curve tells when this recipe would reach a loss",
            hint=f"they are known of {' and '.join(curve_names())}, on FineWeb and "
            "with batch, optimizer and schedule as they come",
        )
    return Curve(recipe=gpt2.recipe, openai=gpt2.fineweb_loss, points=points)
