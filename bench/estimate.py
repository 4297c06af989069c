"""How long runs took that others measured, beside what `gptctl cost estimate` says of them.

    python bench/estimate.py [--out bench/results/estimate.json]

`predicted` is by the calibration as it is shipped, `held out` by all of it but that very run.
Training alone: what is around it was not part of the figures that were published.
"""

import argparse
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from gptctl.calibration import Measured, read_calibration
from gptctl.estimate import estimate
from gptctl.recipe import read_recipe
from training.layout import Offer

LIMIT, HELD_OUT_LIMIT = 0.10, 0.20
PRICE = Decimal(14)
"""Dollars an hour that the famous $20 and $200 assumed: llm.c's reports, 2024."""


def predict_hours(run: Measured, known: list[Measured]) -> tuple[float, Decimal]:
    """Hours of training and their cost on 8 GPUs at PRICE."""
    name, recipe = read_recipe(run.recipe)
    offer = Offer(
        cloud="lambda",
        region="",
        instance_type="",
        gpu=run.gpu,
        gpu_count=run.gpu_count,
        spot=False,
        price_per_hour=PRICE,
        price_source="assumed",
        price_as_of="2024-07-11",
    )
    [found] = estimate(name, recipe, [offer], known=known).offers
    training = found.phases["training"]
    return training.seconds / 3600, training.usd


def compare(run: Measured, known: list[Measured]) -> dict[str, Any]:
    _, recipe = read_recipe(run.recipe)
    measured = recipe.train.tokens / run.tokens_per_sec / 3600
    predicted, usd = predict_hours(run, known)
    held_out, _ = predict_hours(run, [other for other in known if other != run])
    return {
        "recipe": run.recipe,
        "gpus": f"{run.gpu}:{run.gpu_count}",
        "measured_hours": round(measured, 3),
        "predicted_hours": round(predicted, 3),
        "error": round(predicted / measured - 1, 4),
        "held_out_hours": round(held_out, 3),
        "held_out_error": round(held_out / measured - 1, 4),
        "training_usd_at_14_an_hour": usd,
        "source": run.source,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/estimate.json")
    options = parser.parse_args()
    known = read_calibration()
    rows = [compare(run, known) for run in known]
    print(f"{'':<24}{'measured':>10}{'predicted':>18}{'held out':>18}{'at $14/h':>12}")
    for row in rows:
        print(
            f"{row['recipe']:<12}{row['gpus']:<12}{row['measured_hours']:>8.2f} h"
            f"{row['predicted_hours']:>8.2f} h {row['error']:>+7.1%}"
            f"{row['held_out_hours']:>8.2f} h {row['held_out_error']:>+7.1%}"
            f"{row['training_usd_at_14_an_hour']:>12.2f}"
        )
    result = {
        "bench": "python bench/estimate.py",
        "limit": LIMIT,
        "held_out_limit": HELD_OUT_LIMIT,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    is_good = all(
        abs(row["error"]) < LIMIT and abs(row["held_out_error"]) < HELD_OUT_LIMIT for row in rows
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
