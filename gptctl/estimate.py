"""How long a run would take on each of some offers, and what it would cost. Pure.

Speed is what a run of this installation measured for the very recipe, GPU and number of them, or
what `calibration.py` predicts. Money is exact: each phase is billed as a line of the bill is, and
the phases add up to the total to the last digit.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from msgspec import Struct

from gptctl.backends import LOCAL
from gptctl.calibration import Measured, error_of, predict_mfu
from gptctl.experience import name_machine
from gptctl.gpu_names import gpu_of
from gptctl.offers import cores_free
from gptctl.phases import Span, list_phases
from training.config import ModelConfig, Recipe, split_batch
from training.flops import peak_of
from training.layout import BillLine, Offer
from training.preparation import Preparation, plan_preparation

OTHER_CODE = 0.340 / 0.300
"""How much slower than in the runs that were measured a step may be, which is llm.c's: on 8 A100
build-nanogpt, PyTorch as ours is and not compiled, took 340 ms where llm.c took 300."""
MEASURED_ERROR = 0.1
"""Of a speed measured here: another machine of the kind, other neighbours."""
AROUND = ("provisioning", "setup", "first_shard", "compile", "upload", "teardown")
"""Phases that a run has however short its training is."""


class PhaseEstimate(Struct, frozen=True, kw_only=True):
    """Of all nodes together the money, the seconds by the clock."""

    seconds: float
    usd: Decimal


class Estimate(Struct, frozen=True, kw_only=True):
    """On one offer. `price_per_hour` of one machine; `hours` and `usd` of all phases, all nodes.

    Where nothing tells how fast it would be, `mfu_source` says why, the figures are None, and
    there are no phases. `mfu` alone is None where the speed is known and no peak is.
    """

    cloud: str
    instance_type: str
    region: str
    gpu: str
    gpu_count: int
    nodes: int
    spot: bool
    price_per_hour: Decimal
    price_source: str
    price_as_of: str
    mfu: float | None
    mfu_source: str
    tokens_per_sec: float | None
    hours: float | None
    usd: Decimal | None
    usd_low: Decimal | None
    usd_high: Decimal | None
    phases: dict[str, PhaseEstimate]
    fits_budget: bool | None
    preparation: Preparation

    @property
    def fixed_usd(self) -> Decimal | None:
        """What is paid before and after, however little is trained."""
        if self.usd is None:
            return None
        return sum((self.phases[name].usd for name in AROUND), Decimal(0))


class RecipeEstimate(Struct, frozen=True, kw_only=True):
    """`cost estimate RECIPE --json`; the offers in the order in which they were given."""

    recipe: str
    tokens: int
    steps: int
    flops_per_token: float
    offers: tuple[Estimate, ...]

    def tokens_per_usd(self, offer: Estimate) -> float | None:
        """None where it costs nothing, or nobody knows."""
        return self.tokens / float(offer.usd) if offer.usd else None


def estimate(
    recipe_name: str,
    recipe: Recipe,
    offers: Sequence[Offer],
    *,
    nodes: int = 1,
    known: Sequence[Measured],
    steps: int | None = None,
    budget_usd: Decimal | None = None,
    has_gigatoken: bool = True,
) -> RecipeEstimate:
    """Of `steps` steps, or all of the recipe's, on `nodes` machines of each offer.

    `has_gigatoken`: whether this machine has; a rented one is given it.
    """
    steps = recipe.train.steps if steps is None else steps
    found = (
        _estimate(
            offer,
            recipe,
            _find_speed(recipe_name, recipe, offer, nodes, known),
            nodes=nodes,
            steps=steps,
            budget_usd=budget_usd,
            has_gigatoken=has_gigatoken or offer.cloud != LOCAL,
        )
        for offer in offers
    )
    return RecipeEstimate(
        recipe=recipe_name,
        tokens=steps * recipe.train.batch_tokens,
        steps=steps,
        flops_per_token=float(recipe.model.flops_per_token),
        offers=tuple(found),
    )


class _Speed(Struct, frozen=True, kw_only=True):
    """`tokens_per_sec` of all nodes; None: unknown, and `source` says why.

    Training may take as little as its time by `faster`, as much as its time times `slower`.
    """

    tokens_per_sec: float | None = None
    mfu: float | None = None
    source: str
    faster: float = 1.0
    slower: float = 1.0


def _find_speed(
    recipe_name: str, recipe: Recipe, offer: Offer, nodes: int, known: Sequence[Measured]
) -> _Speed:
    model, gpu = recipe.model, gpu_of(offer) or offer.gpu
    if (fault := _find_fault(recipe, offer, nodes)) is not None:
        return _Speed(source=f"cannot run there: {fault}")
    if (run := _find_run(recipe_name, model, offer, nodes, known)) is not None:
        return _Speed(
            tokens_per_sec=run.tokens_per_sec,
            mfu=run.mfu,
            source=f"measured here: {run.source}",
            faster=1 + MEASURED_ERROR,
            slower=1 + MEASURED_ERROR,
        )
    predicted = predict_mfu(model, gpu=gpu, gpu_count=offer.gpu_count, nodes=nodes, known=known)
    peak = peak_of(gpu)
    if predicted is None or peak is None:
        what = f"a model of this size on {gpu}" if peak else f"training on {gpu}"
        return _Speed(source=f"nothing measured tells of {what}")
    mfu, source = predicted
    error = error_of(gpu, known)
    return _Speed(
        tokens_per_sec=mfu * peak * offer.gpu_count * nodes / model.flops_per_token,
        mfu=mfu,
        source=source,
        faster=1 + error,
        slower=(1 + error) * OTHER_CODE,
    )


def _find_fault(recipe: Recipe, offer: Offer, nodes: int) -> str | None:
    """Why so many ranks could not train it, if they could not."""
    try:
        split_batch(
            batch_tokens=recipe.train.batch_tokens,
            block_size=recipe.model.block_size,
            micro_batch_size=recipe.train.micro_batch_size,
            ranks=(offer.gpu_count or recipe.node.cpu_ranks) * nodes,
        )
    except ValueError as error:
        return str(error)
    return None


def _find_run(
    recipe_name: str, model: ModelConfig, offer: Offer, nodes: int, known: Sequence[Measured]
) -> Measured | None:
    """The newest of this installation, of the same recipe and model on the same machines."""
    gpu, machine = gpu_of(offer) or offer.gpu, name_machine(offer)
    wanted = (recipe_name, model.parameters, gpu, offer.gpu_count, nodes, machine)
    for m in reversed(known):
        if m.is_ours and wanted == (m.recipe, m.parameters, m.gpu, m.gpu_count, m.nodes, m.machine):
            return m
    return None


def _estimate(
    offer: Offer,
    recipe: Recipe,
    speed: _Speed,
    *,
    nodes: int,
    steps: int,
    budget_usd: Decimal | None,
    has_gigatoken: bool,
) -> Estimate:
    preparation = plan_preparation(
        recipe,
        tokens_per_sec=speed.tokens_per_sec,
        cores_free=cores_free(offer),
        has_gigatoken=has_gigatoken,
    )
    billed = Billed()
    if speed.tokens_per_sec is not None:
        price = offer.price_per_hour * nodes
        seconds = steps * recipe.train.batch_tokens / speed.tokens_per_sec
        training = Span(seconds / speed.faster, seconds, seconds * speed.slower)
        spans = list_phases(
            recipe,
            training,
            steps=steps,
            cloud=offer.cloud,
            spot=offer.spot,
            on_gpu=offer.gpu_count > 0,
            waiting=preparation.waiting,
            has_gigatoken=has_gigatoken,
        )
        billed = bill_spans(spans, price)
    return describe_offer(
        offer,
        billed,
        nodes=nodes,
        mfu=speed.mfu,
        source=speed.source,
        tokens_per_sec=speed.tokens_per_sec,
        budget_usd=budget_usd,
        preparation=preparation,
    )


class Billed(Struct, frozen=True, kw_only=True):
    """Time and money of an estimate; None where nothing tells of them."""

    hours: float | None = None
    usd: Decimal | None = None
    usd_low: Decimal | None = None
    usd_high: Decimal | None = None
    phases: dict[str, PhaseEstimate] = {}


def bill_spans(spans: Mapping[str, Span], price_per_hour: Decimal) -> Billed:
    """`price_per_hour`: of all nodes together."""
    phases = {name: _bill(span.likely, price_per_hour) for name, span in spans.items()}
    usd = sum((phase.usd for phase in phases.values()), Decimal(0))
    low = _bill(sum(span.low for span in spans.values()), price_per_hour).usd
    high = _bill(sum(span.high for span in spans.values()), price_per_hour).usd
    return Billed(
        hours=sum(phase.seconds for phase in phases.values()) / 3600,
        usd=usd,
        usd_low=min(usd, low),
        usd_high=max(usd, high),
        phases=phases,
    )


def describe_offer(
    offer: Offer,
    billed: Billed,
    *,
    nodes: int = 1,
    mfu: float | None = None,
    source: str,
    tokens_per_sec: float | None = None,
    budget_usd: Decimal | None,
    preparation: Preparation,
) -> Estimate:
    """An estimate: an offer, what was found of it, and by what `source`."""
    return Estimate(
        cloud=offer.cloud,
        instance_type=offer.instance_type,
        region=offer.region,
        gpu=offer.gpu,
        gpu_count=offer.gpu_count,
        nodes=nodes,
        spot=offer.spot,
        price_per_hour=offer.price_per_hour,
        price_source=offer.price_source,
        price_as_of=offer.price_as_of,
        mfu=mfu,
        mfu_source=source,
        tokens_per_sec=tokens_per_sec,
        hours=billed.hours,
        usd=billed.usd,
        usd_low=billed.usd_low,
        usd_high=billed.usd_high,
        phases=billed.phases,
        fits_budget=None if billed.usd is None or budget_usd is None else billed.usd <= budget_usd,
        preparation=preparation,
    )


def _bill(seconds: float, price_per_hour: Decimal) -> PhaseEstimate:
    """As the meter rounds, and the bill: to a millisecond, then up to a hundredth of a cent."""
    seconds = round(seconds, 3)
    line = BillLine(life=1, phase="", seconds=seconds, price_per_hour=price_per_hour)
    return PhaseEstimate(seconds=seconds, usd=line.usd)
