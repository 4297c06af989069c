"""Offers and runs that were never measured, for the tests of what is estimated from them."""

from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from gptctl.calibration import Measured, mfu_of
from gptctl.recipe import read_recipe
from training.config import Recipe
from training.layout import Offer

NODE = Offer(
    cloud="lambda",
    region="us-east-1",
    instance_type="gpu_8x_a100_80gb_sxm4",
    gpu="A100-80GB",
    gpu_count=8,
    spot=False,
    price_per_hour=Decimal("22.32"),
    price_source="Lambda",
    price_as_of="2026-11-21",
)


def make_offer(gpus: str = "A100-80GB:8", **fields: Any) -> Offer:
    gpu, _, count = gpus.partition(":")
    return replace(NODE, gpu=gpu, gpu_count=int(count), **fields)


def recipe_of(name: str, **train: Any) -> Recipe:
    _, recipe = read_recipe(name)
    return replace(recipe, train=replace(recipe.train, **train))


def make_measured(recipe: str, gpus: str, tokens_per_sec: float, **fields: Any) -> Measured:
    """As a run of this installation would have measured it."""
    gpu, _, count = gpus.partition(":")
    model = recipe_of(recipe).model
    measured = Measured(
        recipe=recipe,
        gpu=gpu,
        gpu_count=int(count),
        parameters=model.parameters,
        flops_per_token=float(model.flops_per_token),
        tokens_per_sec=tokens_per_sec,
        mfu=mfu_of(
            gpu,
            gpus=int(count),
            flops_per_token=model.flops_per_token,
            tokens_per_sec=tokens_per_sec,
        ),
        source="run ours-0001, 2026-11-21",
        is_ours=True,
    )
    return replace(measured, **fields)
