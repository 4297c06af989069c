"""The arithmetic in each recipe's header comment, against the recipe that follows it."""

import re
from decimal import Decimal

import pytest

from gptctl.loss_curves import steps_to_reach
from gptctl.recipe import find_recipe, read_recipe, recipe_names
from training.config import Recipe, ReferenceConfig, split_batch

REFERENCE_RUNS = ["gpt2-124m", "gpt2-350m", "gpt2-774m", "gpt2-1558m"]
PEAK_TFLOPS = {"A100-80GB": 312, "H100": 989}  # dense bf16, NVIDIA's data sheets (SXM)


def figures(name: str, pattern: str) -> list[tuple[str, ...]]:
    """The groups of every header line that is `pattern`, spaces as they stand."""
    text = find_recipe(name).read_text(encoding="utf-8")
    return [m.groups() for m in re.finditer(rf"^#   {pattern}$", text, re.MULTILINE)]


def as_written(figure: str, value: float | Decimal) -> str:
    """`value` to as many places as `figure` has, so that the two can be compared as text."""
    places = len(figure.partition(".")[2])
    return f"{value:,.{places}f}"


def reference_of(recipe: Recipe) -> ReferenceConfig:
    assert recipe.reference is not None
    return recipe.reference


def hours_of(recipe: Recipe) -> float:
    return recipe.train.steps * reference_of(recipe).step_ms / 3.6e6


def gpus_of(recipe: Recipe) -> tuple[str, int]:
    gpu, _, count = reference_of(recipe).gpus.partition(":")
    return gpu, int(count)


def test_all_seven_recipes_are_there() -> None:
    assert set(recipe_names()) >= {*REFERENCE_RUNS, "gpt2-124m-fast", "shakespeare", "demo"}


@pytest.mark.parametrize("name", recipe_names())
def test_header_states_parameters_and_tokens(name: str) -> None:
    _, recipe = read_recipe(name)
    train = recipe.train
    assert figures(name, r"N = ([\d,]+) parameters") == [(f"{recipe.model.parameters:,}",)]
    assert figures(name, r"D = ([\d,]+) tokens = ([\d,]+) steps × ([\d,]+)") == [
        (f"{train.tokens:,}", f"{train.steps:,}", f"{train.batch_tokens:,}")
    ]


@pytest.mark.parametrize("name", REFERENCE_RUNS)
def test_header_states_flops_and_the_least_time_they_take(name: str) -> None:
    _, recipe = read_recipe(name)
    per_token = recipe.model.flops_per_token
    total = per_token * recipe.train.tokens
    gpu, count = gpus_of(recipe)
    [(flops,)] = figures(name, r"F = ([\d,]+) FLOPs per token = 6 N \+ 6 n_layer n_embd block_size")
    assert flops == f"{per_token:,}"
    [(flops, hours, gpus, peak)] = figures(
        name, r"F × D = (\S+) FLOPs: (\S+) h on (\S+) at 100 % MFU \((\d+) TFLOP/s each\)"
    )
    assert flops == f"{total:.2e}".replace("+", "")
    assert (gpus, peak) == (f"{gpu}:{count}", str(PEAK_TFLOPS[gpu]))
    assert hours == as_written(hours, total / (count * PEAK_TFLOPS[gpu] * 1e12) / 3600)


@pytest.mark.parametrize("name", REFERENCE_RUNS)
def test_header_states_time_speed_and_utilization(name: str) -> None:
    _, recipe = read_recipe(name)
    step_ms = reference_of(recipe).step_ms
    gpu, count = gpus_of(recipe)
    tokens_per_sec = recipe.train.batch_tokens / step_ms * 1e3
    mfu = tokens_per_sec * recipe.model.flops_per_token / (count * PEAK_TFLOPS[gpu] * 1e12)
    [(steps, ms, hours, speed, percent)] = figures(
        name, r"([\d,]+) steps × (\d+) ms = (\S+) h: ([\d,]+) tokens/s, (\S+) % MFU"
    )
    assert (steps, ms) == (f"{recipe.train.steps:,}", f"{step_ms:.0f}")
    assert hours == as_written(hours, hours_of(recipe))
    assert speed == f"{tokens_per_sec:,.0f}"
    assert percent == as_written(percent, mfu * 100)


@pytest.mark.parametrize("name", REFERENCE_RUNS)
def test_header_prices_the_run_today_and_as_the_famous_figure_did(name: str) -> None:
    _, recipe = read_recipe(name)
    reference = reference_of(recipe)
    lines = figures(name, r"(\S+) h × \$(\S+)/h = \$(\S+) \((.*)\)")
    assert len(lines) == 2
    for hours, price, usd, _ in lines:
        assert hours == as_written(hours, hours_of(recipe))
        assert usd == as_written(usd, hours_of(recipe) * float(price))
    _, price, _, when = lines[0]
    assert Decimal(price) == reference.price_per_hour
    assert when.endswith(reference.price_as_of)


@pytest.mark.parametrize("name", REFERENCE_RUNS)
def test_reference_section_agrees_with_its_own_steps_and_price(name: str) -> None:
    _, recipe = read_recipe(name)
    reference = reference_of(recipe)
    hours = hours_of(recipe)
    assert reference.hours == pytest.approx(hours, abs=5e-4)
    assert float(reference.usd) == pytest.approx(hours * float(reference.price_per_hour), abs=5e-3)
    assert reference.gpus in recipe.node.gpus


@pytest.mark.parametrize(
    ("name", "grad_accum_steps"),
    [("gpt2-124m", 1), ("gpt2-350m", 1), ("gpt2-774m", 2), ("gpt2-1558m", 8)],
)
def test_reference_batch_is_shared_out_as_the_reference_does(
    name: str, grad_accum_steps: int
) -> None:
    _, recipe = read_recipe(name)
    train = recipe.train
    assert split_batch(
        batch_tokens=train.batch_tokens,
        block_size=recipe.model.block_size,
        micro_batch_size=train.micro_batch_size,
        ranks=gpus_of(recipe)[1],
    ) == (train.micro_batch_size, grad_accum_steps)


def test_small_recipe_states_what_it_takes_to_match_openai() -> None:
    _, recipe = read_recipe("gpt2-124m")
    [(steps, percent, ms, hours, usd, price)] = figures(
        "gpt2-124m",
        r"([\d,]+) steps = (\d+) % × (\d+) ms = (\S+) h: \$(\S+) at \$(\S+)/h",
    )
    reached = steps_to_reach(recipe, 3.425)
    reference = reference_of(recipe)
    spent = reached * reference.step_ms / 3.6e6
    assert steps == f"{reached:,}"
    assert percent == as_written(percent, 100 * reached / recipe.train.steps)
    assert ms == f"{reference.step_ms:.0f}"
    assert hours == as_written(hours, spent)
    assert usd == as_written(usd, spent * float(reference.price_per_hour))
    assert Decimal(price) == reference.price_per_hour


def test_fast_recipe_is_the_same_model_on_the_same_data_and_promises_nothing_measured() -> None:
    _, small = read_recipe("gpt2-124m")
    _, quick = read_recipe("gpt2-124m-fast")
    assert (quick.model, quick.data, quick.eval) == (small.model, small.data, small.eval)
    assert quick.train.batch_tokens == small.train.batch_tokens
    assert quick.reference is None
    assert "A PROJECTION" in find_recipe("gpt2-124m-fast").read_text(encoding="utf-8")


def test_fast_recipe_states_its_flops_and_its_bill_at_the_speed_of_the_reference() -> None:
    _, small = read_recipe("gpt2-124m")
    _, quick = read_recipe("gpt2-124m-fast")
    total = quick.model.flops_per_token * quick.train.tokens
    [(flops, hours)] = figures(
        "gpt2-124m-fast",
        r"F × D = (\S+) FLOPs: (\S+) h on A100-80GB:8 at 100 % MFU \(312 TFLOP/s each\)",
    )
    assert flops == f"{total:.2e}".replace("+", "")
    assert hours == as_written(hours, total / (8 * PEAK_TFLOPS["A100-80GB"] * 1e12) / 3600)
    [(steps, ms, hours, price, usd)] = figures(
        "gpt2-124m-fast",
        r"([\d,]+) steps × (\d+) ms = (\S+) h × \$(\S+)/h = \$(\S+), at the speed of .*",
    )
    reference = reference_of(small)
    spent = quick.train.steps * reference.step_ms / 3.6e6
    assert (steps, ms) == (f"{quick.train.steps:,}", f"{reference.step_ms:.0f}")
    assert hours == as_written(hours, spent)
    assert Decimal(price) == reference.price_per_hour
    assert usd == as_written(usd, spent * float(reference.price_per_hour))
