from collections.abc import Callable

import pytest
from msgspec.structs import replace

from gptctl.recipe import read_recipe
from training.config import Recipe
from training.reference import (
    beside_hellaswag,
    beside_val_loss,
    curve_names,
    find_curve,
    find_gpt2,
)

NAMES = ("gpt2-124m", "gpt2-350m", "gpt2-774m", "gpt2-1558m")


def recipe_of(name: str) -> Recipe:
    _, recipe = read_recipe(name)
    return recipe


SMALL = recipe_of("gpt2-124m")


def test_curves_are_whole() -> None:
    curves = {name: find_curve(recipe_of(name)) for name in curve_names()}
    assert {name: (len(c), c[0][0], c[-1][0]) for name, c in curves.items()} == {
        "gpt2-124m": (80, 0, 19_560),
        "gpt2-350m": (241, 0, 60_000),
    }
    for curve in curves.values():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps))


def test_models_of_openai_are_those_of_the_notebook_of_llm_c() -> None:
    found = [find_gpt2(recipe_of(name)) for name in NAMES]
    assert [(f.recipe, f.fineweb_loss, f.hellaswag) for f in found if f] == [
        ("gpt2-124m", 3.424958, 0.294463),
        ("gpt2-350m", 3.083089, 0.375224),
        ("gpt2-774m", 3.000580, 0.431986),
        ("gpt2-1558m", 2.831273, 0.488946),
    ]


@pytest.mark.parametrize(
    ("step", "loss"),
    [
        (0, 11.0092),
        (1_000, 4.3170),
        (1_125, (4.3170 + 4.1296) / 2),  # between two of the reference's evaluations
        (19_560, 3.2722),
    ],
)
def test_loss_of_the_reference_is_that_at_the_same_step(step: int, loss: float) -> None:
    assert beside_val_loss(SMALL, step) == {
        "llm.c at this step": pytest.approx(loss),
        "GPT-2": 3.424958,
    }


def test_beyond_the_last_step_of_the_reference_there_is_none() -> None:
    assert beside_val_loss(SMALL, 19_561) == {"GPT-2": 3.424958}


def test_another_way_to_train_on_the_same_tokens_is_set_beside_the_reference() -> None:
    train = replace(SMALL.train, optimizer="muon", schedule="wsd")
    assert beside_val_loss(replace(SMALL, train=train), 1_000) == beside_val_loss(SMALL, 1_000)


def test_steps_of_another_batch_are_not_those_of_the_reference() -> None:
    train = replace(SMALL.train, batch_tokens=262_144)
    assert beside_val_loss(replace(SMALL, train=train), 1_000) == {"GPT-2": 3.424958}


def test_size_of_which_no_curve_was_found_is_set_beside_openai_alone() -> None:
    assert beside_val_loss(recipe_of("gpt2-774m"), 1_000) == {"GPT-2": 3.000580}


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, data=replace(r.data, source="fineweb-edu")),
        lambda r: replace(r, data=replace(r.data, source="text", path="a book", config="")),
        lambda r: replace(r, data=replace(r.data, config="CC-MAIN-2024-10")),
        lambda r: replace(r, eval=replace(r.eval, tokens=1_048_576)),
        lambda r: replace(r, model=replace(r.model, n_layer=11)),
        lambda r: replace(r, model=replace(r.model, block_size=512)),
    ],
)
def test_losses_of_other_tokens_or_sizes_stand_alone(change: Callable[[Recipe], Recipe]) -> None:
    assert beside_val_loss(change(SMALL), 1_000) == {}


def test_hellaswag_is_one_set_for_models_of_any_data() -> None:
    assert beside_hellaswag(SMALL) == {"the reference in the end": 0.299, "GPT-2": 0.294463}
    assert beside_hellaswag(recipe_of("gpt2-1558m")) == {"GPT-2": 0.488946}
    other_size = replace(SMALL, model=replace(SMALL.model, n_layer=11))
    assert beside_hellaswag(other_size) == {}
    assert beside_hellaswag(recipe_of("demo")) == {}
