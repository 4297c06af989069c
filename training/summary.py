"""`summary.json`: what a run reached, beside what its recipe promised. Torch-free.

The bill in it is the node's own; `gptctl cost show` also knows when the machine was gone.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any

from training.flops import peak_of
from training.layout import (
    Offer,
    Record,
    RunPaths,
    RunRecord,
    State,
    Status,
    decode,
    encode,
    write_atomic,
)

TRAINING = "training"
"""The phase of a bill in which steps are made."""


class Figures(Record, frozen=True, kw_only=True):
    """One side of the comparison; None where nobody measured it, or promised anything."""

    steps: int | None = None
    tokens: int | None = None
    val_loss: float | None = None
    """Nats per token, at the last evaluation."""
    hellaswag: float | None = None
    """acc_norm"""
    hours: float | None = None
    """Billed, all lives and all phases together. A reference counts its training alone."""
    training_hours: float | None = None
    usd: Decimal | None = None
    tokens_per_sec: float | None = None
    """Over all of training."""
    mfu: float | None = None
    """By llm.c's count of FLOPs."""
    gpus: str | None = None
    price_per_hour: Decimal | None = None
    """Of all nodes together."""


class Summary(Record, frozen=True, kw_only=True):
    run_id: str
    recipe: str
    state: State
    reason: str | None
    message: str | None
    lives: int
    nodes: int
    offer: Offer
    """The machine of the last life."""
    best_val_loss: float | None
    reached: Figures
    promised: Figures | None
    """None for a recipe without a reference."""
    promised_by: str | None
    versions: dict[str, str]
    created_at: datetime
    ended_at: datetime


def summarize(record: RunRecord, status: Status) -> Summary:
    """The run as of that status."""
    offer = status.offer or record.offer
    reference = record.recipe.reference
    return Summary(
        run_id=record.run_id,
        recipe=record.recipe_name,
        state=status.state,
        reason=status.reason,
        message=status.message,
        lives=status.life,
        nodes=record.nodes,
        offer=offer,
        best_val_loss=status.best_val_loss,
        reached=_reached(record, status, offer),
        promised=_promised(record),
        promised_by=reference.source if reference else None,
        versions=record.versions,
        created_at=record.created_at,
        ended_at=status.updated_at,
    )


def write_summary(paths: RunPaths, record: RunRecord, status: bytes) -> None:
    """Put it into the run's folder, from which it is sent; none of a run that trains nothing.

    `status` is the last one, encoded. A disk that is full is no fault here.
    """
    if record.job != "train":
        return
    told = decode(status, Status, name="the last status")
    with suppress(OSError):
        write_atomic(paths.summary, encode(summarize(record, told)))


def measured_at(lines: Iterable[dict[str, Any]], step: int) -> Figures:
    """What `metrics.jsonl` says of the model at exactly that step; None where nothing."""
    val_loss, hellaswag = None, None
    for line in lines:
        if line.get("step") == step:
            val_loss = line.get("val_loss", val_loss)
            hellaswag = line.get("hellaswag_acc_norm", hellaswag)
    return Figures(steps=step, val_loss=val_loss, hellaswag=hellaswag)


def _reached(record: RunRecord, status: Status, offer: Offer) -> Figures:
    train = record.recipe.train
    seconds = sum(line.seconds for line in status.bill)
    training_s = sum(line.seconds for line in status.bill if line.phase == TRAINING)
    # What was trained twice, after a crash, took its time and does not count.
    speed = status.tokens / training_s if training_s and status.tokens else None
    peak = peak_of(offer.gpu)
    gpus = offer.gpu_count * record.nodes
    flops = speed * record.recipe.model.flops_per_token if speed else None
    return Figures(
        steps=status.step,
        tokens=status.step * train.batch_tokens,
        val_loss=status.val_loss,
        hellaswag=status.hellaswag_acc_norm,
        hours=round(seconds / 3600, 4),
        training_hours=round(training_s / 3600, 4),
        usd=status.spent_usd,
        tokens_per_sec=speed,
        mfu=flops / (peak * gpus) if flops and peak and gpus else None,
        gpus=f"{offer.gpu}:{gpus}" if gpus else offer.gpu,
        price_per_hour=status.price_per_hour,
    )


def _promised(record: RunRecord) -> Figures | None:
    recipe, reference = record.recipe, record.recipe.reference
    if reference is None:
        return None
    name, _, count = reference.gpus.partition(":")
    speed = recipe.train.batch_tokens / (1e-3 * reference.step_ms)
    peak = peak_of(name)
    return Figures(
        steps=recipe.train.steps,
        tokens=recipe.train.tokens,
        val_loss=reference.val_loss,
        hellaswag=reference.hellaswag,
        hours=reference.hours,
        training_hours=reference.hours,
        usd=reference.usd,
        tokens_per_sec=speed,
        mfu=speed * recipe.model.flops_per_token / (peak * int(count or 1)) if peak else None,
        gpus=reference.gpus,
        price_per_hour=reference.price_per_hour,
    )
