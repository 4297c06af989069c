"""What a run spends its time on beside training, each as a range of seconds. Pure.

The figures that nobody has measured on a rented machine of ours yet are assumptions, and stand
here as such; their ranges are wide. Billed time only: what a cloud takes to find a machine costs
nothing, and what training does at the same time (sending all checkpoints but the last, writing all
shards but the first) takes none.
"""

from math import ceil

from msgspec import Struct
from msgspec.structs import replace

from gptctl.backends import LOCAL
from gptctl.backends.sky_task import TEARDOWN_S
from training.config import DataConfig, Recipe
from training.preparation import (
    BYTES_PER_PARAMETER,
    LINK_BYTES_PER_S,
    SHARD_BYTES_PER_TOKEN,
    rates_of,
)

FIRST_CORES = 2
"""On which the first shards are made; most machines have more."""
FORWARD_SHARE = 1 / 3
"""Of the FLOPs of training, those of the loss alone: 2N of 6N (PaLM, appendix B)."""
HELLASWAG_TOKENS = 4_423_680
"""All endings with their contexts, padded as they are fed (bench/evaluation_cost.py)."""
SPOT_LIFE_S = 4 * 3600.0
"""Assumed for the high end: a spot machine is taken away as often as this."""
BILLED_BY_S = {LOCAL: 0, "aws": 1, "gcp": 1}
"""The unit in which a machine is billed; where nothing is known, a minute, as on Lambda."""
MINUTE_S = 60


class Span(Struct, frozen=True):
    """Seconds: at best, most likely, at worst."""

    low: float
    likely: float
    high: float

    def times(self, factor: float) -> "Span":
        return Span(self.low * factor, self.likely * factor, self.high * factor)


NOTHING = Span(0.0, 0.0, 0.0)
PROVISIONING = Span(60, 90, 300)
"""Booting took 72 to 83 s in the tests' data centre, SkyPilot's runtime included."""
TEARDOWN = Span(30, TEARDOWN_S, 2 * TEARDOWN_S)


def list_phases(
    recipe: Recipe,
    training: Span,
    *,
    steps: int,
    cloud: str,
    spot: bool,
    on_gpu: bool = True,
    waiting: float = 0.0,
    has_gigatoken: bool = True,
) -> dict[str, Span]:
    """All phases of a run of `steps` steps in the order in which they begin, `training` among them.

    `provisioning`: from when the machine bills to our first line; `first_shard`: until training has
    its first data; `upload`: samples and what is sent after the last step. `preemptions`, of a spot
    machine, may be none. `waiting_for_data` is there where preparation is the slower of the two, by
    `waiting` of the time of training.
    """
    is_rented = cloud != LOCAL
    compiles = on_gpu if recipe.train.compile is None else recipe.train.compile
    saved = _seconds(_checkpoint_bytes(recipe), best=10e9, likely=2.5e9, worst=0.5e9)
    written = _seconds(_checkpoint_bytes(recipe), best=2e9, likely=0.5e9, worst=0.1e9)
    stalls = saved.times(_times(steps, recipe.checkpoint.every))
    phases = {
        "provisioning": PROVISIONING if is_rented else NOTHING,
        # Installing torch, looking at the GPUs, joining the ranks. Here: only starting them.
        "setup": Span(60, 150, 600) if is_rented else Span(3, 6, 20),
        "first_shard": _first_shard(recipe, steps, has_gigatoken=has_gigatoken),
        # One block for all layers, for training, evaluation and HellaSwag. Two CPU cores take 15 s
        # for the first of the three (bench/train_step.py); on a GPU it is not yet measured.
        "compile": Span(5, 10, 120) if compiles else NOTHING,
        "training": training,
        "evaluation": _evaluation(recipe, training, steps),
        # Training waits for each copy, and in the end for the last one to be written and hashed.
        "checkpoints": _add(stalls, written),
        "upload": _upload(recipe, is_rented=is_rented),
        "teardown": TEARDOWN if is_rented else NOTHING,
    }
    if waiting:
        phases["waiting_for_data"] = Span(0, waiting * training.likely, waiting * training.high)
    if spot:
        phases["preemptions"] = _preemptions(phases, every=recipe.checkpoint.every / steps)
    return _fill_unit(phases, cloud)


def list_preparing_phases(
    data: DataConfig, tokens: int, *, cores: float | None, cloud: str
) -> dict[str, Span]:
    """The same of a rented machine that only prepares so many tokens, and sends them.

    It fetches, makes and sends at the same time: as long as the slowest of them takes, and at
    worst as long as all three.
    """
    rates = rates_of(data)
    made = tokens / rates.tokens_per_s(cores or FIRST_CORES)
    size = round(tokens * SHARD_BYTES_PER_TOKEN)
    at_once = (
        _seconds(
            round(tokens * rates.fetched_bytes), best=500e6, likely=LINK_BYTES_PER_S, worst=20e6
        ),
        Span(made, made, 2 * made),
        _seconds(size, best=0.5e9, likely=0.1e9, worst=0.025e9),
    )
    preparing = Span(
        max(span.low for span in at_once),
        max(span.likely for span in at_once),
        sum(span.high for span in at_once),
    )
    phases = {
        "provisioning": PROVISIONING,
        "setup": Span(20, 60, 300),  # without torch
        "preparing": preparing,
        "upload": Span(5, 10, 60),
        "teardown": TEARDOWN,
    }
    return _fill_unit(phases, cloud)


def _fill_unit(phases: dict[str, Span], cloud: str) -> dict[str, Span]:
    """With the time that is billed after its end."""
    unit_s = BILLED_BY_S.get(cloud, MINUTE_S)
    return phases | {"billing_granularity": Span(0, _rest(phases, unit_s), unit_s)}


def _first_shard(recipe: Recipe, steps: int, *, has_gigatoken: bool) -> Span:
    """Validation and the first of training, and the first file of the Hub: its link is assumed.

    Nothing where the store has them already.
    """
    rates = rates_of(recipe.data, has_gigatoken=has_gigatoken)
    tokens = 2 * min(recipe.data.shard_tokens, steps * recipe.train.batch_tokens)
    made = tokens / rates.tokens_per_s(FIRST_CORES)
    fetched = _seconds(round(rates.file_bytes), best=500e6, likely=LINK_BYTES_PER_S, worst=20e6)
    return replace(_add(fetched, Span(0, made, 4 * made)), low=0.0)


def _evaluation(recipe: Recipe, training: Span, steps: int) -> Span:
    """One before the first step, too. At worst half as fast as the forward half of training."""
    tokens = recipe.eval.tokens * (1 + _times(steps, recipe.eval.every))
    if recipe.eval.hellaswag:
        tokens += HELLASWAG_TOKENS * _times(steps, recipe.eval.hellaswag_every)
    share = FORWARD_SHARE * tokens / (steps * recipe.train.batch_tokens)
    found = training.times(share)
    return Span(found.low, found.likely, 2 * found.high)


def _upload(recipe: Recipe, *, is_rented: bool) -> Span:
    size = _checkpoint_bytes(recipe)
    if not is_rented:
        return _add(Span(2, 5, 15), _seconds(size, best=2e9, likely=0.5e9, worst=0.1e9))
    return _add(Span(10, 20, 60), _seconds(size, best=0.5e9, likely=0.1e9, worst=0.025e9))


def _preemptions(phases: dict[str, Span], *, every: float) -> Span:
    """None at best and most likely; at worst as many as fit, each as late as it can come.

    `every`: from one checkpoint to the next, as a share of training.
    """
    training = phases["training"].high
    again = phases["provisioning"].high + phases["setup"].high + min(1.0, every) * training
    return Span(0, 0, ceil(training / SPOT_LIFE_S) * again)


def _rest(phases: dict[str, Span], unit_s: int) -> float:
    """Seconds from the end of the run to that of the unit in which it is billed."""
    seconds = sum(span.likely for span in phases.values())
    return ceil(seconds / unit_s) * unit_s - seconds if unit_s else 0.0


def _checkpoint_bytes(recipe: Recipe) -> int:
    return recipe.model.parameters * BYTES_PER_PARAMETER


def _times(steps: int, every: int) -> int:
    """How often something is due every so many steps, and at the last."""
    return ceil(steps / every)


def _seconds(size_bytes: int, *, best: float, likely: float, worst: float) -> Span:
    """At assumed bytes a second."""
    return Span(size_bytes / best, size_bytes / likely, size_bytes / worst)


def _add(one: Span, other: Span) -> Span:
    return Span(one.low + other.low, one.likely + other.likely, one.high + other.high)
