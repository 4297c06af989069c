"""How plans, runs and costs look. Readable without colour; `-` for what is not known."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from gptctl.backends import LOCAL
from gptctl.checkpoints import PulledCheckpoint
from gptctl.cli.curve import draw_curve
from gptctl.estimate import Estimate
from gptctl.offers import describe_gpus, describe_machine
from gptctl.plan import Plan
from gptctl.report import Cost, Curves, describe_shares
from gptctl.runs import RunView
from training.config import DataConfig
from training.layout import Lead, Offer, RunRecord
from training.preparation import (
    SHARD_BYTES_PER_TOKEN,
    Preparation,
    checkpoint_bytes,
    rates_of,
    source_tokens,
)

CURVE_WIDTH, CURVE_HEIGHT = 76, 15
MOST_ALTERNATIVES = 4
OF_TRAINING = ("model", "training", "HellaSwag", "a step")
"""Rows of a plan that one which trains nothing has not."""


def dollars(usd: Decimal | None) -> str:
    """In cents, rounded up as a bill is; below ten cents to a hundredth of one."""
    if usd is None:
        return "-"
    unit = Decimal("0.01") if usd == 0 or usd >= Decimal("0.1") else Decimal("0.0001")
    return f"${usd.quantize(unit, rounding='ROUND_CEILING'):,}"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `42 s`, `3 min 05 s`, `2 h 07 min`"""
    if seconds is None:
        return "-"
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def number(value: float | None, form: str = ",.0f") -> str:
    return "-" if value is None else format(value, form)


def counted(count: int, what: str) -> str:
    """`1 shard`, `2 shards`"""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def describe_lead(lead: Lead) -> str:
    """`3 shards ahead, 2 min 05 s of training, at 24,000,000 tokens/s`, and what is wrong."""
    if lead.is_done:
        return "all that it needs is ready"
    parts = [f"{counted(lead.shards, 'shard')} ahead"]
    if lead.seconds is not None:
        parts.append(f"{duration(lead.seconds)} of training")
    if lead.tokens_per_sec is not None:
        parts.append(f"at {lead.tokens_per_sec:,.0f} tokens/s")
    if lead.is_waiting:
        parts.append("training waits for it")
    if lead.is_losing:
        parts.append(f"too slow: training will wait {duration(lead.waits_s)} in all from now on")
    return ", ".join(parts)


def _ready_of(lead: Lead) -> str:
    ready = f"{lead.ready_tokens:,} of {lead.wanted_tokens:,} training tokens ready; "
    return "" if lead.is_done else ready


def spending(view: RunView) -> str:
    limit = "" if view.budget_usd is None else f" of {dollars(view.budget_usd)}"
    return dollars(view.spent_usd) + limit


def moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def state_of(view: RunView) -> str:
    """`stopped (budget)`; a run that has not been heard of says so, as one that bills on does."""
    reason = f" ({view.reason})" if view.reason and view.reason != "completed" else ""
    bills = " (still bills)" if view.is_billing and view.is_over else ""
    return f"{view.state}{reason}{' (stale)' if view.is_stale else ''}{bills}"


def machine_of(view: RunView) -> str:
    """`2 x 8x A100-80GB ... in us-east-1 of lambda, $22.32 an hour, bills now`"""
    offer = view.offer
    count = f"{view.nodes} x " if view.nodes > 1 else ""
    if offer.cloud == LOCAL:
        return count + describe_machine(offer)
    place = f"{offer.region} of {offer.cloud}" if offer.region else offer.cloud
    price = f"{dollars(view.price_per_hour)} an hour"
    bills = {"running": "bills now", "gone": "gone", "unknown": "not known to SkyPilot here"}
    return f"{count}{describe_machine(offer)} in {place}, {price}, {bills[view.backend]}"


def plan_table(plan: Plan, *, store: str) -> Table:
    recipe, offer = plan.recipe, plan.offer
    train, model = recipe.train, recipe.model
    budget = dollars(plan.budget_usd) if plan.budget_usd else "no limit"
    if plan.budget_hours is not None:
        budget += f", which buys {duration(plan.budget_hours * 3600)}"
    batch = " x ".join(
        (
            counted(plan.ranks, "rank"),
            counted(plan.grad_accum_steps, "micro-step"),
            counted(plan.micro_batch_size, "sequence"),
            counted(model.block_size, "token"),
        )
    )
    facts = {
        "recipe": f"{plan.recipe_name}: {recipe.summary}",
        "model": f"{model.parameters:,} parameters ({counted(model.n_layer, 'layer')}, "
        f"{counted(model.n_head, 'head')}, {model.n_embd} wide, context {model.block_size:,})",
        "data": _describe_data(recipe.data),
        "training": f"{counted(train.steps, 'step')} of {train.batch_tokens:,} tokens: "
        f"{train.tokens:,} tokens",
        **_hellaswag_in(plan),
        "machine": _machines(plan) + _ranks(plan),
        **_place_of(plan),
        "a step": batch,
        "price": f"{_price(plan)} ({offer.price_source}, {offer.price_as_of})",
        "budget": budget,
        **({} if plan.estimate is None else {"estimate": describe_estimate(plan.estimate)}),
        **_preparation_of(plan),
        "time limit": duration(plan.max_hours * 3600) if plan.max_hours else "no limit",
        "store": store,
    }
    if plan.job == "prepare":
        facts = {name: fact for name, fact in facts.items() if name not in OF_TRAINING}
    table = _facts(facts)
    if (reference := recipe.reference) is not None:
        table.add_row(
            "reference",
            f"{duration(reference.hours * 3600)} on {reference.gpus}, {dollars(reference.usd)} at "
            f"{dollars(reference.price_per_hour)} an hour as of {reference.price_as_of}; "
            f"val loss {number(reference.val_loss, '.4g')} ({reference.source})",
        )
    for note in plan.notes:
        table.add_row("note", note)
    return table


def _hellaswag_in(plan: Plan) -> dict[str, str]:
    settings, reference = plan.recipe.eval, plan.recipe.reference
    if not settings.hellaswag:
        return {}
    beside = f" (reference {reference.hellaswag:.3f})" if reference and reference.hellaswag else ""
    return {
        "HellaSwag": f"scored every {counted(settings.hellaswag_every, 'step')} and at the end"
        f"{beside}; where its questions cannot be fetched, the run goes on without and says so"
    }


def _describe_data(data: DataConfig) -> str:
    """`fineweb, sample-10BT, at 9bb295ddab0e`, or where a text lies and what of it is kept."""
    if data.hub_repo is None:
        kept = f", its last {data.val_fraction:.0%} for validation" if data.val_fraction else ""
        return (data.path or data.source) + kept
    commit = data.revision[:12] if data.is_pinned else data.revision
    config = data.config or data.default_config
    return ", ".join(filter(None, (data.source, config, f"at {commit}" if commit else "")))


def _machines(plan: Plan) -> str:
    nodes = f"{plan.nodes} nodes of " if plan.nodes > 1 else ""
    return f"{nodes}{describe_machine(plan.offer)}{', spot' if plan.offer.spot else ''}"


def _ranks(plan: Plan) -> str:
    if plan.job == "prepare":
        return "" if plan.offer.vcpus is None else f"; {plan.offer.vcpus:g} vCPUs"
    return f"; {counted(plan.ranks, 'rank')} on {plan.device}"


def _price(plan: Plan) -> str:
    """Of all nodes together, as it is what a bill says."""
    if not plan.price_per_hour:
        return "none"
    each = f" for {plan.nodes} nodes at {dollars(plan.offer.price_per_hour)}"
    return f"{dollars(plan.price_per_hour)} an hour{each if plan.nodes > 1 else ''}"


def _place_of(plan: Plan) -> dict[str, str]:
    """Where the first choice is, and what comes next where it is not to be had."""
    first = plan.offer
    if first.cloud == LOCAL:
        return {}
    kinds: dict[tuple[str, str, int], list[Offer]] = {}
    for offer in plan.offers:
        kinds.setdefault((offer.cloud, offer.gpu, offer.gpu_count), []).append(offer)
    same, *others = kinds.values()
    region = "any region of " if len(same) > 1 else f"region {first.region} of "
    facts = {"where": (region if first.region else "") + first.cloud}
    if others:
        names = []
        for cheapest, *_ in others[:MOST_ALTERNATIVES]:
            cloud = "" if cheapest.cloud == first.cloud else f" on {cheapest.cloud}"
            price = dollars(cheapest.price_per_hour * plan.nodes)
            names.append(f"{describe_gpus(cheapest)}{cloud} {price}")
        more = f" and {len(others) - len(names)} more" if len(others) > len(names) else ""
        facts["else"] = ", ".join(names) + more
    return facts


def describe_hellaswag(*, acc: float | None, acc_norm: float, reference: float | None) -> str:
    beside = "" if reference is None else f"; the reference: {reference:.3f}"
    return f"acc_norm {acc_norm:.4f}, acc {number(acc, '.4f')}{beside}"


def hellaswag_of(view: RunView) -> str:
    """The newest score, and why there is none now; empty for a run that has neither."""
    parts = []
    if view.hellaswag_acc_norm is not None:
        parts.append(
            describe_hellaswag(
                acc=view.hellaswag_acc,
                acc_norm=view.hellaswag_acc_norm,
                reference=view.hellaswag_reference,
            )
        )
    if view.hellaswag_missing is not None:
        later = f"; `gptctl eval hellaswag {view.run_id}` scores it here" if view.is_over else ""
        parts.append(f"no score: {view.hellaswag_missing}{later}")
    return "; ".join(parts)


def slow_rank_of(view: RunView) -> str:
    """`rank 5, on node 0: 0.412 s a forward pass, the others 0.301 s`; empty where none is."""
    if (slow := view.slow_rank) is None:
        return ""
    where = f"rank {slow.rank}, on node {slow.node}"
    return f"{where}: {slow.seconds:.3f} s a forward pass, the others {slow.median_s:.3f} s"


def describe_step(view: RunView) -> str:
    """`step 120 of 400`; of a run that only prepares data, how far that is."""
    if view.job == "prepare":
        return f"preparing data: {_describe_prepared(view)}"
    return f"step {view.step:,} of {view.steps:,}"


def describe_end(view: RunView) -> str:
    """`stopped (budget) at step 120 of 400`"""
    return f"{state_of(view)}{' at ' if view.job == 'train' else ', '}{describe_step(view)}"


def _describe_prepared(view: RunView) -> str:
    """`3 shards, 200,000,000 of 9,900,000,000 training tokens at 24,000,000 tokens/s`"""
    told, lead = counted(view.shards, "shard"), view.lead
    if lead is None:
        return told
    told += f", {lead.ready_tokens:,} of {lead.wanted_tokens:,} training tokens"
    if lead.is_done or not lead.tokens_per_sec:
        return told
    left_s = (lead.wanted_tokens - lead.ready_tokens) / lead.tokens_per_sec
    return f"{told} at {lead.tokens_per_sec:,.0f} tokens/s, left {duration(left_s)}"


def runs_table(views: list[RunView]) -> Table:
    table = new_table("run", "state", "step", "val loss", "tokens/s", "spent", "budget", "created")
    for view in views:
        table.add_row(
            view.run_id,
            state_of(view),
            f"{view.step:,}/{view.steps:,}" if view.job == "train" else "data",
            number(view.val_loss, ".4f"),
            number(view.tokens_per_sec),
            dollars(view.spent_usd),
            dollars(view.budget_usd),
            moment(view.created_at),
        )
    return table


def run_details(view: RunView) -> Table:
    phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in view.phases.items())
    table = _facts(
        {
            "run": view.run_id,
            "recipe": view.recipe,
            "machine": machine_of(view),
            "state": state_of(view),
            "phase": view.phase,
            **(_training_of(view) if view.job == "train" else {"job": describe_step(view)}),
            "spent": spending(view),
            "phases": phases or "-",
            "store": view.store,
            "created": moment(view.created_at),
            "updated": moment(view.updated_at),
        }
    )
    rows = (
        ("HellaSwag", hellaswag_of(view)),
        ("slow rank", slow_rank_of(view)),
        ("message", view.message),
        ("hint", view.hint),
    )
    for name, text in rows:
        if text:
            table.add_row(name, text)
    return table


def _training_of(view: RunView) -> dict[str, str]:
    return {
        "step": f"{view.step:,} of {view.steps:,} ({view.tokens:,} tokens)",
        "val loss": f"{number(view.val_loss, '.4f')}, best {number(view.best_val_loss, '.4f')}",
        "speed": f"{number(view.tokens_per_sec)} tokens/s, MFU {number(view.mfu, '.1%')}",
        "time left": duration(view.seconds_left),
        **({"data": _ready_of(view.lead) + describe_lead(view.lead)} if view.lead else {}),
    }


def cost_table(cost: Cost) -> Group:
    table = new_table("phase", "time", "share", "cost")
    total_s = sum(phase.seconds for phase in cost.by_phase.values())
    for name, phase in cost.by_phase.items():
        share = f"{phase.seconds / total_s:.0%}" if total_s else "-"
        table.add_row(name, duration(phase.seconds), share, dollars(phase.usd))
    if len(cost.by_life) > 1:
        table.add_section()
        for life, spent in cost.by_life.items():
            share = f"{spent.seconds / total_s:.0%}" if total_s else "-"
            table.add_row(f"life {life}", duration(spent.seconds), share, dollars(spent.usd))
        table.add_section()
    table.add_row("all", duration(total_s), "", dollars(cost.spent_usd), style="bold")
    price = f"{dollars(cost.price_per_hour)} an hour" if cost.price_per_hour else "no price"
    return Group(
        table,
        Text(describe_shares(cost.shares)),
        Text(f"{price} ({cost.price_source}, {cost.price_as_of})"),
    )


def compare(record: RunRecord, cost: Cost) -> str | None:
    """`estimated $0.0031 in 1 min 50 s, took $0.0029 in 1 min 44 s (-6% time)`, or None."""
    if record.estimate_usd is None or record.estimate_hours is None:
        return None
    seconds = sum(spent.seconds for spent in cost.by_phase.values())
    estimated_s = record.estimate_hours * 3600
    off = f" ({seconds / estimated_s - 1:+.0%} time)" if estimated_s else ""
    return (
        f"estimated {dollars(record.estimate_usd)} in {duration(estimated_s)}, "
        f"took {dollars(cost.spent_usd)} in {duration(seconds)}{off}"
    )


def describe_estimate(found: Estimate) -> str:
    """For the table of a plan."""
    if found.usd is None:
        return f"unknown: {found.mfu_source}"
    return (
        f"likely {dollars(found.usd)} in {duration((found.hours or 0) * 3600)}, "
        f"{dollars(found.usd_low)} to {dollars(found.usd_high)} ({found.mfu_source})"
    )


def _preparation_of(plan: Plan) -> dict[str, str]:
    if plan.estimate is None:
        return {}
    needs, saved_bytes = plan.estimate.preparation, checkpoint_bytes(plan.recipe)
    if plan.job == "prepare":
        return _describe_job(plan, needs)
    if not needs.is_fetched:
        return {}
    return {
        "preparing": describe_preparation(needs),
        "disk": f"{needs.disk_bytes / 1e9:.1f} GB for data and {saved_bytes / 1e9:.1f} GB for "
        "checkpoints, at most",
    }


def _describe_job(plan: Plan, needs: Preparation) -> dict[str, str]:
    """What a machine prepares that does nothing else."""
    if plan.whole and source_tokens(plan.recipe.data) is None:
        return {"preparing": "all of the source, however much that is"}
    tokens = needs.shard_bytes // SHARD_BYTES_PER_TOKEN
    fetched = tokens * rates_of(plan.recipe.data).fetched_bytes
    beside = " and files beside them" if fetched else ""
    shards = counted(needs.shards, "shard")
    return {
        "preparing": f"at most {shards}, {tokens:,} tokens, by {needs.maker}"
        + (f" from {fetched / 1e9:.1f} GB of the Hub" if fetched else "")
        + "; nothing that the store has already",
        "disk": f"{needs.disk_bytes / 1e9:.1f} GB for shards{beside}, at most",
    }


def describe_preparation(needs: Preparation) -> str:
    """What keeps up with training, and what there is."""
    shards = f"{counted(needs.shards, 'shard')} at most"
    if needs.cores is None:
        return f"{shards}, by {needs.maker}; how fast they are wanted is not known"
    there = "" if needs.cores_free is None else f" of {needs.cores_free:g} free"
    return (
        f"{shards}; {number(needs.tokens_per_sec)} tokens/s take {needs.cores:.2g}{there} cores "
        f"by {needs.maker}, {(needs.fetched_bytes_per_s or 0) / 1e6:.2g} MB/s from the Hub; "
        "nothing where the store has them"
    )


def files_table(pulled: PulledCheckpoint) -> Table:
    table = new_table("file", "bytes", "sha256")
    for file in pulled.files:
        table.add_row(file.name, f"{file.size_bytes:,}", file.sha256[:16])
    table.caption = f"step {pulled.step:,} of {pulled.run_id} in {pulled.path}"
    table.caption_justify = "left"
    return table


@dataclass(frozen=True, slots=True)
class LossCurve:
    """As wide as `width`, or as there is room for."""

    curves: Curves
    width: int
    height: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(self.width, options.max_width)
        yield Text(draw_curve(self.curves, width=width, height=self.height))


def summary(
    view: RunView,
    *,
    curves: Curves,
    samples: str | None,
    cost: Cost,
    record: RunRecord,
    command: Callable[..., str],
) -> Group:
    """What a run that has ended looks like: its curve, its words, its bill, what to do next.

    `command` makes a command line of words, as `Session.command` does.
    """
    parts: list[Any] = [Text()]
    if curves.can_be_drawn:
        parts += [LossCurve(curves, width=CURVE_WIDTH, height=CURVE_HEIGHT), Text()]
    if samples:
        parts += [Text("what it writes", style="bold"), Text(samples.rstrip()), Text()]
    parts += [cost_table(cost)]
    if (beside := compare(record, cost)) is not None:
        parts += [Text(beside)]
    parts += [Text()]
    losses = f"val loss {number(view.val_loss, '.4f')}, best {number(view.best_val_loss, '.4f')}"
    reached = describe_end(view) + (f"; {losses}" if view.job == "train" else "")
    parts += [Text(f"{view.run_id}: {reached}", style="bold")]
    if view.job == "prepare" and view.message:
        parts += [Text(view.message)]
    if told := hellaswag_of(view):
        parts += [Text(f"HellaSwag: {told}")]
    parts += [Text(f"everything it made: {_place(view)}"), Text("next:")]
    parts += [Text(f"  {command(*words)}") for words in next_commands(view)]
    return Group(*parts)


def next_commands(view: RunView) -> tuple[tuple[str, ...], ...]:
    """Three that make sense now."""
    run = view.run_id
    if view.state in ("failed", "stopped"):
        return (
            ("launch", "--resume", run),
            ("logs", run, "--stage", view.job),
            ("cost", "show", run),
        )
    if view.job == "prepare":
        return ("data", "list"), ("logs", run), ("cost", "show", run)
    return (
        ("sample", run),
        ("pull-checkpoint", run, "--format", "hf", "--to", shlex.quote(view.recipe)),
        ("cost", "show", run),
    )


def _place(view: RunView) -> str:
    """The run's own folder in the store; before the query of an s3 URL, if it has one."""
    base, mark, query = view.store.partition("?")
    return f"{base.rstrip('/')}/runs/{view.run_id}{mark}{query}"


def new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _facts(facts: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table
