"""Runs made by hand, written through the records of `training.layout`, as a node would."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from gptctl.backends import BackendState, Job, Tell, Wanted
from training import manifest
from training.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    NodeConfig,
    Recipe,
    TrainConfig,
)
from training.layout import (
    METRICS,
    BillLine,
    Offer,
    RunPaths,
    RunRecord,
    Status,
    encode,
    run_key,
    write_atomic,
)
from training.storage import Storage, open_store

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
OFFER = Offer(
    cloud="local",
    region="here",
    instance_type="this machine",
    gpu="CPU",
    gpu_count=0,
    spot=False,
    price_per_hour=Decimal("3.60"),
    price_source="given by --price-per-hour",
    price_as_of="2026-11-21",
)
RECIPE = Recipe(
    summary="a small one",
    model=ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=32, vocab_size=257),
    data=DataConfig(source="python-stdlib", tokenizer="bytes", shard_tokens=50_000),
    train=TrainConfig(steps=100, batch_tokens=256, micro_batch_size=4, max_lr=1e-3, warmup_steps=5),
    eval=EvalConfig(every=10, tokens=2048),
    checkpoint=CheckpointConfig(every=20),
    node=NodeConfig(cpu_ranks=2),
)


def make_record(run_id: str = "small-3f9a", **fields: Any) -> RunRecord:
    record = RunRecord(
        run_id=run_id,
        recipe_name="small",
        recipe=RECIPE,
        offer=OFFER,
        nodes=1,
        ranks=2,
        device="cpu",
        micro_batch_size=4,
        grad_accum_steps=1,
        budget_usd=Decimal("1.00"),
        max_hours=None,
        store="unused",
        created_at=NOW,
        versions={},
    )
    return replace(record, **fields)


def make_status(run_id: str = "small-3f9a", **fields: Any) -> Status:
    status = Status(
        run_id=run_id,
        state="training",
        phase="training",
        life=1,
        step=50,
        steps=100,
        tokens=12_800,
        updated_at=NOW,
        bill=(make_bill("preparing", 3.5), make_bill("training", 60.0)),
        budget_usd=Decimal("1.00"),
        price_per_hour=Decimal("3.60"),
        val_loss=2.5,
        tokens_per_sec=1000.0,
    )
    return replace(status, **fields)


def make_bill(phase: str, seconds: float, *, life: int = 1) -> BillLine:
    return BillLine(life=life, phase=phase, seconds=seconds, price_per_hour=Decimal("3.60"))


class RunFolder:
    """A store in `folder` with one run in it."""

    def __init__(self, folder: Path, run_id: str = "small-3f9a", **status: Any) -> None:
        self.folder = folder
        self.run_id = run_id
        self.paths = RunPaths(folder, run_id)
        self.store: Storage = open_store(str(folder))
        self.record = make_record(run_id, store=str(folder))
        write_atomic(self.paths.record, encode(self.record))
        self.write_status(**status)

    def write_status(self, **fields: Any) -> None:
        write_atomic(self.paths.status, encode(make_status(self.run_id, **fields)))

    def write_metrics(self, *lines: dict[str, Any]) -> None:
        data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        self.store.write(run_key(self.run_id, METRICS), data)

    def write_log(self, stage: str, text: str) -> None:
        write_atomic(self.paths.log(stage), text.encode())

    def write_checkpoint(self, step: int) -> Path:
        folder = self.paths.checkpoint(step)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights at %d" % step)
        (folder / "state.json").write_bytes(b"{}")
        manifest.commit(folder, step=step, tokens=step * 256)
        return folder


class FakeBackend:
    """A machine that does as it is told: for use cases, whose own logic is what is tested."""

    def __init__(
        self,
        state: BackendState = "gone",
        error: BaseException | None = None,
        offers: Sequence[Offer] = (OFFER,),
    ) -> None:
        self.now: BackendState = state
        self.error = error
        self.has = list(offers)
        self.asked: list[Wanted] = []
        self.jobs: list[Job] = []
        self.stopped: list[str] = []

    def offers(self, wanted: Wanted) -> list[Offer]:
        self.asked.append(wanted)
        return self.has

    def check(self, offers: list[Offer]) -> None:
        pass

    def describe(self, job: Job) -> str:
        return job.record.run_id

    def submit(self, job: Job, *, tell: Tell) -> Offer:
        self.jobs.append(job)
        if self.error is not None:
            raise self.error
        self.now = "running"
        return job.offers[-1]

    def state(self, run_id: str) -> BackendState:
        return self.now

    def logs(self, run_id: str) -> Iterator[str]:
        return iter(())

    def follow_log(self, run_id: str, stage: str, offset: int) -> Iterator[bytes]:
        return iter(())

    def stop(self, run_id: str, *, tell: Tell) -> None:
        self.stopped.append(run_id)
        self.now = "gone"
