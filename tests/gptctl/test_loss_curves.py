import math

import pytest
from msgspec.structs import replace

from gptctl.errors import PlanRefusedError, UsageError
from gptctl.loss_curves import loss_after, openai_loss, steps_to_reach
from tests.gptctl.estimates import recipe_of

SMALL, MEDIUM = recipe_of("gpt2-124m"), recipe_of("gpt2-350m")


@pytest.mark.parametrize(
    ("recipe", "val_loss", "step"),
    [
        # OpenAI's GPT-2 on the same tokens, and where llm.c's logs pass it.
        (SMALL, 3.424958, 8_750),
        (MEDIUM, 3.083089, 23_750),
        # The record's target, and the lowest loss of each log.
        (SMALL, 3.28, 17_250),
        (recipe_of("gpt2-124m", steps=19_560), 3.2722, 19_250),
        (MEDIUM, 2.9281, 59_750),
    ],
)
def test_target_is_met_at_the_step_of_the_published_curve(recipe, val_loss, step):
    assert steps_to_reach(recipe, val_loss) == step


def test_openai_losses_are_those_of_the_notebook_of_llm_c():
    assert (openai_loss(SMALL), openai_loss(MEDIUM)) == (3.424958, 3.083089)


def test_step_is_one_at_which_the_recipe_evaluates():
    rarely = replace(SMALL, eval=replace(SMALL.eval, every=6_000))

    assert steps_to_reach(rarely, 3.425) == 12_000
    assert steps_to_reach(rarely, 3.28) == 18_000
    assert steps_to_reach(rarely, 3.274) == SMALL.train.steps  # the last, which is evaluated too


@pytest.mark.parametrize("lower", [3.0, 3.2])
def test_loss_below_the_curve_is_refused_and_says_what_is_reachable(lower):
    with pytest.raises(PlanRefusedError, match="out of reach") as refused:
        steps_to_reach(SMALL, lower)

    best = loss_after(SMALL, SMALL.train.steps)
    assert f"came to {best:g}" in refused.value.message
    assert steps_to_reach(SMALL, best) <= SMALL.train.steps


def test_shorter_run_reaches_no_more_than_the_curve_had_by_then():
    short = recipe_of("gpt2-124m", steps=5_000)

    assert loss_after(short, 5_000) == loss_after(SMALL, 5_000)
    with pytest.raises(PlanRefusedError):
        steps_to_reach(short, 3.425)


def test_longer_schedule_is_taken_to_need_steps_in_proportion():
    twice = recipe_of("gpt2-124m", steps=2 * 19_560)

    assert steps_to_reach(twice, 3.425) == 2 * 8_750


def test_lower_losses_never_take_fewer_steps():
    steps = [steps_to_reach(SMALL, 3.3 + i / 100) for i in range(100)]

    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("val_loss", [0.0, -1.0, math.nan, math.inf, 11.5])
def test_what_is_no_loss_to_train_for_is_a_wrong_flag(val_loss):
    with pytest.raises(UsageError, match="--until-val-loss") as wrong:
        steps_to_reach(SMALL, val_loss)

    assert "3.425" in wrong.value.hint


@pytest.mark.parametrize(
    "recipe",
    [
        recipe_of("gpt2-774m"),
        recipe_of("gpt2-1558m"),
        recipe_of("demo"),
        recipe_of("gpt2-124m", optimizer="muon"),
        recipe_of("gpt2-124m", schedule="wsd"),
        recipe_of("gpt2-124m", batch_tokens=262_144),
        replace(SMALL, data=replace(SMALL.data, source="text", path="a book")),
    ],
)
def test_recipe_that_no_curve_tells_of_is_refused(recipe):
    with pytest.raises(PlanRefusedError, match="no published loss curve") as refused:
        steps_to_reach(recipe, 3.425)

    assert "gpt2-124m and gpt2-350m" in refused.value.hint
